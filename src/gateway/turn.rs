//! Whether a request has to wait for its turn, and what it brings to the line: what it costs, whose turn it takes, and
//! when it will be too late for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderMap;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    House,
    decide::{Matter, Pick, Wishes},
    proxy::headers::{PRIORITY, SLO_TTFT},
    reading::Reading,
    waiting::{Among, Asked, Evictable, Few, Waiting},
};
use crate::{
    config,
    fleet::{Pod, PoolState, Room},
    prefix::BLOCK_BYTES,
};

/// How long the official SDKs wait for the next byte, seconds; they send it with each request.
const READ_TIMEOUT: &str = "x-stainless-read-timeout";

/// Tells those who wait when a request leaves its pod, or its prompt stands in nobody's way there any more.
#[derive(Clone, Debug)]
pub struct Bell {
    waiting: Arc<Waiting>,
    pool: Arc<str>,
}

impl Bell {
    /// For a request on a pod of `pool`.
    pub(super) fn new(waiting: &Arc<Waiting>, pool: &PoolState) -> Self {
        Self { waiting: Arc::clone(waiting), pool: Arc::clone(pool.name()) }
    }

    /// There may be room at the pod.
    pub(super) fn ring(&self) {
        self.waiting.room_may_be(&self.pool);
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.ring();
    }
}

impl Pick {
    /// `tokens` more of its answer came; with the first, its prompt stands in nobody's way any more.
    pub(super) fn tokens(&mut self, tokens: u32, now: Instant) {
        if self.course.tokens(tokens, now) {
            self.bell.ring();
        }
    }

    /// Its prompt is taken to be in nobody's way any more, though no token was seen.
    pub(super) fn first_token(&mut self) {
        self.course.first_token();
        self.bell.ring();
    }
}

impl Reading {
    /// Lets it be ended for somebody who matters more, if it is a stream that may be shed.
    pub(super) fn evictable(&self) -> Option<Evictable> {
        let matter = self.matter.as_ref().filter(|matter| matter.priority.is_sheddable() && !self.is_whole())?;
        Some(self.house.waiting.may_end(&matter.pool))
    }
}

impl<'a> Wishes<'a> {
    /// What `headers` say of when it is too late, and, if they are `trusted`, of whose turn a request takes and how much it
    /// matters.
    pub(super) fn hear_urgency(&mut self, headers: &'a HeaderMap, trusted: bool) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        self.patience = text(READ_TIMEOUT).and_then(|text| seconds(text, 1.0));
        if trusted {
            let first = |names: [&str; 2]| names.into_iter().find_map(text).filter(|it| !it.is_empty());
            self.first_token_within = first(SLO_TTFT).and_then(|text| seconds(text, 1e-3));
            self.priority = text(PRIORITY).and_then(|text| text.parse().ok());
        }
    }
}

/// A span of time in a `unit` of so many seconds; nothing if it is none.
fn seconds(text: &str, unit: f64) -> Option<Duration> {
    let number: f64 = text.parse().ok().filter(|number| *number > 0.0)?;
    Duration::try_from_secs_f64(number * unit).ok()
}

impl Matter {
    /// When it is too late for it to go to a pod, if it says so: for its first token to come in time, its own prompt has to
    /// be computed as well, behind as much as a pod that is not full may have.
    pub(super) fn set_deadline(&mut self, wishes: &Wishes<'_>, now: Instant) {
        let spare = wishes.first_token_within.map(|within| self.spare(within));
        self.says_when = spare.is_some();
        let spare = spare.into_iter().chain(wishes.patience).min();
        self.deadline = spare.and_then(|spare| now.checked_add(spare));
    }

    /// For how long it may stand in line for its first token to come `within` that time.
    fn spare(&self, within: Duration) -> Duration {
        self.pool.spare(within, self.uncached_tokens())
    }

    /// What it brings to the line, under these `limits`.
    pub(super) fn asked(&self, limits: &config::Waiting) -> Asked {
        let promised = limits.first_token.filter(|_| !self.says_when).map(|within| self.spare(within));
        Asked {
            model: Arc::clone(&self.route.served_model),
            few: self.few(),
            tenant: Arc::clone(&self.tenant),
            priority: self.priority.0,
            tokens: self.uncached_tokens().saturating_add(self.expected_output_tokens),
            deadline: self.deadline,
            promised,
        }
    }

    /// Whether the pods that could have it have room.
    pub(super) fn room(&self, now: Instant) -> Room {
        Room::of(&self.pool, &self.pods(), |pod| pod.serves(&self.route.served_model) != Some(false), now)
    }

    /// Whether it has to stand in line before it is sent anywhere: there is no room, or others wait and it may not be the
    /// first. Who may only have few pods does not wait for one of them to be usable: whoever named them says that there is
    /// nothing else.
    pub(super) fn must_wait(&self, house: &House, limits: &config::Waiting, now: Instant) -> bool {
        if limits.timeout.is_zero() || self.pool.is_closed() {
            return false;
        }
        let others = house.waiting.has_line(&self.pool);
        match self.room(now) {
            Room::Yes => others,
            Room::No(_) => true,
            Room::NoPod => others && self.among.is_none(),
        }
    }

    /// Its priority as vLLM counts it, the lower the earlier, if its pods schedule by that; else they would refuse it.
    pub(super) fn vllm_priority(&self) -> Option<i32> {
        self.pool.config().priority_scheduling.then(|| self.priority.0.saturating_neg())
    }

    /// Whether it may wait while its pool is full though it is one that may be refused then: its priority has a share of
    /// what is admitted.
    pub(super) fn has_share(&self, limits: &config::Waiting) -> bool {
        !limits.timeout.is_zero() && limits.shares.iter().any(|share| share.priority == self.priority.0)
    }

    /// Prompt tokens that the pod would compute that holds most of it.
    fn uncached_tokens(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a prompt's tokens fit")]
        let cached = ((self.hits.longest() * BLOCK_BYTES) as f32 / self.pool.bytes_per_token()) as u32;
        self.prompt_tokens.saturating_sub(cached)
    }

    fn few(&self) -> Option<Few> {
        if let Some(pod) = self.pin.as_ref().filter(|pin| self.pool.pods().iter().any(|it| Arc::ptr_eq(it, pin))) {
            let slot = pod.slot;
            let among: Among = Arc::new(move |pod: &Pod| pod.slot == slot);
            return Some(Few { number: xxh3_64(&slot.to_le_bytes()).max(1), among });
        }
        self.among.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_trusted_is_heard_and_patience_is_anybodys() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("x-stainless-read-timeout", "600"), ("x-slo-ttft-ms", "250"), ("x-tidegate-priority", "-7")]
        {
            headers.insert(name, value.parse().unwrap());
        }
        let mut wishes = Wishes::default();
        wishes.hear_urgency(&headers, false);
        assert_eq!((wishes.patience, wishes.first_token_within), (Some(Duration::from_secs(600)), None));
        assert_eq!(wishes.priority, None);
        wishes.hear_urgency(&headers, true);
        assert_eq!(wishes.first_token_within, Some(Duration::from_millis(250)));
        assert_eq!(wishes.priority, Some(-7));
    }

    #[test]
    fn what_is_no_span_of_time_says_nothing() {
        for text in ["", "-1", "0", "nan", "inf", "1e999", "soon"] {
            assert_eq!(seconds(text, 1.0), None, "{text}");
        }
        assert_eq!(seconds("2.5", 1.0), Some(Duration::from_millis(2_500)));
    }
}
