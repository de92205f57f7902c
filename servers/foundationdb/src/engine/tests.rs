use super::Target;

#[test]
fn what_came_to_the_place_of_what_a_lost_round_took_stays() {
    let target = Target::new();
    assert_eq!(target.find(Some(1)), Some(1));
    // The answer was lost: not applied, so it is still there.
    assert_eq!(target.find(Some(1)), Some(1));
    // Applied, and somebody has made another since.
    assert_eq!(target.find(Some(2)), None);
    assert_eq!(target.find(Some(2)), None);
    assert_eq!(target.first(), Some(1));
}

#[test]
fn what_a_lost_round_took_is_gone_and_what_never_was_there_is_not() {
    let target = Target::new();
    assert_eq!(target.find(None), None);
    assert_eq!(target.first(), None);
    assert_eq!(target.find(Some(1)), Some(1));
    assert_eq!(target.find(None), None);
    assert_eq!(target.first(), Some(1));
}
