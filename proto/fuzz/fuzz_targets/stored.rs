//! See `src/targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pagewire_fuzz::targets::stored(bytes));
