//! Every key comes back, and the order of the bytes is that of the parts.

use proptest::prelude::*;

use super::*;

fn version() -> impl Strategy<Value = Version> {
    // Up to what the tuple layer has one integer for.
    prop_oneof![0..300_u64, 0..i64::MAX as u64].prop_map(Version::new)
}

fn database() -> impl Strategy<Value = DatabaseId> {
    any::<[u8; 16]>().prop_map(DatabaseId::from_bytes)
}

fn page() -> impl Strategy<Value = PageNumber> {
    prop_oneof![1..300_u32, 1..PageNumber::MAX].prop_map(|n| PageNumber::try_from(n).unwrap())
}

fn layer() -> impl Strategy<Value = i64> {
    prop_oneof![
        Just(OWN),
        Just(FROM_BELOW),
        (0..MAX_SERIAL).prop_map(layer_of)
    ]
}

fn key() -> impl Strategy<Value = Key> {
    let name = "[a-z/é]{1,20}"
        .prop_filter_map("a name", |text| DatabaseName::try_from(text.as_str()).ok());
    let tag = || "[a-z]{1,9}".prop_map(|text| TagName::try_from(text.as_str()).unwrap());
    let sum = prop_oneof![Just(Sum::Versions), Just(Sum::Pages), Just(Sum::Bytes)];
    let message = prop_oneof![Just(Message::Wanted), Just(Message::Granted)];
    let time = 0..i64::MAX as u64;
    prop_oneof![
        Just(Key::Format),
        Just(Key::Incarnation),
        any::<ServerId>().prop_map(Key::Server),
        any::<ServerId>().prop_map(Key::Bell),
        (any::<ServerId>(), message, database(), any::<ServerId>())
            .prop_map(|(to, m, d, from)| Key::Mail(to, m, d, from)),
        database().prop_map(Key::Claim),
        database().prop_map(Key::Grant),
        name.prop_map(Key::Name),
        database().prop_map(Key::Head),
        database().prop_map(Key::Epoch),
        (database(), sum).prop_map(|(d, s)| Key::Sum(d, s)),
        (database(), version()).prop_map(|(d, v)| Key::Segment(d, v)),
        (database(), version(), database(), version())
            .prop_map(|(d, v, c, f)| Key::Child(d, v, c, f)),
        database().prop_map(Key::Origin),
        (database(), any::<ServerId>()).prop_map(|(d, s)| Key::Protect(d, s)),
        (database(), version()).prop_map(|(d, v)| Key::Record(d, v)),
        (database(), version(), any::<u32>()).prop_map(|(d, v, c)| Key::Changed(d, v, c)),
        (database(), version()).prop_map(|(d, v)| Key::Past(d, v)),
        (database(), time, version()).prop_map(|(d, t, v)| Key::Made(d, t, v)),
        (database(), tag()).prop_map(|(d, t)| Key::Tag(d, t)),
        (database(), version(), tag()).prop_map(|(d, v, t)| Key::Tagged(d, v, t)),
        (database(), page(), version(), layer()).prop_map(|(d, p, v, l)| Key::Page(d, p, v, l)),
        (database(), 0..MAX_SERIAL).prop_map(|(d, s)| Key::Attempt(d, s)),
        database().prop_map(Key::Serial),
        (database(), 0..MAX_SERIAL, any::<u32>()).prop_map(|(d, s, c)| Key::Written(d, s, c)),
        database().prop_map(Key::Removed),
        database().prop_map(Key::Due),
        database().prop_map(Key::Sweep),
        (database(), version()).prop_map(|(d, v)| Key::Unread(d, v)),
        (any::<u32>(), database(), version()).prop_map(|(n, d, v)| Key::Flatten(n, d, v)),
    ]
}

proptest! {
    #[test]
    fn keys_come_back(prefix in any::<Vec<u8>>(), key in key()) {
        let space = Space::new(&prefix);
        prop_assert_eq!(space.decode(&space.encode(&key)), Some(key));
    }

    #[test]
    fn other_bytes_are_no_keys_or_decoded_without_harm(bytes in any::<Vec<u8>>()) {
        let _ = Space::new(&[]).decode(&bytes);
    }

    #[test]
    fn rows_of_a_page_are_in_the_order_of_versions_and_layers(
        d in database(), p in page(), one in (version(), layer()), two in (version(), layer())
    ) {
        let space = Space::new(b"x");
        let of = |(v, l): (Version, i64)| space.encode(&Key::Page(d, p, v, l));
        prop_assert_eq!(of(one).cmp(&of(two)), one.cmp(&two));
        let range = space.page(d, p, Version::ZERO, one.0);
        let within = range.begin < of(two) && of(two) < range.end;
        prop_assert_eq!(within, two.0 <= one.0);
    }

    #[test]
    fn pages_are_in_their_order(d in database(), one in page(), two in page(), v in version(), w in version()) {
        let space = Space::new(b"x");
        let (first, second) = (Key::Page(d, one, v, OWN), Key::Page(d, two, w, OWN));
        if one != two {
            prop_assert_eq!(space.encode(&first).cmp(&space.encode(&second)), one.cmp(&two));
        }
        let from = space.pages_from(d, one.get());
        let second = space.encode(&second);
        prop_assert_eq!(from.begin < second && second < from.end, two >= one);
    }

    #[test]
    fn layers_tell_their_attempts(serial in 0..MAX_SERIAL) {
        prop_assert_eq!(serial_of(layer_of(serial)), Some(serial));
        prop_assert!(layer_of(serial) < OWN);
    }
}

#[test]
fn names_are_found_by_their_beginning() {
    let space = Space::new(b"x");
    let names = ["a", "a/b", "a/c", "ab", "b"];
    let found = |prefix: &str, after: &str| -> Vec<&str> {
        let range = space.names(prefix, after);
        let key = |n: &&str| space.encode(&Key::Name(DatabaseName::try_from(*n).unwrap()));
        let within = |n: &&str| range.begin <= key(n) && key(n) < range.end;
        names.iter().copied().filter(within).collect()
    };
    assert_eq!(found("", ""), names);
    assert_eq!(found("a/", ""), ["a/b", "a/c"]);
    assert_eq!(found("a", "a/b"), ["a/c", "ab"]);
    assert_eq!(found("a", "Z"), ["a", "a/b", "a/c", "ab"]);
    assert_eq!(found("", "ab"), ["b"]);
    assert!(found("a", "z").is_empty());
}

#[test]
fn the_own_layer_is_no_attempt() {
    assert_eq!(serial_of(OWN), None);
}
