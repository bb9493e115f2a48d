//! A page of metrics: whatever a pod says of itself, it is read or not, and never upsets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::{config::Engine, scrape::read_page};

fuzz_target!(|page: &[u8]| {
    for engine in [Engine::Auto, Engine::Vllm, Engine::Sglang] {
        read_page(&engine, page);
    }
});
