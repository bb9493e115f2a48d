//! Which pod made which response: `/v1/responses/{id}` is known to that pod alone.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use dashmap::DashMap;

use crate::fleet::PodId;

/// Responses remembered. Engines keep theirs in memory until they restart; an hour of 18 responses a second is more
/// than clients come back for.
const MAX_RESPONSES: usize = 65_536;

/// Longest response id remembered, bytes: engines use about 40.
const MAX_ID: usize = 128;

/// Response ids and their pods, oldest forgotten first.
#[derive(Debug, Default)]
pub struct ResponseHomes {
    pods: DashMap<String, PodId>,
    order: Mutex<VecDeque<String>>,
}

impl ResponseHomes {
    /// `pod` made response `id`.
    pub fn remember(&self, id: &str, pod: &PodId) {
        if id.len() > MAX_ID || self.pods.insert(id.to_owned(), pod.clone()).is_some() {
            return;
        }
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        order.push_back(id.to_owned());
        if order.len() > MAX_RESPONSES
            && let Some(oldest) = order.pop_front()
        {
            self.pods.remove(&oldest);
        }
    }

    /// Who made response `id`.
    pub fn find(&self, id: &str) -> Option<PodId> {
        self.pods.get(id).map(|pod| pod.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_response_is_forgotten_when_the_memory_is_full() {
        let (homes, pod) = (ResponseHomes::default(), PodId::new("pool", "10.0.0.1:8000"));
        for i in 0..=MAX_RESPONSES {
            homes.remember(&format!("resp_{i}"), &pod);
        }
        assert_eq!(homes.find("resp_0"), None);
        assert_eq!(homes.find("resp_1"), Some(pod));
        assert_eq!(homes.pods.len(), MAX_RESPONSES);
    }
}
