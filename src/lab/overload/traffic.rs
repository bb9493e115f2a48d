//! Crowds: the same requests, asked by clients who differ in how much they matter, in whose they are, in how long they stay.
//!
//! A crowd is painted over a workload's script, so that whoever is left out of it (to be seen alone) leaves the others'
//! times and lengths as they were.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::lab::script::{Client, Script};

/// What is played.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Crowd {
    /// Half of the requests are critical, half are sheddable; all ask for their first token within the promised time.
    Classes,
    /// All are alike, and ask for their first token within the promised time.
    Hurried,
    /// The same, and nobody says so; who has had nothing for ten seconds goes and comes again, as SDKs do.
    Impatient,
    /// Two tenants, both with more work than the fleet: tenant 0 asks ten times as much as tenant 1.
    Tenants,
    /// Tenant 0 has more work than the fleet, tenant 1 hardly any.
    Light,
}

/// What a critical and a sheddable request say of themselves (`routing::Priority`).
pub(super) const CRITICAL: i32 = 1;
const SHEDDABLE: i32 = -1;

/// Requests of the one tenant for each of the other's, both backlogged.
pub(super) const TIMES: f64 = 10.0;

/// The light tenant's part of what the fleet can carry.
pub(super) const LIGHT: f64 = 0.05;

/// What the heavy tenant asks beside it, in the same terms.
pub(super) const HEAVY: f64 = 1.5;

/// How long clients stay who have had nothing: two thirds of users are gone after ten seconds (Nielsen's limit of attention).
const PATIENCE_MS: f64 = 10_000.0;

/// How often they come again (`max_retries` of the OpenAI SDKs).
const RETRIES: u32 = 2;

impl Crowd {
    /// Makes the requests of `script` this crowd's; the same for the same seed. `wanted_ms` is the promised time to the
    /// first token, `load` what comes, in times of what the fleet can carry.
    pub(in crate::lab) fn paint(self, script: &mut Script, wanted_ms: f64, load: f64, seed: u64) {
        // Other draws than the script's own.
        let mut rng = StdRng::seed_from_u64(!seed);
        for ask in &mut script.asks {
            let drawn: f64 = rng.random();
            let usual = Client::default();
            ask.client = match self {
                Self::Classes => {
                    Client { priority: if drawn < 0.5 { CRITICAL } else { SHEDDABLE }, wanted_ms, ..usual }
                }
                Self::Hurried => Client { wanted_ms, ..usual },
                Self::Impatient => Client { patience_ms: PATIENCE_MS, retries: RETRIES, ..usual },
                Self::Tenants => Client { tenant: u32::from(drawn < 1.0 / (1.0 + TIMES)), ..usual },
                Self::Light => Client { tenant: u32::from(drawn < LIGHT / load), ..usual },
            };
        }
    }
}

/// The script with those alone whose clients are wanted. It must be of requests that follow no other.
pub(super) fn only(script: &Script, wanted: impl Fn(&Client) -> bool) -> Script {
    let asks = script.asks.iter().filter(|ask| wanted(&ask.client) && ask.next.is_none()).cloned().collect();
    Script { asks, until_ms: script.until_ms }
}

/// The script with no more of the heavy tenant's requests than leave the fleet full and not overfull: what the light tenant
/// has beside them is what its neighbour may not take from it, however much that asks. As above, of requests that follow no
/// other.
pub(super) fn modestly(script: &Script, seed: u64) -> Script {
    let mut rng = StdRng::seed_from_u64(seed);
    let kept = (1.0 - LIGHT) / HEAVY;
    let mut stays = |client: &Client| client.tenant == 1 || rng.random::<f64>() < kept;
    let asks = script.asks.iter().filter(|ask| ask.next.is_none() && stays(&ask.client)).cloned().collect();
    Script { asks, until_ms: script.until_ms }
}
