//! Many pins: what the sessions of a server have open is in rows that a value has room for, and is bounded.

use std::sync::Arc;
use std::time::Duration;

use pagewire_foundationdb::FoundationDbOptions;
use pagewire_foundationdb::hooks::{Lost, Trouble, in_trouble};
use pagewire_foundationdb::values::{MAX_PROTECTED_PINS, PINS_OF_A_ROW};
use pagewire_proto::Version;
use pagewire_server::store::{PageStore as _, StoreError};

use crate::servers::{begun, with_two};

/// The most bytes of a value in FoundationDB.
const VALUE_LIMIT: usize = 100_000;
/// One more than one row of 8 bytes each has room for.
const PINS: u64 = 12_501;

fn nothing_is_kept(options: &mut FoundationDbOptions) {
    options.collect_every = Duration::from_secs(3600);
    options.retention = Some(Duration::ZERO);
}

fn versions(range: std::ops::RangeInclusive<u64>) -> Vec<Version> {
    range.map(Version::new).collect()
}

/// Cause: all pins of a server were one value. Damage: from 12,500 of them on the cluster refused the row, and no session of that server could open an old
/// version or give one back.
#[test]
fn more_pins_than_a_value_has_room_for_are_in_several_rows() {
    with_two(nothing_is_kept, |one, two| async move {
        let (database, _) = begun(&one, &[(1, 1)]).await;
        one.make_versions(database, PINS + 1).await.unwrap();
        let pins = versions(1..=PINS);
        // Some at first, so that the rest is added to what is known.
        one.protect(database, None, &pins[..3000]).await.unwrap();
        one.protect(database, None, &pins).await.unwrap();
        let rows = one.protecting_rows(database).await.unwrap();
        assert_eq!(rows.len() as u64, PINS.div_ceil(PINS_OF_A_ROW as u64));
        assert!(rows.iter().all(|row| *row < VALUE_LIMIT), "{rows:?}");
        // One more, and one less, write what they change.
        let before = one.transactions();
        one.protect(database, None, &pins[..pins.len() - 1])
            .await
            .unwrap();
        one.protect(database, None, &pins).await.unwrap();
        let now = one.transactions();
        let spent = (now.0 - before.0) - (now.1 - before.1);
        assert!((2..=3).contains(&spent), "{spent} transactions");
        // Another server keeps all of them, those in the second row too, and nothing else.
        while two.collect(Some(database)).await.unwrap().more {}
        let kept = two.describe(database).await.unwrap().versions;
        assert_eq!(kept, PINS + 1, "the pins and the head");
        one.protect(database, None, &pins[PINS as usize - 1..])
            .await
            .unwrap();
        assert_eq!(one.protecting_rows(database).await.unwrap().len(), 1);
        while two.collect(Some(database)).await.unwrap().more {}
        let kept = two.describe(database).await.unwrap().versions;
        assert_eq!(kept, 2, "the pin and the head");
        one.protect(database, None, &[]).await.unwrap();
        assert!(one.protecting_rows(database).await.unwrap().is_empty());
        assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn a_pin_that_is_gone_among_many_is_refused_and_costs_no_other() {
    with_two(nothing_is_kept, |one, two| async move {
        let (database, _) = begun(&one, &[(1, 1)]).await;
        one.make_versions(database, 3000).await.unwrap();
        let pins = versions(2..=2999);
        one.protect(database, None, &pins).await.unwrap();
        while two.collect(Some(database)).await.unwrap().more {}
        // Version 1 is not kept.
        let all = versions(1..=2999);
        let refused = one.protect(database, None, &all).await;
        assert!(matches!(refused, Err(StoreError::VersionGone { .. })));
        while two.collect(Some(database)).await.unwrap().more {}
        let kept = two.describe(database).await.unwrap().versions;
        assert_eq!(kept, 2999, "the pins and the head");
        // What it was is not known now, so each of them is looked at.
        one.protect(database, None, &pins).await.unwrap();
        assert_eq!(two.describe(database).await.unwrap().versions, 2999);
    });
}

#[test]
fn pins_beyond_the_limit_are_refused_by_name() {
    with_two(nothing_is_kept, |one, _two| async move {
        let (database, _) = begun(&one, &[(1, 1)]).await;
        let pins = versions(1..=MAX_PROTECTED_PINS as u64 + 1);
        let refused = one.protect(database, None, &pins).await;
        let Err(StoreError::Limit(why)) = refused else {
            panic!("{refused:?}");
        };
        assert!(why.contains("65536 old versions"), "{why}");
    });
}

/// Cause: pins were written blindly, so a transaction whose caller had given up could land behind the next one. Damage: its rows took the place of newer
/// ones, and a version of which a session was told that it is protected was collected.
#[test]
fn a_word_that_lands_late_does_not_replace_a_newer_one() {
    with_two(nothing_is_kept, |one, two| async move {
        let (database, _) = begun(&one, &[(1, 1)]).await;
        one.make_versions(database, 9).await.unwrap();
        let late = Arc::new(Trouble::late());
        let older = versions(2..=3);
        let unknown = in_trouble(&late, one.protect(database, None, &older)).await;
        assert!(
            matches!(unknown, Err(StoreError::Internal(_))),
            "{unknown:?}"
        );
        one.protect(database, None, &versions(4..=5)).await.unwrap();
        assert_eq!(
            late.land().await,
            Some(false),
            "it was held back, and failed"
        );
        while two.collect(Some(database)).await.unwrap().more {}
        for version in versions(4..=5) {
            two.read(database, version, &[]).await.unwrap();
        }
        assert_eq!(two.describe(database).await.unwrap().versions, 3);
    });
}

/// Cause: a call that failed forgot which pins the cluster had taken. Damage: the next one looked at all of them again, so that on a slow cluster none
/// of thousands was ever protected, and no session of that server could open a version or give one back.
#[test]
fn a_call_that_is_cut_goes_on_where_it_was() {
    let impatient = |options: &mut FoundationDbOptions| {
        nothing_is_kept(options);
        options.patience = Duration::from_secs(3);
    };
    with_two(impatient, |one, two| async move {
        let (database, _) = begun(&one, &[(1, 1)]).await;
        one.make_versions(database, 6000).await.unwrap();
        let pins = versions(1..=5000);
        // Two of the five transactions, and then no more.
        let mut answers = vec![None; 2];
        answers.resize(100_000, Some(Lost::NotApplied));
        let trouble = Arc::new(Trouble::lost(&answers));
        let cut = in_trouble(&trouble, one.protect(database, None, &pins)).await;
        assert!(matches!(cut, Err(StoreError::Internal(_))), "{cut:?}");
        // What it took is protected meanwhile.
        while two.collect(Some(database)).await.unwrap().more {}
        assert_eq!(two.describe(database).await.unwrap().versions, 2049);
        let reads = one.reads();
        one.protect(database, None, &pins[..2048]).await.unwrap();
        let reads = one.reads() - reads;
        assert!(reads < 100, "{reads} reads: they are looked at again");
        one.protect(database, None, &pins[..1]).await.unwrap();
        // An outcome that is not known leaves what was there and is to stay.
        let silent = Arc::new(Trouble::lost(&[Some(Lost::NotApplied); 10_000]));
        let head = versions(6001..=6001);
        let both = [&pins[..1], &head[..]].concat();
        let cut = in_trouble(&silent, one.protect(database, None, &both)).await;
        assert!(matches!(cut, Err(StoreError::Internal(_))), "{cut:?}");
        one.protect(database, None, &both).await.unwrap();
        while two.collect(Some(database)).await.unwrap().more {}
        two.read(database, pins[0], &[]).await.unwrap();
        assert_eq!(two.describe(database).await.unwrap().versions, 2);
    });
}

/// Cause: pins that earlier transactions of a call had added stayed where a later one found a version gone. Damage: they kept versions, although nothing was
/// to be replaced.
#[test]
fn a_pin_that_is_gone_in_the_last_transaction_takes_back_those_before_it() {
    with_two(nothing_is_kept, |one, two| async move {
        let (database, _) = begun(&one, &[(1, 1)]).await;
        one.make_versions(database, 3000).await.unwrap();
        two.protect(database, None, &versions(1..=2998))
            .await
            .unwrap();
        let floor = Some(Version::new(3001));
        one.protect(database, floor, &versions(5..=5))
            .await
            .unwrap();
        while two.collect(Some(database)).await.unwrap().more {}
        let refused = one.protect(database, None, &versions(1..=2999)).await;
        assert!(
            matches!(refused, Err(StoreError::VersionGone { .. })),
            "{refused:?}"
        );
        two.protect(database, None, &[]).await.unwrap();
        while two.collect(Some(database)).await.unwrap().more {}
        two.read(database, Version::new(5), &[]).await.unwrap();
        assert_eq!(two.describe(database).await.unwrap().versions, 2);
        // And the next word is taken as ever.
        one.protect(database, None, &[]).await.unwrap();
        while two.collect(Some(database)).await.unwrap().more {}
        assert_eq!(two.describe(database).await.unwrap().versions, 1);
    });
}
