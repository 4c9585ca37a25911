#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| warmd_fuzz::report(bytes));
