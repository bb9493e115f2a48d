//! What `/v1/models` says, and when it is asked.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::Rng;
use serde::Deserialize;

use super::rhythm::jittered;
use crate::fleet::ReportedModel;

/// How often a pod is asked: adapters are loaded by hand or by a rollout, and a request for one may wait this long to
/// be known.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// How soon again if it could not be asked.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// How soon again if what it serves is doubted, however often that is.
const DOUBTED_AFTER: Duration = Duration::from_secs(1);

/// When one pod's models are asked for.
#[derive(Debug)]
pub(super) struct ModelsTurn {
    due: Instant,
    asked: Option<Instant>,
    out: bool,
}

impl ModelsTurn {
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now, asked: None, out: false }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.out && now >= self.due
    }

    /// The pod has just become usable: what it serves may have changed.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.due = now;
    }

    /// What it serves is not what it said it does.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.due = self.due.min(self.asked.map_or(now, |asked| asked + DOUBTED_AFTER));
    }

    pub(super) fn left(&mut self, now: Instant, rng: &mut impl Rng) {
        self.due = now + jittered(ASK_EVERY, rng);
        self.asked = Some(now);
        self.out = true;
    }

    pub(super) fn returned(&mut self, answered: bool, now: Instant, rng: &mut impl Rng) {
        self.out = false;
        if !answered {
            self.due = self.due.min(now + jittered(RETRY_AFTER, rng));
        }
    }
}

#[derive(Deserialize)]
struct List {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    id: Arc<str>,
    #[serde(default)]
    parent: Option<Arc<str>>,
}

/// The models in the body of `/v1/models`; `None` if it is no such list.
pub(super) fn parse(body: &[u8]) -> Option<Vec<ReportedModel>> {
    let list: List = serde_json::from_slice(body).ok()?;
    let models = list.data.into_iter().map(|entry| ReportedModel { name: entry.id, parent: entry.parent });
    Some(models.collect())
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn adapters_carry_their_base_and_unknown_fields_do_no_harm() {
        let body = br#"{"object":"list","data":[
            {"id":"tiny","object":"model","parent":null,"permission":[{"id":"x"}]},
            {"id":"ad0","root":"/adapters/0","parent":"tiny"},
            {"id":"plain"}]}"#;
        let model =
            |name: &str, parent: Option<&str>| ReportedModel { name: name.into(), parent: parent.map(Arc::from) };
        let expected = vec![model("tiny", None), model("ad0", Some("tiny")), model("plain", None)];
        assert_eq!(parse(body), Some(expected));
        assert_eq!(parse(br#"{"detail":"Not Found"}"#), None);
    }

    #[test]
    fn a_doubt_is_looked_into_after_a_second_and_a_hundred_are_one() {
        let now = crate::clock::now();
        let mut rng = StdRng::seed_from_u64(7);
        let mut turn = ModelsTurn::new(now);
        turn.left(now, &mut rng);
        turn.returned(true, now, &mut rng);
        (0..100).for_each(|_| turn.doubt(now + Duration::from_millis(10)));
        assert!(!turn.is_due(now + Duration::from_millis(999)));
        assert!(turn.is_due(now + DOUBTED_AFTER));
    }

    #[test]
    fn models_are_asked_every_ten_seconds_sooner_after_a_failure_and_at_once_in_a_hurry() {
        let now = crate::clock::now();
        let mut rng = StdRng::seed_from_u64(7);
        let mut turn = ModelsTurn::new(now);
        assert!(turn.is_due(now));
        turn.left(now, &mut rng);
        assert!(!turn.is_due(now + ASK_EVERY * 2), "one is still out");
        turn.returned(true, now, &mut rng);
        assert!(!turn.is_due(now + Duration::from_secs(8)));
        assert!(turn.is_due(now + Duration::from_secs(11)));
        turn.returned(false, now, &mut rng);
        assert!(turn.is_due(now + Duration::from_millis(2_201)));
        turn.left(now, &mut rng);
        turn.returned(true, now, &mut rng);
        turn.hurry(now);
        assert!(turn.is_due(now));
    }
}
