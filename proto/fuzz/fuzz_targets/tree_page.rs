//! A b-tree or overflow page as a server may send it. The first two bytes say how it is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagewire::fuzzing::btree;

fuzz_target!(|bytes: &[u8]| {
    let Some(([number, reserved], page)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    btree::look_at_everything(u32::from(number % 2) + 1, page, *reserved);
});
