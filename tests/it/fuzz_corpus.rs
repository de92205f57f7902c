//! The kept corpus of the fuzz targets (`proto/fuzz`), and inputs near to it: a bounded form of what libFuzzer does, on any compiler.
//! `SEED` repeats a run, `PAGEWIRE_TEST_FUZZ_INPUTS` says how many inputs are made for a target.

use std::path::Path;

use pagewire_tests::random::Random;

#[path = "../../proto/fuzz/src/targets/mod.rs"]
mod targets;

#[path = "../../proto/fuzz/src/rows.rs"]
mod rows;

/// Inputs near to the corpus of a target: a second or two, without optimization.
const INPUTS: u64 = 4000;
/// Of the target `server`, each of which starts one.
const SERVERS: u64 = 60;

/// The file with some of its bytes changed, taken away, doubled, or taken from another file.
fn near(file: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = file.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        let end = (at + random.below(9) as usize).min(bytes.len());
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.splice(at..at, bytes[at..end].to_vec()).for_each(drop),
            3 => {
                let from = random.below(other.len() as u64 + 1) as usize;
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            4 => {
                let edge = [0, 1, 0x7f, 0x80, 0xff][random.below(5) as usize];
                bytes[at..end].fill(edge);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
    bytes
}

fn holds(name: &str, target: fn(&[u8]), inputs: u64) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/fuzz/corpus");
    #[expect(clippy::disallowed_methods, reason = "how long the test may take")]
    let inputs = std::env::var("PAGEWIRE_TEST_FUZZ_INPUTS")
        .map_or(inputs, |count| count.parse().expect("a number"));
    let mut random = Random::start();
    let mut files: Vec<_> = std::fs::read_dir(folder.join(name))
        .unwrap_or_else(|error| panic!("no corpus of {name}: {error}"))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    let contents: Vec<_> = files
        .iter()
        .map(|path| std::fs::read(path).expect("a file"))
        .collect();
    assert!(!contents.is_empty(), "no corpus of {name}");
    for (path, content) in files.iter().zip(&contents) {
        println!("{}", path.display());
        target(content);
    }
    for _ in 0..inputs {
        let [file, other] = [0; 2].map(|_| random.below(contents.len() as u64) as usize);
        let input = near(&contents[file], &contents[other], &mut random);
        let held = std::panic::catch_unwind(|| target(&input));
        assert!(held.is_ok(), "{name} does not hold for {input:02x?}");
    }
}

/// A test for each target, and none without one.
macro_rules! targets {
    ($($name:ident: $inputs:expr;)*) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name), targets::$name, $inputs);
        })*

        #[test]
        fn every_target_has_a_test() {
            assert_eq!(targets::TARGETS, [$(stringify!($name)),*]);
        }
    };
}

targets! {
    cache_file: INPUTS;
    codec: INPUTS;
    commit: INPUTS;
    database_header: INPUTS;
    history: INPUTS;
    lease_grant: INPUTS;
    name: INPUTS;
    page: INPUTS / 20;
    prefetch: INPUTS;
    resolve_commit: INPUTS;
    server: SERVERS;
    session: INPUTS;
    settings: INPUTS;
    stored: 5 * INPUTS;
    tree_page: INPUTS;
}

/// Each decoder of each store gets something that a store has written, of today and as it is in the corpus.
#[test]
fn what_stores_write_today_is_what_the_target_stored_begins_with() {
    let inputs = rows::all();
    inputs.values().for_each(|input| targets::stored(input));
    let mut missing = Vec::new();
    for (name, decoders) in targets::STORES {
        for (decoder, _) in decoders {
            let prefix = format!("{name}-{}-", decoder.replace(' ', "_"));
            if !inputs.keys().any(|input| input.starts_with(&prefix)) {
                missing.push(prefix);
            }
        }
    }
    assert_eq!(missing, [""; 0]);
}
