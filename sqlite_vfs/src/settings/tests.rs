//! Settings: defaults, limits, and what is said of wrong ones.

use super::*;

fn read(pairs: &[(&str, &str)]) -> Result<ProcessSettings> {
    ProcessSettings::read(|name| {
        pairs
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned())
    })
}

#[test]
fn an_empty_environment_gives_the_defaults() {
    let settings = read(&[]).unwrap();
    assert_eq!(settings.endpoint.as_str(), DEFAULT_ENDPOINT);
    assert_eq!(settings.cache_bytes, 64 << 20);
}

#[test]
fn the_list_of_variables_is_what_is_read() {
    let asked = std::cell::RefCell::new(std::collections::BTreeSet::new());
    ProcessSettings::read(|name| {
        asked.borrow_mut().insert(name.to_owned());
        None
    })
    .unwrap();
    assert!(asked.into_inner().iter().eq(VARIABLES));
}

#[test]
fn all_wrong_settings_are_named_together() {
    let error = read(&[
        ("PAGEWIRE_ENDPOINT", "ftp://x"),
        ("PAGEWIRE_CACHE_BYTES", "-1"),
        ("PAGEWIRE_DEFAULT", "maybe"),
    ])
    .unwrap_err();
    for name in [
        "PAGEWIRE_ENDPOINT",
        "PAGEWIRE_CACHE_BYTES",
        "PAGEWIRE_DEFAULT",
    ] {
        assert!(error.message.contains(name), "{error}");
    }
}

#[test]
fn bounded_staleness_needs_its_bound_and_the_bound_needs_it() {
    let process = read(&[
        ("PAGEWIRE_CONSISTENCY", "bounded"),
        ("PAGEWIRE_MAX_STALENESS_MS", "500"),
        ("PAGEWIRE_SUBSCRIBE", "never"),
    ])
    .unwrap();
    assert_eq!(
        process.consistency,
        Consistency::Bounded(Duration::from_millis(500))
    );
    assert_eq!(process.subscribe, SubscribeWhen::Never);
    let uri = |process: &ProcessSettings, pairs: &[(&str, &str)]| {
        let get = |key: &str| {
            let pair = pairs.iter().find(|(known, _)| *known == key);
            pair.map(|(_, value)| (*value).to_owned())
        };
        ConnectionSettings::new(process, "t.db", get, false, true)
    };
    let strict = uri(&process, &[("consistency", "strict")]).unwrap();
    assert_eq!(strict.consistency, Consistency::Strict);
    let other = uri(&process, &[("max_staleness_ms", "7")]).unwrap();
    assert_eq!(
        other.consistency,
        Consistency::Bounded(Duration::from_millis(7))
    );
    let plain = read(&[]).unwrap();
    for wrong in [
        &[("consistency", "bounded")][..],
        &[("max_staleness_ms", "7")],
        &[("max_staleness_ms", "0"), ("consistency", "bounded")],
        &[("consistency", "eventual")],
        &[("subscribe", "sometimes")],
        &[("at", "yesterday: 5 o'clock\n")],
    ] {
        let error = uri(&plain, wrong).unwrap_err();
        assert!(error.message.contains(wrong[0].0), "{wrong:?}: {error}");
    }
}

#[test]
fn a_connection_that_looks_at_a_moment_is_read_only() {
    let get = |key: &str| (key == "at").then(|| "17".to_owned());
    let settings = ConnectionSettings::new(&read(&[]).unwrap(), "t.db", get, false, true).unwrap();
    assert!(settings.read_only);
    assert_eq!(
        settings.at,
        Some(Moment::Version(pagewire_proto::Version::new(17)))
    );
}

#[test]
fn the_uri_overrides_the_environment() {
    let process = read(&[("PAGEWIRE_ENDPOINT", "http://a:1")]).unwrap();
    let settings = ConnectionSettings::new(
        &process,
        "t/x.db",
        |key| (key == "endpoint").then(|| "unix:/tmp/s".to_owned()),
        false,
        true,
    )
    .unwrap();
    assert_eq!(settings.endpoint.as_str(), "unix:/tmp/s");
    assert!(ConnectionSettings::new(&process, "/x", |_| None, false, true).is_err());
    assert!(
        ConnectionSettings::new(
            &process,
            "x",
            |key| (key == "endpoint").then(|| "x".into()),
            false,
            true
        )
        .is_err()
    );
}

#[test]
fn the_directory_of_the_disk_cache_is_an_absolute_path_or_none() {
    let process = read(&[
        ("PAGEWIRE_CACHE_DIR", "/var/cache/app"),
        ("PAGEWIRE_CACHE_DIR_BYTES", "16777216"),
    ])
    .unwrap();
    let disk = |process: &ProcessSettings, given: Option<&str>| {
        let get = |key: &str| given.filter(|_| key == "cache_dir").map(str::to_owned);
        ConnectionSettings::new(process, "t.db", get, false, true).map(|settings| settings.disk)
    };
    let at = |path: &str, bytes| {
        let directory = PathBuf::from(path);
        Some(DiskSettings { directory, bytes })
    };
    assert_eq!(
        disk(&process, None).unwrap(),
        at("/var/cache/app", 16 << 20)
    );
    assert_eq!(
        disk(&process, Some("/other")).unwrap(),
        at("/other", 16 << 20)
    );
    assert_eq!(disk(&process, Some("")).unwrap(), None);
    assert!(disk(&process, Some("other")).is_err());
    let plain = read(&[("PAGEWIRE_CACHE_DIR", "")]).unwrap();
    assert_eq!(disk(&plain, None).unwrap(), None);
    assert_eq!(disk(&plain, Some("/one")).unwrap(), at("/one", 4 << 30));
    for (name, text) in [
        ("PAGEWIRE_CACHE_DIR", "cache"),
        ("PAGEWIRE_CACHE_DIR_BYTES", "1000000"),
        ("PAGEWIRE_CACHE_DIR_BYTES", "4 GiB"),
    ] {
        let error = read(&[(name, text)]).unwrap_err();
        assert!(error.message.contains(name), "{error}");
    }
}
