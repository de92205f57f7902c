//! Settings: the first line is a database name, the others KEY=VALUE of environment and URI.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagewire::fuzzing::{ConnectionSettings, ProcessSettings};

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let name = lines.next().unwrap_or_default();
    let pairs: Vec<_> = lines.filter_map(|line| line.split_once('=')).collect();
    let get = |wanted: &str| {
        pairs
            .iter()
            .find(|(key, _)| *key == wanted)
            .map(|(_, value)| (*value).to_owned())
    };
    let process = match ProcessSettings::read(get) {
        Ok(process) => process,
        Err(error) => {
            assert!(error.message.contains("PAGEWIRE_"), "{error}");
            // As if nothing had been set.
            ProcessSettings::read(|_| None).expect("the defaults are right")
        }
    };
    if let Ok(settings) = ConnectionSettings::new(&process, name, get, false, true) {
        assert_eq!(settings.name.as_str(), name);
        assert!(settings.timeout.as_millis() > 0);
        assert!(settings.endpoint.starts_with("http://") || settings.endpoint.starts_with("unix:"));
        assert!(!settings.unlocked || settings.read_only);
    }
});
