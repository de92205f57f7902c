//! Database names, as the protocol and the VFS take them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagewire_proto::{DatabaseName, limits};

fuzz_target!(|name: &str| {
    let taken = DatabaseName::try_from(name);
    if let Ok(valid) = &taken {
        assert_eq!(valid.as_str(), name);
        assert!((1..=limits::MAX_NAME_BYTES).contains(&name.len()) && !name.contains('\0'));
        assert!(
            name.split('/')
                .all(|segment| !matches!(segment, "" | "." | ".."))
        );
    }
    // No name is a path to one side and a database to the other.
    assert_eq!(pagewire::fuzzing::check_name(name).is_ok(), taken.is_ok());
});
