//! A configuration file: understood, or every problem told with a place in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::config;

fuzz_target!(|text: &str| {
    match config::load("fuzz.yaml", text) {
        Ok(_) => {}
        Err(report) => assert!(!report.to_string().is_empty()),
    }
    config::parse_endpoints("fuzz.yaml", text).map_err(|report| report.to_string()).ok();
});
