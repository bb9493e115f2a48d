//! Reading a request body whole, under three bounds: its own size, all bodies together, and time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::timeout;

use super::rejection::Rejection;
use crate::config::Limits;

/// Bytes of all buffered bodies together.
#[derive(Debug)]
pub struct BodyBudget {
    held: AtomicU64,
    limit: AtomicU64,
    shown: Gauge,
}

impl BodyBudget {
    /// Nothing held; `shown` follows what is.
    pub fn new(limit: u64, shown: Gauge) -> Self {
        Self { held: AtomicU64::new(0), limit: AtomicU64::new(limit), shown }
    }

    /// Another bound; bodies already held stay.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Relaxed);
    }

    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    fn has_room_for(&self, bytes: u64) -> bool {
        self.held().saturating_add(bytes) <= self.limit.load(Relaxed)
    }
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
struct Share {
    budget: Arc<BodyBudget>,
    bytes: u64,
}

impl Share {
    fn grow(&mut self, bytes: u64) -> Result<(), Rejection> {
        let budget = &self.budget;
        let fits = |held: u64| held.checked_add(bytes).filter(|held| *held <= budget.limit.load(Relaxed));
        budget.held.fetch_update(Relaxed, Relaxed, fits).map_err(|_| Rejection::BuffersFull)?;
        self.bytes += bytes;
        budget.shown.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Relaxed);
        self.budget.shown.dec_by(i64::try_from(self.bytes).unwrap_or(i64::MAX));
    }
}

/// A body and its share of the budget.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _share: Share,
}

/// Reads `body` to its end.
pub(super) async fn read(
    body: Incoming,
    limits: &Limits,
    within: Duration,
    budget: &Arc<BodyBudget>,
) -> Result<Held, Rejection> {
    let limit = limits.body.0;
    let announced = body.size_hint().exact();
    if announced.is_some_and(|bytes| bytes > limit) {
        return Err(Rejection::TooLarge { limit });
    }
    if !budget.has_room_for(announced.unwrap_or(0)) {
        return Err(Rejection::BuffersFull);
    }
    // What is announced is looked at, not held: else a few clients that announce much and send nothing would keep
    // everybody else out.
    let mut share = Share { budget: Arc::clone(budget), bytes: 0 };
    timeout(within, collect(body, &mut share, limit))
        .await
        .map_err(|_| Rejection::BodyTimeout)?
        .map(|bytes| Held { bytes, _share: share })
}

async fn collect(mut body: Incoming, share: &mut Share, limit: u64) -> Result<Bytes, Rejection> {
    let mut first: Option<Bytes> = None;
    let mut more = BytesMut::new();
    let mut total = 0_u64;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Rejection::BodyBroken)?.into_data() else {
            continue;
        };
        total += data.len() as u64;
        if total > limit {
            return Err(Rejection::TooLarge { limit });
        }
        if total > share.bytes {
            share.grow(total - share.bytes)?;
        }
        // One piece, as most bodies are, is kept as it came.
        match first.take() {
            None if more.is_empty() => first = Some(data),
            Some(one) => {
                more.extend_from_slice(&one);
                more.extend_from_slice(&data);
            }
            None => more.extend_from_slice(&data),
        }
    }
    Ok(first.unwrap_or_else(|| more.freeze()))
}
