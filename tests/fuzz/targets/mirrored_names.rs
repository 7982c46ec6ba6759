#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| larder::accept::mirror::fuzz::mirrored_names(bytes));
