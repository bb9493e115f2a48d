//! Which configuration is in force, and how the last reload went: what `/debug/config` shows.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{Json, extract::State};
use serde::Serialize;

use super::Office;

/// Written by whoever reloads.
#[derive(Debug, Default)]
pub struct ConfigRecord(Mutex<InForce>);

/// The configuration in force.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct InForce {
    /// How many there have been, this one included.
    generation: u64,
    /// The hash of its text.
    hash: String,
    /// The file it came from, if it came from one.
    file: Option<PathBuf>,
    /// When, in seconds since 1970.
    since: u64,
    /// The last reload; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_reload: Option<LastReload>,
}

/// How a reload went.
#[derive(Clone, Debug, Serialize)]
struct LastReload {
    /// `applied`, `invalid` or `needs_restart`.
    outcome: &'static str,
    /// When, in seconds since 1970.
    at: u64,
    /// What it changed, key by key.
    changes: Vec<String>,
    /// Why it was not applied, and the warnings.
    problems: Vec<String>,
}

impl ConfigRecord {
    /// The gateway began with this one.
    pub fn began(&self, file: Option<&Path>, hash: String, now: SystemTime) {
        *self.seen() =
            InForce { generation: 1, hash, file: file.map(Into::into), since: seconds(now), last_reload: None };
    }

    /// Another one is in force. Returns its generation.
    pub fn applied(&self, hash: String, changes: Vec<String>, problems: Vec<String>, now: SystemTime) -> u64 {
        let (at, mut seen) = (seconds(now), self.seen());
        if seen.hash != hash {
            seen.generation += 1;
            seen.since = at;
        }
        seen.hash = hash;
        seen.last_reload = Some(LastReload { outcome: "applied", at, changes, problems });
        seen.generation
    }

    /// A reload was refused: the one before is still in force.
    pub fn refused(&self, outcome: &'static str, problems: Vec<String>, now: SystemTime) {
        let last = LastReload { outcome, at: seconds(now), changes: Vec::new(), problems };
        self.seen().last_reload = Some(last);
    }

    fn seen(&self) -> MutexGuard<'_, InForce> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

pub(super) async fn config(State(office): State<Office>) -> Json<InForce> {
    Json(office.config.seen().clone())
}
