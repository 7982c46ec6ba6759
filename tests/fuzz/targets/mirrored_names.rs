#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| larder::ecosystem::fuzz::mirrored_names(bytes));
