//! What callers have used up, as JSON: the scopes closest to a limit first, and no more of them than a person reads.

use axum::{Json, extract::State};
use serde::Serialize;

use super::Office;
use crate::{
    admission::{Limit, Scope},
    config::{Money, Quota},
    gateway::moment,
};

/// How many scopes are shown.
const SHOWN: usize = 200;

/// All that is counted.
#[derive(Debug, Serialize)]
pub(super) struct Seen {
    /// How many scopes there are.
    scopes: usize,
    /// Those closest to a limit.
    closest: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct Shown {
    scope: &'static str,
    name: String,
    enforced: bool,
    /// The share of its tightest limit that is used.
    share: f64,
    limits: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    limit: &'static str,
    used: f64,
    of: f64,
}

pub(super) async fn quotas(State(office): State<Office>) -> Json<Seen> {
    let counts = &office.house.counts;
    let mut all = Vec::new();
    counts.each(&moment(), |scope, _, quota, used| all.push(shown(scope, quota, used)));
    all.sort_by(|one, other| other.share.total_cmp(&one.share));
    let scopes = all.len();
    all.truncate(SHOWN);
    Json(Seen { scopes, closest: all })
}

fn shown(scope: &Scope, quota: &Quota, used: &[(Limit, f64, u64)]) -> Shown {
    let line = |(limit, used, of): &(Limit, f64, u64)| {
        let scale = if limit.is_budget() { Money(1).amount() } else { 1.0 };
        Line { limit: limit.name(), used: used * scale, of: *of as f64 * scale }
    };
    let limits: Vec<Line> = used.iter().map(line).collect();
    let share = limits.iter().map(|line| line.used / line.of.max(f64::MIN_POSITIVE)).fold(0.0, f64::max);
    Shown { scope: scope.kind(), name: scope.name().to_owned(), enforced: quota.enforce, share: share.min(1e6), limits }
}
