//! The rooms that read what strangers write, and nothing else of the gateway: built with every branch counted, its whole
//! tree of crates would take half an hour.

#[path = "../../src/config/mod.rs"]
pub mod config;
pub mod edge;
pub mod fleet;
#[path = "../../src/openai/mod.rs"]
pub mod openai;
pub mod scrape;
pub mod upstream;
