//! Reading a request body whole, under three bounds: its own size, all bodies together, and time.
//!
//! A body carries its share of the budget with it: the last of its clones to go, be it a retry's or the one that the
//! connection to the pod still writes from, gives the share back. What answers hold back counts in the same budget.
//!
//! Of what all may hold together one tenant that is known has no more than a part: with slow connections one could hold all
//! of it otherwise, and nobody else's body would be read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use dashmap::DashMap;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::timeout;

use super::rejection::Rejection;
use crate::config::Limits;

/// One tenant's bodies have at most one in so many bytes of those that all may have: where two come, each can.
const TENANT_SHARE: u64 = 2;

/// Bytes of all buffered bodies together.
#[derive(Debug)]
pub struct BodyBudget {
    held: AtomicU64,
    /// Of each tenant that is known and holds any.
    tenants: DashMap<Arc<str>, u64>,
    limit: AtomicU64,
    shown: Gauge,
}

impl BodyBudget {
    /// Nothing held; `shown` follows what is.
    pub fn new(limit: u64, shown: Gauge) -> Self {
        Self { held: AtomicU64::new(0), tenants: DashMap::new(), limit: AtomicU64::new(limit), shown }
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

    /// A share that holds nothing yet.
    pub(super) fn share(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), bytes: 0, tenant: None }
    }

    /// Whether there is room for so many more of a tenant's bytes; they are counted then.
    fn take_for(&self, tenant: &Arc<str>, more: u64) -> bool {
        let mut held = self.tenants.entry(Arc::clone(tenant)).or_default();
        let fits = held.saturating_add(more) <= self.limit.load(Relaxed) / TENANT_SHARE;
        if fits {
            *held += more;
        }
        fits
    }

    fn give_back_for(&self, tenant: &Arc<str>, less: u64) {
        self.tenants.entry(Arc::clone(tenant)).and_modify(|held| *held = held.saturating_sub(less));
        self.tenants.remove_if(tenant, |_, held| *held == 0);
    }

    /// `bytes` with their share, if there is room for them.
    pub(super) fn keep(self: &Arc<Self>, bytes: Bytes) -> Result<Bytes, Rejection> {
        let mut share = self.share();
        if share.hold(bytes.len() as u64) { Ok(share.with(bytes)) } else { Err(Rejection::BuffersFull) }
    }
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<BodyBudget>,
    bytes: u64,
    /// Whose it is, if that is known.
    tenant: Option<Arc<str>>,
}

impl Share {
    /// The same, `tenant`'s.
    fn of(mut self, tenant: Option<Arc<str>>) -> Self {
        self.tenant = tenant;
        self
    }

    /// Holds so many bytes from now on. `false` if there is no room for them: then it holds what it held.
    pub(super) fn hold(&mut self, bytes: u64) -> bool {
        let budget = &self.budget;
        if let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) {
            if self.tenant.as_ref().is_some_and(|tenant| !budget.take_for(tenant, more)) {
                return false;
            }
            let fits = |held: u64| held.checked_add(more).filter(|held| *held <= budget.limit.load(Relaxed));
            if budget.held.fetch_update(Relaxed, Relaxed, fits).is_err() {
                if let Some(tenant) = &self.tenant {
                    budget.give_back_for(tenant, more);
                }
                return false;
            }
            budget.shown.inc_by(i64::try_from(more).unwrap_or(i64::MAX));
        } else if bytes < self.bytes {
            let less = self.bytes - bytes;
            if let Some(tenant) = &self.tenant {
                budget.give_back_for(tenant, less);
            }
            budget.held.fetch_sub(less, Relaxed);
            budget.shown.dec_by(i64::try_from(less).unwrap_or(i64::MAX));
        }
        self.bytes = bytes;
        true
    }

    /// `bytes`, with which the share goes when the last clone of them does.
    fn with(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Held { bytes, _share: self })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.hold(0);
    }
}

/// A body and its share of the budget.
struct Held {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads `body`, which is `tenant`'s if that is known, to its end.
pub(super) async fn read(
    body: Incoming,
    limits: &Limits,
    within: Duration,
    (budget, tenant): (&Arc<BodyBudget>, Option<Arc<str>>),
) -> Result<Bytes, Rejection> {
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
    let mut share = budget.share().of(tenant);
    let bytes = timeout(within, collect(body, &mut share, limit)).await.map_err(|_| Rejection::BodyTimeout)??;
    Ok(share.with(bytes))
}

async fn collect(mut body: Incoming, share: &mut Share, limit: u64) -> Result<Bytes, Rejection> {
    let announced = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
    let mut first: Option<Bytes> = None;
    let mut more: Vec<u8> = Vec::new();
    let mut total = 0_u64;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Rejection::BodyBroken)?.into_data() else {
            continue;
        };
        total += data.len() as u64;
        if total > limit {
            return Err(Rejection::TooLarge { limit });
        }
        if !share.hold(total) {
            return Err(Rejection::BuffersFull);
        }
        // One piece, as most bodies are, is kept as it came.
        match first.take() {
            None if more.is_empty() => first = Some(data),
            Some(one) => {
                // As large as it will be and no larger: what is counted is what is taken. Memory that is never
                // written to costs nothing, so an empty promise does not either.
                more.reserve_exact(announced.max(one.len() + data.len()));
                more.extend_from_slice(&one);
                more.extend_from_slice(&data);
            }
            None => more.extend_from_slice(&data),
        }
    }
    Ok(first.unwrap_or_else(|| more.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_follows_what_is_held_and_never_beyond_the_limit() {
        let budget = Arc::new(BodyBudget::new(100, Gauge::default()));
        let (mut one, mut two) = (budget.share(), budget.share());
        assert!(one.hold(60) && two.hold(40));
        assert!(!one.hold(61), "full");
        assert!(two.hold(10) && one.hold(90));
        assert_eq!((budget.held(), budget.shown.get()), (100, 100));
        drop(two);
        assert_eq!((budget.held(), budget.shown.get()), (90, 90));
        drop(one);
        assert_eq!((budget.held(), budget.shown.get()), (0, 0));
    }

    #[test]
    fn one_tenant_holds_no_more_than_half_of_what_all_may() {
        let budget = Arc::new(BodyBudget::new(100, Gauge::default()));
        let share = |tenant: &str| budget.share().of(Some(tenant.into()));
        let (mut one, mut more, mut other) = (share("one"), share("one"), share("other"));
        assert!(one.hold(30) && more.hold(20));
        assert!(!more.hold(21), "half of all");
        assert!(other.hold(50) && !other.hold(51), "and the other half is another's");
        assert!(one.hold(10) && !budget.share().hold(21), "all together as before");
        drop((one, more));
        assert!(share("one").hold(50));
        drop(other);
        assert_eq!((budget.held(), budget.tenants.len()), (0, 0), "nobody is remembered who holds nothing");
    }

    #[test]
    fn a_body_gives_its_share_back_when_its_last_clone_goes() {
        let budget = Arc::new(BodyBudget::new(10, Gauge::default()));
        let body = budget.keep(Bytes::from_static(b"12345678")).unwrap();
        let part = body.slice(2..3);
        drop(body);
        assert_eq!(budget.held(), 8, "a part of it is in use");
        assert!(budget.keep(Bytes::from_static(b"123")).is_err());
        drop(part);
        assert_eq!(budget.held(), 0);
    }
}
