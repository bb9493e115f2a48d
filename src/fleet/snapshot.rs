//! The fleet as one serialisable picture: what `/debug/fleet` shows, and what `explain` can judge from again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    Condition, Ejection, Evidence, Fleet, Pace, Pod, PodLoad, PoolState, Reading, ReportedModel, Reservation, Send,
};
use crate::config::Target;

/// Every pool and pod at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FleetSnapshot {
    /// The pools, by name.
    pub pools: Vec<PoolSnapshot>,
}

/// One pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolSnapshot {
    /// Its name.
    pub name: String,
    /// What its pods have shown together.
    pub pace: Pace,
    /// Learned bytes of request text a token.
    pub bytes_per_token: f32,
    /// Its pods.
    pub pods: Vec<PodSnapshot>,
}

/// One pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodSnapshot {
    /// `pool/host:port`.
    pub id: String,
    /// `https://host:port` plus its base path.
    pub url: String,
    /// May it be used.
    pub condition: Condition,
    /// Why it is ejected, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejection: Option<Ejection>,
    /// For how many milliseconds it still looks slow because it said no; absent if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushback_ms: Option<u64>,
    /// What it last said; absent if it was never read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<Reading>,
    /// How old that is, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Our requests sent since that reading began.
    pub sent_since: u64,
    /// Our requests ended since then.
    pub ended_since: u64,
    /// Our requests there now.
    pub in_flight: u64,
    /// Of those, not yet answered by a first token.
    pub unstarted: u64,
    /// Their prompt tokens believed not cached.
    pub prefill_tokens: u64,
    /// Prompt tokens to be computed that we sent there in the last ten seconds or so.
    #[serde(default)]
    pub inflow_tokens: u32,
    /// Estimated KV-cache tokens our requests hold.
    pub kv_tokens: u64,
    /// Learned speed, its pool's where it has shown nothing.
    pub pace: Pace,
    /// Models it reports; absent if it was never asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<ReportedModel>>,
}

impl FleetSnapshot {
    /// The fleet at `now`.
    pub fn take(fleet: &Fleet, now: Instant) -> Self {
        Self { pools: fleet.pools().map(|pool| PoolSnapshot::take(&pool, now)).collect() }
    }

    /// Puts the picture back into `fleet`, whose pools must be those of the same configuration: afterwards judgement
    /// sees what it saw then. The reservations stand for the requests in flight; keep them while judging.
    pub fn restore(&self, fleet: &Fleet, now: Instant) -> Vec<Reservation> {
        let mut held = Vec::new();
        for saved in &self.pools {
            let Some(pool) = fleet.pool(&saved.name) else { continue };
            let targets: Vec<Target> = saved.pods.iter().filter_map(PodSnapshot::target).collect();
            fleet.set(&saved.name, &targets, now);
            pool.restore(pool.pods().to_vec(), saved.bytes_per_token);
            pool.speed.assume(saved.pace);
            for (pod, saved) in pool.pods().iter().zip(saved.pods.iter().filter(|it| it.target().is_some())) {
                pod.speed.assume(saved.pace, pool.pace());
                saved.restore(pod, now, &mut held);
            }
        }
        held
    }
}

impl PoolSnapshot {
    fn take(pool: &PoolState, now: Instant) -> Self {
        let pace = pool.pace();
        Self {
            name: pool.name().to_string(),
            pace,
            bytes_per_token: pool.bytes_per_token(),
            pods: pool.pods().iter().map(|pod| PodSnapshot::take(pod, pace, now)).collect(),
        }
    }
}

impl PodSnapshot {
    fn take(pod: &Pod, pool: Pace, now: Instant) -> Self {
        let load = pod.load();
        let since = |total: u64, mark: fn(&PodLoad) -> u64| total.saturating_sub(load.as_deref().map_or(0, mark));
        let origin = &pod.target.origin;
        Self {
            id: pod.id.to_string(),
            url: format!("{}://{}{}", origin.scheme(), origin.authority(), pod.target.base_path),
            condition: pod.condition(now),
            ejection: pod.health.ejection(),
            pushback_ms: Some(millis(pod.health.pushback(now))).filter(|ms| *ms > 0),
            reading: load.as_deref().map(|load| load.reading.clone()),
            age_ms: load.as_deref().map(|load| millis(load.age(now))),
            sent_since: since(pod.ledger.sent(), |load| load.sent_mark),
            ended_since: since(pod.ledger.ended(), |load| load.ended_mark),
            in_flight: pod.ledger.in_flight(),
            unstarted: pod.ledger.unstarted(),
            prefill_tokens: pod.ledger.prefill_tokens(),
            inflow_tokens: pod.inflow.of_late(now),
            kv_tokens: pod.ledger.kv_tokens(),
            pace: pod.speed.pace(pool),
            models: pod.models().map(|models| models.to_vec()),
        }
    }

    fn target(&self) -> Option<Target> {
        let url: http::Uri = self.url.parse().ok()?;
        let https = url.scheme_str() == Some("https");
        let host = url.host()?.trim_matches(['[', ']']).to_owned();
        let port = url.port_u16().unwrap_or(if https { 443 } else { 80 });
        let origin = crate::config::Origin { https, host, port };
        let base_path = url.path().trim_end_matches('/').to_owned();
        Some(Target { origin, base_path, token_file: None, metrics_url: None })
    }

    fn restore(&self, pod: &Arc<Pod>, now: Instant, held: &mut Vec<Reservation>) {
        let evidence = match self.condition {
            Condition::Unknown => None,
            Condition::Ready | Condition::Warming => Some(Evidence::ScrapeOk { asleep: false }),
            Condition::Asleep => Some(Evidence::ScrapeOk { asleep: true }),
            Condition::Ejected => self.ejection.is_none().then_some(Evidence::HealthBad),
            Condition::Draining => Some(Evidence::Gone),
        };
        if let Some(evidence) = evidence {
            pod.health.note(evidence, now);
        }
        pod.health.assume(self.ejection, Duration::from_millis(self.pushback_ms.unwrap_or(0)), now);
        pod.inflow.assume(self.inflow_tokens as f32, now);
        if let Some(models) = &self.models {
            pod.store_models(models.clone());
        }
        self.restore_ledger(pod, held);
        if let Some(reading) = &self.reading {
            let age = Duration::from_millis(self.age_ms.unwrap_or(0));
            let marks = (pod.ledger.sent().saturating_sub(self.sent_since), self.ended_since);
            pod.store_load(PodLoad {
                began: now.checked_sub(age).unwrap_or(now),
                sent_mark: marks.0,
                ended_mark: pod.ledger.ended().saturating_sub(marks.1),
                reading: reading.clone(),
            });
        }
    }

    /// Requests in flight again, their tokens spread evenly; and as many that were sent and ended since the reading.
    fn restore_ledger(&self, pod: &Arc<Pod>, held: &mut Vec<Reservation>) {
        for _ in 0..self.ended_since {
            drop(Reservation::new(Arc::clone(pod), Send::default()));
        }
        let part = |total: u64, n: u64, i: u64| {
            u32::try_from(total / n.max(1) + u64::from(i < total % n.max(1))).unwrap_or(u32::MAX)
        };
        for i in 0..self.in_flight {
            let started = i >= self.unstarted;
            let uncached_tokens = if started { 0 } else { part(self.prefill_tokens, self.unstarted, i) };
            let prompt_tokens = part(self.kv_tokens, self.in_flight, i);
            let mut reservation = Reservation::new(Arc::clone(pod), Send { prompt_tokens, uncached_tokens });
            if started {
                reservation.first_token();
            }
            held.push(reservation);
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::for_test::{pool, target};

    fn fleet(now: Instant) -> Fleet {
        Fleet::new(&[pool("pool")], now)
    }

    #[test]
    fn a_restored_fleet_looks_exactly_like_the_one_it_was_taken_from() {
        let now = crate::clock::now();
        let one = fleet(now);
        one.set("pool", &[target("10.0.0.1"), target("::1")], now);
        let pods = one.pool("pool").unwrap().pods();
        let early = Reservation::new(Arc::clone(&pods[0]), Send { prompt_tokens: 10, uncached_tokens: 10 });
        let reading = Reading { running: Some(3), waiting: Some(1), kv_usage: Some(0.5), ..Reading::default() };
        pods[0].store_load(PodLoad { began: now, sent_mark: 1, ended_mark: 0, reading });
        pods[0].health.note(Evidence::ScrapeOk { asleep: false }, now);
        pods[0].health.pushed_back(None, now, now);
        (0..5).for_each(|_| _ = one.pool("pool").unwrap().failed(&pods[1], now));
        let late: Vec<_> = (0..3)
            .map(|_| Reservation::new(Arc::clone(&pods[0]), Send { prompt_tokens: 101, uncached_tokens: 67 }))
            .collect();
        drop(early);

        let taken = FleetSnapshot::take(&one, now);
        let [loaded, out] = &*taken.pools[0].pods else { panic!("{taken:?}") };
        assert_eq!((loaded.pushback_ms, out.ejection), (Some(1_000), Some(Ejection::FailuresInARow)));
        let two = fleet(now);
        let held = taken.restore(&two, now);
        let again = FleetSnapshot::take(&two, now);
        assert_eq!(serde_json::to_value(&taken).unwrap(), serde_json::to_value(&again).unwrap());
        assert_eq!(two.pool("pool").unwrap().pods()[0].streams(), pods[0].streams());
        drop((late, held));
    }
}
