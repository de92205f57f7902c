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
        (
            database(),
            any::<ServerId>(),
            prop_oneof![Just(0), any::<u32>()]
        )
            .prop_map(|(d, s, row)| Key::Protect(d, s, row)),
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

const SERVER: ServerId = *b"ghijklmnopqrstuv";
const OTHER: ServerId = *b"GHIJKLMNOPQRSTUV";

/// The bytes of one key of each kind, and the next one. A kind that is missing here does not compile.
fn pinned(key: &Key) -> (&'static [u8], Option<Key>) {
    let d = DatabaseId::from_bytes(*b"0123456789abcdef");
    let child = DatabaseId::from_bytes(*b"ABCDEF0123456789");
    let (v, first) = (Version::new(0x0102), Version::new(7));
    let page = PageNumber::try_from(0x0102_0304).unwrap();
    let name = DatabaseName::try_from("a/é").unwrap();
    let tag = TagName::try_from("t").unwrap();
    match key {
        Key::Format => (b"\x15\x01", Some(Key::Incarnation)),
        Key::Incarnation => (b"\x15\x02", Some(Key::Server(SERVER))),
        Key::Server(_) => (b"\x15\x03\x01ghijklmnopqrstuv\x00", Some(Key::Bell(SERVER))),
        Key::Bell(_) => (b"\x15\x04\x01ghijklmnopqrstuv\x00", Some(Key::Mail(SERVER, Message::Wanted, d, OTHER))),
        Key::Mail(_, Message::Wanted, ..) => (b"\x15\x05\x01ghijklmnopqrstuv\x00\x14\x010123456789abcdef\x00\x01GHIJKLMNOPQRSTUV\x00", Some(Key::Mail(SERVER, Message::Granted, d, OTHER))),
        Key::Mail(_, Message::Granted, ..) => (b"\x15\x05\x01ghijklmnopqrstuv\x00\x15\x01\x010123456789abcdef\x00\x01GHIJKLMNOPQRSTUV\x00", Some(Key::Name(name))),
        Key::Name(_) => (b"\x15\x0a\x02a/\xc3\xa9\x00", Some(Key::Head(d))),
        Key::Head(_) => (b"\x15\x0b\x010123456789abcdef\x00", Some(Key::Epoch(d))),
        Key::Epoch(_) => (b"\x15\x0c\x010123456789abcdef\x00", Some(Key::Sum(d, Sum::Versions))),
        Key::Sum(_, Sum::Versions) => (b"\x15\x0d\x010123456789abcdef\x00\x14", Some(Key::Sum(d, Sum::Pages))),
        Key::Sum(_, Sum::Pages) => (b"\x15\x0d\x010123456789abcdef\x00\x15\x01", Some(Key::Sum(d, Sum::Bytes))),
        Key::Sum(_, Sum::Bytes) => (b"\x15\x0d\x010123456789abcdef\x00\x15\x02", Some(Key::Segment(d, v))),
        Key::Segment(..) => (b"\x15\x0e\x010123456789abcdef\x00\x16\x01\x02", Some(Key::Child(d, v, child, first))),
        Key::Child(..) => (b"\x15\x0f\x010123456789abcdef\x00\x16\x01\x02\x01ABCDEF0123456789\x00\x15\x07", Some(Key::Origin(d))),
        Key::Origin(_) => (b"\x15\x10\x010123456789abcdef\x00", Some(Key::Protect(d, SERVER, 0))),
        Key::Protect(_, _, 0) => (b"\x15\x11\x010123456789abcdef\x00\x01ghijklmnopqrstuv\x00", Some(Key::Protect(d, SERVER, 1))),
        Key::Protect(..) => (b"\x15\x11\x010123456789abcdef\x00\x01ghijklmnopqrstuv\x00\x15\x01", Some(Key::Claim(d))),
        Key::Claim(_) => (b"\x15\x12\x010123456789abcdef\x00", Some(Key::Grant(d))),
        Key::Grant(_) => (b"\x15\x13\x010123456789abcdef\x00", Some(Key::Record(d, v))),
        Key::Record(..) => (b"\x15\x14\x010123456789abcdef\x00\x16\x01\x02", Some(Key::Changed(d, v, 300))),
        Key::Changed(..) => (b"\x15\x15\x010123456789abcdef\x00\x16\x01\x02\x16\x01,", Some(Key::Past(d, v))),
        Key::Past(..) => (b"\x15\x16\x010123456789abcdef\x00\x16\x01\x02", Some(Key::Made(d, 1_700_000_000_000, v))),
        Key::Made(..) => (b"\x15\x17\x010123456789abcdef\x00\x1a\x01\x8b\xcf\xe5h\x00\x16\x01\x02", Some(Key::Tag(d, tag))),
        Key::Tag(..) => (b"\x15\x18\x010123456789abcdef\x00\x02t\x00", Some(Key::Tagged(d, v, tag))),
        Key::Tagged(..) => (b"\x15\x19\x010123456789abcdef\x00\x16\x01\x02\x02t\x00", Some(Key::Page(d, page, v, OWN))),
        Key::Page(_, _, _, OWN) => (b"\x15\x1e\x010123456789abcdef\x00\x18\x01\x02\x03\x04\x16\x01\x02\x14", Some(Key::Page(d, page, v, FROM_BELOW))),
        Key::Page(_, _, _, FROM_BELOW) => (b"\x15\x1e\x010123456789abcdef\x00\x18\x01\x02\x03\x04\x16\x01\x02\x0f\xfe\xff\xff\xff\xfd", Some(Key::Page(d, page, v, layer_of(3)))),
        Key::Page(..) => (b"\x15\x1e\x010123456789abcdef\x00\x18\x01\x02\x03\x04\x16\x01\x02\x10\x00\x00\x00\x01", Some(Key::Attempt(d, 3))),
        Key::Attempt(..) => (b"\x15(\x010123456789abcdef\x00\x15\x03", Some(Key::Serial(d))),
        Key::Serial(_) => (b"\x15)\x010123456789abcdef\x00", Some(Key::Written(d, 3, 4))),
        Key::Written(..) => (b"\x15*\x010123456789abcdef\x00\x15\x03\x15\x04", Some(Key::Removed(d))),
        Key::Removed(_) => (b"\x152\x010123456789abcdef\x00", Some(Key::Due(d))),
        Key::Due(_) => (b"\x153\x010123456789abcdef\x00", Some(Key::Sweep(d))),
        Key::Sweep(_) => (b"\x154\x010123456789abcdef\x00", Some(Key::Unread(d, v))),
        Key::Unread(..) => (b"\x155\x010123456789abcdef\x00\x16\x01\x02", Some(Key::Flatten(9, d, v))),
        Key::Flatten(..) => (b"\x156\x15\x09\x010123456789abcdef\x00\x16\x01\x02", None),
    }
}

/// What is in a cluster today has to be found there tomorrow. Another layout is another `FORMAT`.
#[test]
fn the_bytes_are_pinned() {
    let space = Space::new(b"<>");
    let mut kinds = 0;
    let mut next = Some(Key::Format);
    while let Some(key) = next {
        let (bytes, after) = pinned(&key);
        assert_eq!(space.encode(&key), [b"<>", bytes].concat(), "{key:?}");
        assert_eq!(space.decode(&[b"<>", bytes].concat()), Some(key));
        (kinds, next) = (kinds + 1, after);
    }
    assert_eq!(kinds, 36, "some are in no turn");
}

/// See [`Parts`]. As long as a key of a cluster can be; on the stack of any thread.
#[test]
fn a_key_of_tuples_within_tuples_is_none_and_does_not_end_the_process() {
    let space = Space::new(b"<>");
    for nested in [&[5; 9_990][..], &[0x15, 0x01, 5, 5, 5]] {
        assert_eq!(space.decode(&[b"<>", nested].concat()), None);
    }
}
