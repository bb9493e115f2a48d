//! Pages of metrics.

#[path = "../../src/scrape/engines/mod.rs"]
mod engines;
#[path = "../../src/scrape/exposition.rs"]
mod exposition;

/// As the gateway's.
pub fn read_page(engine: &crate::config::Engine, page: &[u8]) -> Option<crate::fleet::Reading> {
    engines::read(engine, page)
}
