//! Counts on their way to a file and back: what was used, not who is open.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Counts, Moment, Scope, State, Tab,
    bucket::Bucket,
    scope::{Meters, rates},
    window::Window,
};
use crate::config::{Money, Quota};

/// The version of what is written: another one is not read.
const VERSION: u32 = 1;

/// All counts at one time.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    version: u32,
    /// When, in milliseconds since 1970.
    at_ms: u64,
    scopes: Vec<SavedScope>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedScope {
    scope: String,
    name: String,
    /// What is in each bucket, and how much leaves it in a minute.
    rates: [(f64, u64); 4],
    /// The day and what was spent in it, in billionths.
    day: (u64, u64),
    month: (u64, u64),
}

impl Counts {
    /// What is worth keeping.
    pub fn saved(&self, now: &Moment) -> Saved {
        let mut scopes = Vec::new();
        for tab in self.all() {
            let mut state = tab.lock();
            let quota = Arc::clone(&state.quota);
            state.meters.flow(&quota, now);
            let Meters { rates: buckets, day, month, .. } = &state.meters;
            let mut kept = [(0.0, 0); 4];
            for ((kept, bucket), (_, size)) in kept.iter_mut().zip(buckets).zip(rates(&quota)) {
                *kept = (bucket.level(), size.unwrap_or(0));
            }
            let nothing = kept.iter().all(|(level, _)| *level <= 0.0) && day.spent.0 == 0 && month.spent.0 == 0;
            if !nothing {
                scopes.push(SavedScope {
                    scope: tab.scope.kind().to_owned(),
                    name: tab.scope.name().to_owned(),
                    rates: kept,
                    day: (day.index, day.spent.0),
                    month: (month.index, month.spent.0),
                });
            }
        }
        let at_ms = u64::try_from(now.unix.as_millis()).unwrap_or(u64::MAX);
        Saved { version: VERSION, at_ms, scopes }
    }

    /// Counts that go on from `saved`; what has leaked or begun anew since has.
    ///
    /// # Errors
    /// If another version wrote it.
    pub fn restored(saved: Saved, now: &Moment) -> Result<Self, String> {
        if saved.version != VERSION {
            return Err(format!("it has version {}, and this program reads {VERSION}", saved.version));
        }
        let counts = Self::default();
        let ago = now.unix.saturating_sub(Duration::from_millis(saved.at_ms));
        for it in saved.scopes.into_iter().take(counts.most) {
            let Some(scope) = Scope::of(&it.scope, &it.name) else { continue };
            let window = |(index, spent)| Window { index, spent: Money(spent) };
            let meters = Meters {
                rates: it.rates.map(|(level, limit)| Bucket::kept(level, limit, (ago, now.at))),
                open: 0,
                day: window(it.day),
                month: window(it.month),
            };
            // What is limited now the next request says; until then it leaks as before.
            let [requests, tokens, input, output] = it.rates.map(|(_, limit)| Some(limit).filter(|limit| *limit > 0));
            let quota = Quota {
                requests_per_minute: requests,
                tokens_per_minute: tokens,
                input_tokens_per_minute: input,
                output_tokens_per_minute: output,
                ..Quota::default()
            };
            let state = State { meters, quota: Arc::new(quota), named: false };
            counts.scopes.insert(scope.clone(), Arc::new(Tab { scope, state: Mutex::new(state) }));
        }
        Ok(counts)
    }
}
