//! Which pods there are: by id for the senses, and as one published slice a pool for judgement.
//!
//! Discovery writes, everybody reads. The hot path takes the slice and never walks the map.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use dashmap::DashMap;

use super::{Admission, Condition, Ejection, Evidence, Health, Moment, Pace, Pod, PodId, PoolSpeed, View};
use crate::config::{Pool, Target};

/// Bytes of request text a token before a pool has told better (the rule of thumb for English text and BPE
/// vocabularies; the reference picker's estimate too).
const BYTES_PER_TOKEN: f32 = 4.0;

/// Weight of one answer's usage in what a pool learns of lengths: forgets over about 50 answers.
const RATIO_WEIGHT: f32 = 0.02;

/// No answer is taken to be longer: the longest output that models offer. Usage is what a pod says, and may be anything.
const MOST_OUTPUT_TOKENS: u32 = 131_072;

/// Nor so many times longer than those before it: from chat to reasoning it is 32 times, 256 tokens to 8,192.
const MOST_LONGER: f32 = 32.0;

/// Tokens that an answer has before a pool has told better: between the medians of the public chat traces (129 in
/// Azure 2023 conversations, about 350 in Mooncake's).
const OUTPUT_TOKENS: f32 = 250.0;

/// A pool that is this young takes every pod as present from the start: all its caches are equally cold, so there is
/// nobody to shield from.
const YOUTH: Duration = Duration::from_secs(10);

/// The share of a pool's pods that traffic's word alone may eject: the pool keeps at least half, as in Envoy's panic
/// threshold. (Envoy's own `max_ejection_percent` is 10, of services with hundreds of hosts.)
const MOST_SUSPECTS: usize = 2;

/// Pools by name.
pub type Pools = BTreeMap<Arc<str>, Arc<PoolState>>;

/// All pods of all pools.
#[derive(Debug)]
pub struct Fleet {
    pools: ArcSwap<Pools>,
    by_id: DashMap<PodId, Arc<Pod>>,
    next_slot: AtomicU32,
}

/// One pool's pods and what is known of the pool as a whole.
#[derive(Debug)]
pub struct PoolState {
    name: Arc<str>,
    config: ArcSwap<Pool>,
    /// What its pods have shown together: the belief about a pod that has shown nothing.
    pub speed: PoolSpeed,
    /// The turn of round robin.
    pub turn: AtomicU64,
    /// Requests that its pods were sent.
    sent: AtomicU64,
    pods: ArcSwap<Vec<Arc<Pod>>>,
    gate: Mutex<()>,
    bytes_per_token: AtomicU32,
    output_tokens: AtomicU32,
    born: Instant,
    closed: AtomicBool,
    news: AtomicU64,
}

/// What a new list of targets changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// Pods that joined.
    pub added: Vec<Arc<Pod>>,
    /// Pods that left; their requests in flight go on.
    pub removed: Vec<Arc<Pod>>,
}

impl Fleet {
    /// Empty pools as configured.
    pub fn new(pools: &[Arc<Pool>], now: Instant) -> Self {
        let fleet = Self { pools: ArcSwap::default(), by_id: DashMap::new(), next_slot: AtomicU32::new(0) };
        fleet.follow(pools, now);
        fleet
    }

    /// A pool by name.
    pub fn pool(&self, name: &str) -> Option<Arc<PoolState>> {
        self.pools.load().get(name).cloned()
    }

    /// All pools, by name.
    pub fn pools(&self) -> impl Iterator<Item = Arc<PoolState>> + use<> {
        self.all().values().cloned().collect::<Vec<_>>().into_iter()
    }

    /// All pools as they are now.
    pub fn all(&self) -> Arc<Pools> {
        self.pools.load_full()
    }

    /// Makes room for pools that are new, and tells those that are there what the operator now asks of them. Their
    /// pods stay until [`Fleet::set`]; what is known of them stays. Only a reload calls this and [`Fleet::remove`],
    /// one at a time.
    pub fn follow(&self, pools: &[Arc<Pool>], now: Instant) {
        let mut all = Pools::clone(&self.pools.load());
        for pool in pools {
            match all.get(&pool.name) {
                Some(state) => state.config.store(Arc::clone(pool)),
                None => drop(all.insert(Arc::clone(&pool.name), Arc::new(PoolState::new(Arc::clone(pool), now)))),
            }
        }
        self.pools.store(Arc::new(all));
    }

    /// Takes a pool off the list, and its pods with it. Whoever was routed to it before may still go there: the pods
    /// are as well as they were, only nobody new is sent.
    pub fn remove(&self, pool: &str) -> Changes {
        let mut all = Pools::clone(&self.pools.load());
        let Some(state) = all.remove(pool) else {
            return Changes::default();
        };
        self.pools.store(Arc::new(all));
        let _gate = state.gate();
        state.closed.store(true, Relaxed);
        let removed = state.pods().to_vec();
        for pod in &removed {
            self.by_id.remove(&pod.id);
        }
        Changes { added: Vec::new(), removed }
    }

    /// Whether `pod` is still one of the fleet.
    pub fn lists(&self, pod: &Pod) -> bool {
        self.by_id.get(&pod.id).is_some_and(|listed| std::ptr::eq(Arc::as_ptr(&listed), pod))
    }

    /// A pod by its id.
    pub fn pod(&self, id: &PodId) -> Option<Arc<Pod>> {
        self.by_id.get(id).map(|pod| Arc::clone(&pod))
    }

    /// Makes `targets` the pods of `pool`. A pod that stays keeps all that is known of it; one whose target changed
    /// (other credentials, another metrics page, another way to read it) is a new pod.
    pub fn set(&self, pool: &str, targets: &[Target], now: Instant) -> Changes {
        let Some(state) = self.pool(pool) else {
            return Changes::default();
        };
        let _gate = state.gate();
        let config = state.config();
        let old = state.pods();
        let mut changes = Changes::default();
        // By id, because a pool may have thousands: comparing each with each would hold the gate for long.
        let known: HashMap<&PodId, &Arc<Pod>> = old.iter().map(|pod| (&pod.id, pod)).collect();
        let mut pods: Vec<Arc<Pod>> = Vec::with_capacity(targets.len());
        let (mut listed, mut stays) = (HashSet::with_capacity(targets.len()), HashSet::with_capacity(old.len()));
        for target in targets {
            let id = PodId::new(pool, &target.origin.authority());
            if listed.contains(&id) {
                continue;
            }
            let view = view_of(&config, target);
            let known = known.get(&id).filter(|pod| pod.target == *target && pod.view == view);
            let pod = known.map_or_else(|| Arc::new(self.new_pod(&state, target, view, now)), |pod| Arc::clone(pod));
            if known.is_some() {
                stays.insert(pod.slot);
            } else {
                changes.added.push(Arc::clone(&pod));
            }
            pods.push(pod);
            listed.insert(id);
        }
        for pod in old.iter().filter(|pod| !stays.contains(&pod.slot)) {
            pod.health.note(Evidence::Gone, now);
            self.by_id.remove(&pod.id);
            changes.removed.push(Arc::clone(pod));
        }
        for pod in &changes.added {
            self.by_id.insert(pod.id.clone(), Arc::clone(pod));
        }
        state.pods.store(Arc::new(pods));
        changes
    }

    fn new_pod(&self, state: &PoolState, target: &Target, view: View, now: Instant) -> Pod {
        let young = now.saturating_duration_since(state.born) < YOUTH;
        let health = if young { Health::present_from_the_start(state.born) } else { Health::newcomer(now, state.born) };
        let slot = self.next_slot.fetch_add(1, Relaxed);
        Pod::new(Arc::clone(&state.name), target.clone(), view, slot, health)
    }
}

/// Where and how a target of `pool` is scraped.
fn view_of(pool: &Pool, target: &Target) -> View {
    let metrics = &pool.metrics;
    let page = || {
        let mut origin = target.origin.clone();
        origin.port = metrics.port.unwrap_or(origin.port);
        format!("{}://{}{}{}", origin.scheme(), origin.authority(), target.base_path, metrics.path)
    };
    View {
        metrics_url: target.metrics_url.clone().unwrap_or_else(page),
        engine: pool.engine.clone(),
        interval: metrics.interval,
        timeout: metrics.timeout,
        max_page: metrics.max_page,
    }
}

impl PoolState {
    fn new(config: Arc<Pool>, now: Instant) -> Self {
        Self {
            name: Arc::clone(&config.name),
            config: ArcSwap::new(config),
            speed: PoolSpeed::default(),
            turn: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            pods: ArcSwap::from_pointee(Vec::new()),
            gate: Mutex::new(()),
            bytes_per_token: AtomicU32::new(BYTES_PER_TOKEN.to_bits()),
            output_tokens: AtomicU32::new(OUTPUT_TOKENS.to_bits()),
            born: now,
            closed: AtomicBool::new(false),
            news: AtomicU64::new(0),
        }
    }

    /// The pool's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What the operator asks of it now.
    pub fn config(&self) -> Arc<Pool> {
        self.config.load_full()
    }

    /// Whether the fleet has it no longer: no pod will join it any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Counts what was heard after which a pod may be usable that was not: who finds it unchanged has missed nothing.
    pub fn news(&self) -> u64 {
        self.news.load(Acquire)
    }

    /// Such a thing was heard.
    pub fn tell_news(&self) {
        self.news.fetch_add(1, Release);
    }

    /// A request failed by `pod`'s fault. Returns the pod's new condition if it changed.
    ///
    /// What fails on every pod is not the pods' fault but the requests' or the model's, and to eject all of them would
    /// help nobody: at most half of a pool is ejected on the word of its traffic alone. Pods where nobody listens, and
    /// those that say themselves that they are unwell or asleep, are not suspected but known to be out: they neither fill
    /// that half nor count among those it is a half of.
    pub fn failed(&self, pod: &Pod, now: Instant) -> Option<Condition> {
        let _gate = self.gate();
        pod.health.note(Evidence::RequestFailed { spare: self.can_spare(pod, now) }, now)
    }

    fn can_spare(&self, pod: &Pod, now: Instant) -> bool {
        let (mut suspects, mut there) = (0, 0);
        for it in self.pods.load().iter() {
            let suspect = it.slot == pod.slot || it.health.ejection().is_some_and(Ejection::is_suspicion);
            let out = matches!(it.condition(now), Condition::Ejected | Condition::Asleep | Condition::Draining);
            suspects += usize::from(suspect);
            there += usize::from(suspect || !out);
        }
        suspects <= there / MOST_SUSPECTS
    }

    /// Requests that its pods were sent: the place of the next one.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// A request is sent to `pod`. Call it under the gate.
    pub(super) fn count(&self, pod: &Pod, now: Instant) {
        let nth = self.sent.fetch_add(1, Relaxed);
        if matches!(pod.admits(now), Admission::Warming(_)) {
            pod.health.use_allowance(nth, self.pods.load().len());
        }
    }

    /// The pods as they are now.
    pub fn pods(&self) -> Arc<Vec<Arc<Pod>>> {
        self.pods.load_full()
    }

    /// Held for the one short step from pick to reservation, so that simultaneous picks see each other. Never held
    /// across an await.
    pub fn gate(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `now`, to ask its pods about.
    pub fn moment(&self, now: Instant) -> Moment {
        Moment::new(now, self.born)
    }

    /// What the pool as a whole has shown.
    pub fn pace(&self) -> Pace {
        self.speed.pace()
    }

    /// Bytes of request text a token, as learned from usage.
    pub fn bytes_per_token(&self) -> f32 {
        f32::from_bits(self.bytes_per_token.load(Relaxed))
    }

    /// An answer's usage said that `bytes` of request text were `tokens` tokens.
    pub fn learn_bytes_per_token(&self, bytes: usize, tokens: u32) {
        // Short prompts are mostly template; a ratio outside 1 to 16 is no text (images, token ids).
        const LEAST_TOKENS: u32 = 64;
        if tokens < LEAST_TOKENS {
            return;
        }
        let seen = bytes as f32 / tokens as f32;
        if (1.0..=16.0).contains(&seen) {
            let old = self.bytes_per_token();
            self.bytes_per_token.store((old + (seen - old) * RATIO_WEIGHT).to_bits(), Relaxed);
        }
    }

    /// Tokens that an answer is expected to have, as learned from answers.
    pub fn expected_output_tokens(&self) -> f32 {
        f32::from_bits(self.output_tokens.load(Relaxed))
    }

    /// An answer had `tokens` tokens.
    pub fn learn_output_tokens(&self, tokens: u32) {
        let old = self.expected_output_tokens();
        let tokens = tokens.min(MOST_OUTPUT_TOKENS) as f32;
        let tokens = tokens.min(old * MOST_LONGER);
        self.output_tokens.store((old + (tokens - old) * RATIO_WEIGHT).to_bits(), Relaxed);
    }

    /// Estimated tokens of `bytes` of request text; at least one.
    pub fn tokens(&self, bytes: usize) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
        let tokens = (bytes as f32 / self.bytes_per_token()) as u32;
        tokens.max(1)
    }

    /// Takes over pods from elsewhere (a saved state).
    pub(super) fn restore(&self, pods: Vec<Arc<Pod>>, bytes_per_token: f32) {
        self.pods.store(Arc::new(pods));
        self.bytes_per_token.store(bytes_per_token.to_bits(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::for_test::{pool, target};

    #[test]
    fn a_pod_that_stays_keeps_its_ledger_and_one_that_leaves_drains() {
        let now = crate::clock::now();
        let fleet = Fleet::new(&[pool("pool")], now);
        assert_eq!(fleet.set("pool", &[target("a"), target("b")], now).added.len(), 2);
        let before = fleet.pool("pool").unwrap().pods();
        let changes = fleet.set("pool", &[target("b"), target("c")], now);
        let after = fleet.pool("pool").unwrap().pods();
        assert!(Arc::ptr_eq(&before[1], &after[0]));
        assert_eq!(changes.removed[0].id.as_str(), "pool/a:8000");
        assert_eq!(changes.removed[0].condition(now), crate::fleet::Condition::Draining);
        assert!(fleet.pod(&changes.removed[0].id).is_none());
        assert_ne!(after[1].slot, before[0].slot, "a slot is never given twice");
    }

    #[test]
    fn a_pool_that_goes_is_off_the_list_and_serves_who_was_sent_there_before() {
        let now = crate::clock::now();
        let fleet = Fleet::new(&[pool("one"), pool("two")], now);
        fleet.set("one", &[target("a")], now);
        let before = fleet.pool("one").unwrap();
        fleet.follow(&[pool("two"), pool("three")], now);
        assert_eq!(fleet.pools().count(), 3, "who goes is taken off by name");
        let gone = fleet.remove("one").removed;
        assert!(before.is_closed() && !fleet.lists(&gone[0]) && fleet.pod(&gone[0].id).is_none());
        assert_eq!(before.pods().len(), 1);
        assert_eq!(gone[0].condition(now), crate::fleet::Condition::Unknown, "as well as it was");
        assert!(fleet.set("one", &[target("b")], now).added.is_empty(), "nobody joins it any more");
        fleet.follow(&[pool("one")], now);
        let again = fleet.pool("one").unwrap();
        assert!(!Arc::ptr_eq(&before, &again) && !again.is_closed(), "the same name later is another pool");
    }

    #[test]
    fn a_pod_whose_way_of_being_read_changes_is_a_new_pod_and_the_pool_keeps_what_it_learned() {
        let now = crate::clock::now();
        let fleet = Fleet::new(&[pool("pool")], now);
        fleet.set("pool", &[target("a")], now);
        let state = fleet.pool("pool").unwrap();
        let old = Arc::clone(&state.pods()[0]);
        let mut other = Pool::clone(&pool("pool"));
        other.metrics.interval *= 2;
        fleet.follow(&[Arc::new(other)], now);
        let changes = fleet.set("pool", &[target("a")], now);
        assert!(Arc::ptr_eq(&fleet.pool("pool").unwrap(), &state));
        assert!(Arc::ptr_eq(&changes.removed[0], &old) && fleet.lists(&changes.added[0]) && !fleet.lists(&old));
    }

    #[test]
    fn a_pod_that_joins_a_running_pool_warms_up_and_the_first_ones_do_not() {
        let now = crate::clock::now();
        let fleet = Fleet::new(&[pool("pool")], now);
        fleet.set("pool", &[target("a")], now);
        let later = now + Duration::from_secs(60);
        fleet.set("pool", &[target("a"), target("b")], later);
        let pods = fleet.pool("pool").unwrap().pods();
        assert_eq!(pods[0].condition(later), crate::fleet::Condition::Unknown);
        assert_eq!(pods[1].condition(later), crate::fleet::Condition::Warming);
    }

    #[test]
    fn the_same_address_listed_twice_is_one_pod_even_under_two_credentials() {
        let now = crate::clock::now();
        let fleet = Fleet::new(&[pool("pool")], now);
        let other = Target { token_file: Some("other".into()), ..target("a") };
        let changes = fleet.set("pool", &[target("a"), target("a"), other], now);
        assert_eq!((changes.added.len(), fleet.by_id.len()), (1, 1));
        assert_eq!(fleet.pool("pool").unwrap().pods()[0].target, target("a"));
    }

    #[test]
    fn of_thousands_of_pods_half_are_exchanged_and_the_others_are_who_they_were() {
        let now = crate::clock::now();
        let fleet = Fleet::new(&[pool("pool")], now);
        let targets: Vec<Target> = (0..6_000).map(|nth| target(&format!("pod-{nth}"))).collect();
        assert_eq!(fleet.set("pool", &targets[..4_000], now).added.len(), 4_000);
        let before = fleet.pool("pool").unwrap().pods();
        // Turned round, so that none is where it was.
        let wanted: Vec<Target> = targets[2_000..].iter().rev().cloned().collect();
        let changes = fleet.set("pool", &wanted, now);
        let after = fleet.pool("pool").unwrap().pods();
        assert_eq!((changes.added.len(), changes.removed.len(), fleet.by_id.len()), (2_000, 2_000, 4_000));
        assert!(changes.removed.iter().zip(&before[..2_000]).all(|(gone, pod)| Arc::ptr_eq(gone, pod)));
        assert!(after[2_000..].iter().rev().zip(&before[2_000..]).all(|(stays, pod)| Arc::ptr_eq(stays, pod)));
        assert!(after.iter().map(|pod| &pod.target).eq(&wanted), "in the order of the list");
    }

    fn fail(state: &PoolState, pod: &Pod, now: Instant) -> bool {
        (0..9).filter_map(|_| state.failed(pod, now)).any(|it| it == Condition::Ejected)
    }

    #[test]
    fn traffic_ejects_at_most_half_of_a_pool_and_the_gone_do_not_count() {
        let now = crate::clock::now();
        let fleet = Fleet::new(&[pool("pool")], now);
        fleet.set("pool", &["a", "b", "c", "d", "e", "f"].map(target), now);
        let state = fleet.pool("pool").unwrap();
        let pods = state.pods();
        // Nobody listens at two of them: four are left, and two of those may be ejected.
        for pod in &pods[..2] {
            (0..2).for_each(|_| _ = pod.health.note(Evidence::ScrapeRefused, now));
        }
        let ejected: Vec<bool> = pods[2..].iter().map(|pod| fail(&state, pod, now)).collect();
        assert_eq!(ejected, [true, true, false, false]);
        // One of the two is found to be gone: three are left, of which one is ejected, and that is all.
        pods[2].health.note(Evidence::ScrapeRefused, now);
        assert!(!fail(&state, &pods[4], now));
        // One comes back: of four, two may be out.
        pods[0].health.note(Evidence::ScrapeOk { asleep: false }, now);
        assert!(fail(&state, &pods[4], now));
    }

    #[test]
    fn a_pool_of_one_keeps_it() {
        let now = crate::clock::now();
        let fleet = Fleet::new(&[pool("pool")], now);
        fleet.set("pool", &[target("a")], now);
        let state = fleet.pool("pool").unwrap();
        assert!(!fail(&state, &state.pods()[0], now));
    }

    #[test]
    fn a_pod_that_claims_endless_answers_does_not_make_every_request_look_endless() {
        let state = PoolState::new(pool("pool"), crate::clock::now());
        (0..10).for_each(|_| state.learn_output_tokens(u32::MAX));
        (0..200).for_each(|_| state.learn_output_tokens(20));
        assert!(state.expected_output_tokens() < 1_000.0, "{}", state.expected_output_tokens());
    }

    #[test]
    fn bytes_per_token_follows_usage_and_ignores_nonsense() {
        let state = PoolState::new(pool("pool"), crate::clock::now());
        for _ in 0..400 {
            state.learn_bytes_per_token(3_000, 1_000);
        }
        state.learn_bytes_per_token(3_000_000, 1_000);
        state.learn_bytes_per_token(3, 1);
        assert!((state.bytes_per_token() - 3.0).abs() < 0.01);
        assert_eq!(state.tokens(0), 1);
    }
}
