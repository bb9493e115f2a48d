//! Which pod made which response: `/v1/responses/{id}` is known to that pod alone.
//!
//! It is a tenant's own: others do not find it, whatever ids they have got hold of.
//!
//! Ids are kept as hashes, because most are never asked for again: a full memory takes 5 MB, as texts 15 MB. Two ids with
//! one hash would send a client to a pod that does not know its response, and there are too few of them for that.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use dashmap::DashMap;
use xxhash_rust::xxh3::Xxh3;

use crate::fleet::PodId;

/// Responses remembered. Engines keep theirs in memory until they restart; an hour of 18 responses a second is more
/// than clients come back for.
const MAX_RESPONSES: usize = 65_536;

/// Response ids and their pods, oldest forgotten first.
#[derive(Debug, Default)]
pub struct ResponseHomes {
    pods: DashMap<u128, PodId>,
    order: Mutex<VecDeque<u128>>,
}

impl ResponseHomes {
    /// `pod` made response `id` for `tenant`.
    pub fn remember(&self, tenant: &str, id: &str, pod: &PodId) {
        let id = key(tenant, id);
        if self.pods.insert(id, pod.clone()).is_some() {
            return;
        }
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        order.push_back(id);
        if order.len() > MAX_RESPONSES
            && let Some(oldest) = order.pop_front()
        {
            self.pods.remove(&oldest);
        }
    }

    /// Who made response `id` for `tenant`.
    pub fn find(&self, tenant: &str, id: &str) -> Option<PodId> {
        self.pods.get(&key(tenant, id)).map(|pod| pod.clone())
    }
}

/// Control characters are in no tenant's name, so that no two pairs read the same.
fn key(tenant: &str, id: &str) -> u128 {
    let mut hasher = Xxh3::new();
    for part in [tenant, "\0", id] {
        hasher.update(part.as_bytes());
    }
    hasher.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_response_is_forgotten_when_the_memory_is_full() {
        let (homes, pod) = (ResponseHomes::default(), PodId::new("pool", "10.0.0.1:8000"));
        for i in 0..=MAX_RESPONSES {
            homes.remember("t", &format!("resp_{i}"), &pod);
        }
        assert_eq!(homes.find("t", "resp_0"), None);
        assert_eq!(homes.find("t", "resp_1"), Some(pod));
        assert_eq!((homes.find("u", "resp_1"), homes.find("tr", "esp_1")), (None, None), "others have none of it");
        assert_eq!(homes.pods.len(), MAX_RESPONSES);
    }
}
