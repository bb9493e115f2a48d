//! How full a pool is: how long a request would wait at the best of its pods before its own prefill begins, over how long
//! the operator finds that too much. From 1 on, what is sheddable is refused.
//!
//! What we sent and saw is exact and never stale: prompts that wait for their first token, requests there, each ended one
//! gone at once. A page tells the rest: others' requests, how full the cache is, whether a batch is at its end. What it
//! tells of others fades with its age, and what it tells of ours is carried forward by what we sent and what ended since. So
//! an old page says neither "full" nor "free" for ever. Nobody is refused here, and no pod is chosen.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Admission, Glance, Moment, Pace, Pod, PoolState, load::stale_after};

/// The length of others' prompts, of which no metric tells: the mean that SGLang's gateway takes for unknown ones.
const OTHERS_PROMPT: f64 = 1_024.0;

/// How many of our own waiting prompts outweigh that guess. Ours: a handful is a sample.
const OTHERS_SAMPLES: f64 = 4.0;

/// KV-cache usage at which no further prompt fits, as a rule: a pod whose next prompt does not fit shows less than a full
/// cache by that prompt, and 8,000 tokens of an 8B model's 422,000 are 2 %.
pub const FULL_CACHE: f64 = 0.95;

/// What is left of a promised time after what cannot be foreseen of a pod's steps. While more comes than fits, whoever goes has
/// waited for as long as it could, and without this half of them are late by a step or two (W2 at 1.3 of what 4 H100 carry).
const FORESEEN: f64 = 0.95;

/// Prefill takes no more of a pod's time than this, or nothing would be left to guess a pace from.
const BUSIEST: f64 = 0.8;

/// How far on the next request begins to look for room: odd and large, so that requests that follow each other begin far
/// from each other (Knuth's multiplicative hashing, 2^32 over the golden ratio).
const STRIDE: usize = 2_654_435_761;

/// The first and last pause that a refused client is told, in seconds: the header counts whole ones, and the OpenAI SDKs
/// follow it up to a minute and ignore a longer one.
const PAUSES: (f64, f64) = (1.0, 60.0);

/// Which full pods are no pods to choose while others have room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spare {
    /// Those whose cache or batch is at its end: policies weigh what waits at a pod against what is cached there, and none of
    /// them knows that.
    Crowded,
    /// All: who stood in line was let go for the sake of one that is not, and what waits in the line can still go wherever a
    /// place gets free; what waits at a pod cannot.
    Full,
}

/// How full a pool is for one model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Saturation {
    /// Milliseconds before its own prefill that a request would wait at the best pod.
    pub wait_ms: f64,
    /// That over what the operator finds too much.
    pub level: f64,
}

impl Saturation {
    /// How full `pods` of `pool` are, of which those count that are in use and may serve `model` (all, if it has no name);
    /// `None` if there are none.
    pub fn of(pool: &PoolState, pods: &[Arc<Pod>], model: &str, now: Instant) -> Option<Self> {
        let sights = Sights::of(pool, now);
        let usable = |pod: &&Arc<Pod>| {
            matches!(pod.admits(now), Admission::Yes | Admission::Warming(_)) && pod.serves(model) != Some(false)
        };
        let wait_ms = pods.iter().filter(usable).map(|pod| sights.wait_ms(pod, now)).reduce(f64::min)?;
        Some(Self { wait_ms, level: wait_ms / too_long_ms(pool) })
    }

    /// Those of `pods` in `pool` that `spare` speaks of, at which a request would wait too long.
    pub fn full<'a>(
        pool: &PoolState,
        pods: &'a [Arc<Pod>],
        spare: Spare,
        now: Instant,
    ) -> impl Iterator<Item = &'a Arc<Pod>> {
        let (sights, too_long) = (Sights::of(pool, now), too_long_ms(pool));
        pods.iter().filter(move |pod| match spare {
            Spare::Full => sights.wait_ms(pod, now) >= too_long,
            Spare::Crowded => {
                let backlog = sights.of_pod(pod);
                backlog.demand > 1.0 && backlog.wait_ms() >= too_long
            }
        })
    }

    /// Whether what is sheddable is refused.
    pub fn is_full(&self) -> bool {
        self.level >= 1.0
    }

    /// When to come again: once those who wait now are served.
    pub fn pause(&self) -> Duration {
        let (least, most) = PAUSES;
        Duration::from_secs_f64((self.wait_ms / 1e3).ceil().clamp(least, most))
    }
}

/// Whether one more request finds room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// At one pod at least, or at one that is to be tried again.
    Yes,
    /// At none: all are full. Unless something is heard, that is believed until then; for ever where only ends of requests
    /// can change it.
    No(Option<Instant>),
    /// No pod is in use that could have it.
    NoPod,
}

impl Room {
    /// Whether those of `pods` in `pool` that `may` have it have room for one more: what [`Saturation::of`] says, but known at
    /// the first pod that has some, so that it may be asked for every request.
    pub fn of(pool: &PoolState, pods: &[Arc<Pod>], may: impl Fn(&Pod) -> bool, now: Instant) -> Self {
        let (mut sights, mut room) = (None, Self::NoPod);
        // Each time from another on: where the first of many are full, few would be asked in vain but always the same.
        let turn = usize::try_from(pool.sent()).unwrap_or_default().wrapping_mul(STRIDE) % pods.len().max(1);
        let (before, after) = pods.split_at_checked(turn).unwrap_or((pods, &[]));
        for pod in after.iter().chain(before) {
            let admission = pod.admits(now);
            if matches!(admission, Admission::No(_)) || !may(pod) {
                continue;
            }
            if admission == Admission::Probe {
                return Self::Yes;
            }
            let (sights, too_long) = sights.get_or_insert_with(|| (Sights::of(pool, now), too_long_ms(pool)));
            if sights.wait_ms(pod, now) < *too_long {
                return Self::Yes;
            }
            let fades = sights.fades_within(pod, now, *too_long).map(|span| now + span);
            let before = if let Self::No(before) = room { before } else { None };
            room = Self::No(before.into_iter().chain(fades).min());
        }
        room
    }
}

impl PoolState {
    /// For how long a prompt with so many `uncached_tokens` may stand in line for its first token to come `within` that time:
    /// it has to be computed as well, behind as much as a pod that is not full may have.
    pub fn spare(&self, within: Duration, uncached_tokens: u32) -> Duration {
        let pace = self.pace();
        let prefill_ms = pace.base_ms + f64::from(uncached_tokens) * pace.ms_per_token;
        let prefill = Duration::try_from_secs_f64(prefill_ms / 1e3).unwrap_or_default();
        within.mul_f64(FORESEEN).saturating_sub(prefill + self.config().saturation.wait)
    }
}

/// In milliseconds, what the operator finds too long.
fn too_long_ms(pool: &PoolState) -> f64 {
    pool.config().saturation.wait.as_secs_f64() * 1e3
}

/// What is the same for all pods of a pool.
struct Sights {
    pace: Pace,
    moment: Moment,
    /// Tokens that an answer is expected to have.
    answer: f64,
    /// Milliseconds between tokens at which a pod has streams enough.
    between_ms: Option<f64>,
    /// How many requests a pod runs at once, where the operator says so.
    slots: Option<f64>,
}

impl Sights {
    fn of(pool: &PoolState, now: Instant) -> Self {
        let between = pool.config().saturation.between_tokens;
        Self {
            pace: pool.pace(),
            moment: pool.moment(now),
            answer: pool.expected_output_tokens().into(),
            between_ms: between.map(|it| it.as_secs_f64() * 1e3),
            slots: pool.config().saturation.batch.map(f64::from),
        }
    }

    /// A pod that said no is as good as full for as long as it looks so.
    fn wait_ms(&self, pod: &Pod, now: Instant) -> f64 {
        self.of_pod(pod).wait_ms().max(pod.health.pushback(now).as_secs_f64() * 1e3)
    }

    /// After how long `pod`, which is full, looks otherwise though nothing was heard of it: it said no, and that is past; or
    /// its page told of others, and is too old.
    fn fades_within(&self, pod: &Pod, now: Instant, too_long_ms: f64) -> Option<Duration> {
        let pushed_ms = pod.health.pushback(now).as_secs_f64() * 1e3;
        if pushed_ms >= too_long_ms {
            // It is counted in whole milliseconds.
            return Duration::try_from_secs_f64((pushed_ms - too_long_ms + 1.0) / 1e3).ok();
        }
        let glance = pod.glance(&self.moment).filter(|it| it.trust * it.others > 0.0)?;
        Some(stale_after(pod.view.interval).mul_f32(glance.trust))
    }

    fn of_pod(&self, pod: &Pod) -> Backlog {
        let ledger = &pod.ledger;
        let (streams, kv_tokens) = (ledger.in_flight() as f64, ledger.kv_tokens() as f64);
        let mut backlog = Backlog {
            prefill_tokens: ledger.prefill_tokens() as f64,
            ms_per_token: 0.0,
            lifetime_ms: 0.0,
            demand: 0.0,
        };
        let mut all = streams;
        if let Some(glance) = pod.glance(&self.moment) {
            let theirs = f64::from(glance.trust * glance.others_waiting);
            backlog.prefill_tokens += others_tokens(theirs, backlog.prefill_tokens, ledger.unstarted() as f64);
            all += f64::from(glance.trust * glance.others);
            backlog.demand = demand(&glance, (streams, kv_tokens));
        }
        if let Some(slots) = self.slots {
            // The next would be one of them.
            backlog.demand = backlog.demand.max(all / slots);
        }
        let pace = pod.speed.pace(self.pace);
        backlog.ms_per_token = pace.ms_per_token;
        backlog.lifetime_ms = self.answer * pace.itl_ms(all);
        if let Some(between_ms) = self.between_ms {
            // What prefills take of its time decodes nothing. At least one stream has to be there.
            let busy = (f64::from(pod.inflow.per_ms(&self.moment)) * pace.ms_per_token).min(BUSIEST);
            let enough = ((between_ms * (1.0 - busy) - pace.step_ms) / pace.stream_ms).max(1.0);
            backlog.demand = backlog.demand.max((all + 1.0) / enough);
        }
        backlog
    }
}

/// What stands before a request at one pod.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Backlog {
    /// Prompt tokens to be computed first.
    prefill_tokens: f64,
    ms_per_token: f64,
    /// How long an answer takes from its first token to its last.
    lifetime_ms: f64,
    /// What is there and wants to be, in times of what fits.
    demand: f64,
}

impl Backlog {
    /// Prompts are computed one after the other. Where more is wanted than fits, those who wait begin as those who run
    /// end: as much as fits in an answer's time.
    fn wait_ms(&self) -> f64 {
        self.prefill_tokens * self.ms_per_token + (self.demand - 1.0).max(0.0) * self.lifetime_ms
    }
}

/// Prompt tokens of others' waiting requests: each the guess, outweighed by what ours, `unstarted` with `prefill_tokens`, are
/// like as they come.
#[inline]
pub fn others_tokens(others_waiting: f64, prefill_tokens: f64, unstarted: f64) -> f64 {
    if others_waiting <= 0.0 {
        return 0.0;
    }
    others_waiting * (prefill_tokens + OTHERS_PROMPT * OTHERS_SAMPLES) / (unstarted + OTHERS_SAMPLES)
}

/// What the requests at a pod want of its cache and of its batch, in times of what there is, whichever is more; `streams`
/// are ours there now, with `kv_tokens`.
fn demand(glance: &Glance, (streams, kv_tokens): (f64, f64)) -> f64 {
    let (ours, others) = (f64::from(glance.ours), f64::from(glance.others));
    // Those that the page knew and that are there yet, as far as others' are believed to be, and those sent since.
    let known = streams.min(ours) + f64::from(glance.trust) * others;
    let since = (streams - ours).max(0.0);
    let running = f64::from(glance.running);
    let usage = f64::from(glance.kv_usage).min(FULL_CACHE) / FULL_CACHE;
    // Who waits will want as much of the cache as who runs has. An engine that runs nothing has not said how much.
    let each = usage / if running >= 1.0 { running } else { (ours + others).max(1.0) };
    let of_new = match glance.kv_capacity {
        Some(capacity) => kv_tokens / streams.max(1.0) / f64::from(capacity),
        None => each,
    };
    let cache = known * each + since * of_new;
    let batch = glance.batch.map_or(0.0, |slots| (known + since) / f64::from(slots));
    cache.max(batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config,
        fleet::{
            Evidence, Fleet, PodLoad, Reading, ReportedModel, Reservation, Send,
            for_test::{self, target},
        },
    };

    /// A pool of as many pods that has shown nothing: 0.05 ms a prompt token, 15 ms a step and 0.15 ms more for each stream,
    /// 250 tokens an answer. Full from a wait of a second on.
    fn pool(pods: usize, now: Instant) -> Arc<PoolState> {
        let fleet = Fleet::new(&[for_test::pool("pool")], now);
        let targets: Vec<_> = (0..pods).map(|n| target(&format!("pod-{n}"))).collect();
        fleet.set("pool", &targets, now);
        fleet.pool("pool").unwrap()
    }

    fn sent(pod: &Arc<Pod>, prompt_tokens: u32, uncached_tokens: u32) -> Reservation {
        Reservation::new(Arc::clone(pod), Send { prompt_tokens, uncached_tokens })
    }

    fn streams(pod: &Arc<Pod>, many: usize) -> Vec<Reservation> {
        (0..many).map(|_| sent(pod, 100, 0)).collect()
    }

    /// A page of `pod` that says so much.
    fn page(pod: &Pod, (running, waiting): (u32, u32), kv_usage: f64, began: Instant) {
        let reading =
            Reading { running: Some(running), waiting: Some(waiting), kv_usage: Some(kv_usage), ..Reading::default() };
        let (sent_mark, ended_mark) = (pod.ledger.sent(), pod.ledger.ended());
        pod.store_load(PodLoad { began, sent_mark, ended_mark, reading });
    }

    /// In whole microseconds, to be compared with.
    fn wait_us(pool: &PoolState, now: Instant) -> u128 {
        let wait_ms = Saturation::of(pool, &pool.pods(), "m", now).unwrap().wait_ms;
        Duration::from_secs_f64((wait_ms * 1e3).round() / 1e6).as_micros()
    }

    #[test]
    fn prompts_of_ours_that_wait_are_the_wait_and_the_best_pod_counts() {
        let now = crate::clock::now();
        let pool = pool(2, now);
        let pods = pool.pods();
        let mut first = sent(&pods[0], 20_000, 20_000);
        assert_eq!(wait_us(&pool, now), 0, "the other one is free");
        let _second = sent(&pods[1], 40_000, 30_000);
        let full = Saturation::of(&pool, &pods, "m", now).unwrap();
        assert!(full.is_full() && (full.level - 1.0).abs() < 1e-6, "20,000 tokens at 0.05 ms: {full:?}");
        assert_eq!(full.pause(), Duration::from_secs(2), "up to a whole second");
        first.first_token();
        assert_eq!(wait_us(&pool, now), 0);
    }

    #[test]
    fn a_full_cache_keeps_those_waiting_until_others_end_and_needs_no_new_page_to_see_it() {
        let now = crate::clock::now();
        let pool = pool(1, now);
        let pod = Arc::clone(&pool.pods()[0]);
        let mut held = streams(&pod, 15);
        page(&pod, (10, 5), 0.97, now);
        // Half as many wait as run: half an answer's time, of 250 tokens at 15 + 15 * 0.15 ms: 2,156.25 ms.
        assert_eq!(wait_us(&pool, now), 2_156_250);
        let long_after = now + Duration::from_secs(3_600);
        assert_eq!(wait_us(&pool, long_after), 2_156_250, "ours are there yet, however old the page");
        held.truncate(12);
        assert_eq!(wait_us(&pool, long_after), 840_000);
        held.truncate(10);
        assert_eq!(wait_us(&pool, long_after), 0, "those that are left fit");
    }

    #[test]
    fn a_cache_that_is_full_while_nobody_waits_is_well_used() {
        let now = crate::clock::now();
        let pool = pool(1, now);
        let pod = Arc::clone(&pool.pods()[0]);
        let _held = streams(&pod, 10);
        page(&pod, (10, 0), 1.0, now);
        assert_eq!(wait_us(&pool, now), 0);
    }

    #[test]
    fn what_was_sent_since_fills_a_pod_whose_page_says_that_it_is_free() {
        let now = crate::clock::now();
        let pool = pool(1, now);
        let pod = Arc::clone(&pool.pods()[0]);
        let reading = Reading {
            running: Some(0),
            waiting: Some(0),
            kv_usage: Some(0.0),
            block_size: Some(16),
            blocks: Some(1_000),
            ..Reading::default()
        };
        pod.store_load(PodLoad { began: now, sent_mark: 0, ended_mark: 0, reading });
        let mut held: Vec<_> = (0..4).map(|_| sent(&pod, 8_000, 0)).collect();
        // 32,000 tokens where 16,000 fit: an answer's time at 4 streams.
        assert_eq!(wait_us(&pool, now), 3_900_000);
        held.truncate(2);
        assert_eq!(wait_us(&pool, now), 0);
    }

    #[test]
    fn a_burst_at_a_pod_that_nobody_has_seen_full_stops_at_the_batch_that_the_operator_names() {
        let now = crate::clock::now();
        let named = |batch| {
            let mut config = (*for_test::pool("pool")).clone();
            config.saturation.batch = batch;
            let fleet = Fleet::new(&[Arc::new(config)], now);
            fleet.set("pool", &[target("pod")], now);
            fleet.pool("pool").unwrap()
        };
        let (said, unsaid) = (named(Some(4)), named(None));
        let _held = [&said, &unsaid].map(|pool| streams(&pool.pods()[0], 6));
        assert_eq!(wait_us(&unsaid, now), 0, "no page has said that it is full, nor that it was ever read");
        // Two of six stand behind four: half an answer's time, of 250 tokens at 15 + 6 * 0.15 ms.
        assert_eq!(wait_us(&said, now), 1_987_500);
        assert_eq!(Saturation::full(&said, &said.pods(), Spare::Crowded, now).count(), 1, "its batch is at its end");
    }

    #[test]
    fn who_waits_on_two_pages_while_no_more_run_waits_for_a_place_in_the_batch() {
        let now = crate::clock::now();
        let pool = pool(1, now);
        let pod = Arc::clone(&pool.pods()[0]);
        let mut held = streams(&pod, 8);
        page(&pod, (4, 4), 0.1, now);
        assert_eq!(wait_us(&pool, now), 0, "they may only have come together");
        page(&pod, (5, 3), 0.1, now);
        assert_eq!(wait_us(&pool, now), 0, "more run than did");
        page(&pod, (5, 3), 0.1, now);
        assert_eq!(wait_us(&pool, now), 2_430_000, "3 of them stand behind 5");
        held.truncate(5);
        assert_eq!(wait_us(&pool, now), 0);
        held.extend(streams(&pod, 3));
        page(&pod, (4, 4), 0.1, now);
        assert_eq!(wait_us(&pool, now), 2_430_000, "one has ended and nobody begun in its place yet");
        page(&pod, (6, 2), 0.1, now);
        // Eight where six run: a third of 250 tokens at 15 + 8 * 0.15 ms.
        assert_eq!(wait_us(&pool, now), 1_350_000, "one more than was known");
        held.truncate(5);
        page(&pod, (5, 0), 0.1, now);
        held.extend(streams(&pod, 3));
        assert_eq!(wait_us(&pool, now), 0, "nobody waited: there may be room");
    }

    #[test]
    fn pods_that_keep_a_request_waiting_too_long_are_told_apart_from_the_others() {
        let now = crate::clock::now();
        let pool = pool(3, now);
        let pods = pool.pods();
        let _long = sent(&pods[0], 20_000, 20_000);
        let _short = sent(&pods[1], 19_999, 19_999);
        pods[2].health.pushed_back(Some(Duration::from_secs(2)), now, now);
        let full: Vec<_> = Saturation::full(&pool, &pods, Spare::Full, now).map(|pod| pod.slot).collect();
        assert_eq!(full, [pods[0].slot, pods[2].slot]);
        let crowded = Saturation::full(&pool, &pods, Spare::Crowded, now);
        assert_eq!(crowded.count(), 0, "what waits there is known to policies");
    }

    #[test]
    fn what_a_page_says_of_others_fades() {
        let now = crate::clock::now();
        let pool = pool(1, now);
        page(&pool.pods()[0], (10, 5), 1.0, now);
        // 5 prompts of 1,024 tokens, and half an answer's time.
        assert_eq!(wait_us(&pool, now), 256_000 + 2_156_250);
        let half = now + Duration::from_millis(2_500);
        assert_eq!(wait_us(&pool, half), 128_000);
        assert_eq!(wait_us(&pool, now + Duration::from_secs(6)), 0);
    }

    #[test]
    fn a_page_that_stands_still_does_not_make_others_of_ours_that_have_ended() {
        let now = crate::clock::now();
        let pool = pool(1, now);
        let pod = Arc::clone(&pool.pods()[0]);
        let held = streams(&pod, 6);
        let read = |began: Instant, generated: u64| {
            let reading = Reading {
                running: Some(2),
                waiting: Some(4),
                kv_usage: Some(0.1),
                generation_tokens_total: Some(generated),
                ..Reading::default()
            };
            let (sent_mark, ended_mark) = (pod.ledger.sent(), pod.ledger.ended());
            pod.store_load(PodLoad { began, sent_mark, ended_mark, reading });
        };
        for generated in [100, 110, 110] {
            read(now, generated);
        }
        assert!(wait_us(&pool, now) > 0, "4 of ours wait behind 2");
        drop(held);
        for after in 0..4 {
            read(now + Duration::from_secs(after), 110);
            assert_eq!(wait_us(&pool, now + Duration::from_secs(after)), 0);
        }
        read(now, 111);
        assert!(wait_us(&pool, now) > 0, "it moves again: these are others'");
    }

    #[test]
    fn only_pods_in_use_that_may_serve_the_model_count() {
        let now = crate::clock::now();
        let pool = pool(3, now);
        let pods = pool.pods();
        let _held = sent(&pods[0], 30_000, 30_000);
        let other = ReportedModel { name: "other".into(), parent: None };
        pods[1].store_models(vec![other]);
        pods[2].health.note(Evidence::ScrapeOk { asleep: true }, now);
        assert_eq!(wait_us(&pool, now), 1_500_000);
        pods[0].health.note(Evidence::ScrapeOk { asleep: true }, now);
        assert_eq!(Saturation::of(&pool, &pods, "m", now), None);
        assert!(Saturation::of(&pool, &pods, "other", now).unwrap().wait_ms < 1e-9);
        assert_eq!(Saturation::of(&pool, &[], "", now), None);
    }

    #[test]
    fn a_pod_is_full_where_one_stream_more_would_make_tokens_slower_than_they_should_be() {
        let now = crate::clock::now();
        let saturation = config::Saturation { between_tokens: Some(Duration::from_millis(18)), ..usual() };
        let fleet =
            Fleet::new(&[Arc::new(config::Pool { saturation, ..for_test::pool("pool").as_ref().clone() })], now);
        fleet.set("pool", &[target("pod")], now);
        let pool = fleet.pool("pool").unwrap();
        let pod = Arc::clone(&pool.pods()[0]);
        // 20 streams at 15 + 20 * 0.15 ms.
        let mut held = streams(&pod, 19);
        assert_eq!(wait_us(&pool, now), 0);
        held.extend(streams(&pod, 1));
        // One in 20 more than should be, of 250 tokens at 18 ms.
        assert_eq!(wait_us(&pool, now), 225_000);
        assert!(matches!(Room::of(&pool, &pool.pods(), |_| true, now), Room::Yes));
        held.extend(streams(&pod, 4));
        assert_eq!(room(&pool, now), Room::No(None));
        held.truncate(10);
        assert_eq!(room(&pool, now), Room::Yes);
    }

    fn usual() -> config::Saturation {
        for_test::pool("pool").saturation
    }

    fn room(pool: &PoolState, now: Instant) -> Room {
        Room::of(pool, &pool.pods(), |pod| pod.serves("m") != Some(false), now)
    }

    #[test]
    fn there_is_room_where_it_is_not_full_and_what_ends_by_itself_says_when() {
        let now = crate::clock::now();
        let pool = pool(2, now);
        let pods = pool.pods();
        let first = sent(&pods[0], 20_000, 20_000);
        assert_eq!(room(&pool, now), Room::Yes, "the other one is free");
        let _second = sent(&pods[1], 20_000, 20_000);
        assert_eq!(room(&pool, now), Room::No(None), "only their first tokens make room");
        drop(first);
        assert_eq!(room(&pool, now), Room::Yes);
        pods[0].health.pushed_back(Some(Duration::from_secs(3)), now, now);
        let Room::No(Some(until)) = room(&pool, now) else { panic!("it said no") };
        assert_eq!((until - now).as_millis(), 2_001, "a wait of less than a second is not too long");
        assert_eq!(room(&pool, until), Room::Yes);
        pods[0].health.note(Evidence::ScrapeOk { asleep: true }, now);
        assert_eq!(room(&pool, now), Room::No(None));
        pods[1].health.note(Evidence::ScrapeOk { asleep: true }, now);
        assert_eq!(room(&pool, now), Room::NoPod);
    }

    #[test]
    fn what_a_page_says_of_others_keeps_nobody_out_for_longer_than_it_is_believed() {
        let now = crate::clock::now();
        let pool = pool(1, now);
        page(&pool.pods()[0], (10, 5), 1.0, now);
        let Room::No(Some(until)) = room(&pool, now) else { panic!("full of others") };
        assert_eq!((until - now).as_secs(), 5);
        assert_eq!(room(&pool, until), Room::Yes);
    }

    #[test]
    fn pauses_are_whole_seconds_up_to_a_minute() {
        let pause = |wait_ms| Saturation { wait_ms, level: 1.0 }.pause().as_secs();
        assert_eq!([0.0, 400.0, 1_001.0, 59_000.5, 1e9, f64::INFINITY].map(pause), [1, 1, 2, 60, 60, 60]);
    }
}
