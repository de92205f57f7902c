//! A slot, a change log or a header of the disk cache, as anybody may have left it on the disk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagewire::fuzzing::disk_cache;

fuzz_target!(|bytes: &[u8]| disk_cache::read(bytes));
