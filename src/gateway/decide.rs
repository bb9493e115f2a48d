//! One decision for both doors: which route, which pod, and the reservation that makes it count.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use super::{House, ListenerPolicy, receipt::Chosen, rejection::Rejection, turn::Bell, waiting::Few};
use crate::{
    admission::Caller,
    clock,
    fleet::{Course, Pod, PoolState, Saturation, Send, Spare},
    openai::{Ask, Usage},
    prefix::{BLOCK_BYTES, Chain, Claim, Hits},
    routing::{Claims, Priority, Route, StickyKey, UnknownModel, key_of},
    scheduler::{self, NoPod, Price, Question, Scene, Sight, Tried, Verdict},
    telemetry::{Decision, Hex, Name},
};

/// What the desk asks of judgement for one request, computed once and used for every attempt.
pub struct Matter {
    /// Where it goes.
    pub route: Route,
    /// The pool's state.
    pub pool: Arc<PoolState>,
    /// Its prompt as prefix blocks, and open behind them for the answer.
    pub chain: Chain,
    /// The length of the prompt's text.
    pub prompt_bytes: usize,
    /// Whether an answer is to be generated.
    pub generates: bool,
    /// Whether a next turn can begin with the prompt and its answer.
    pub goes_on: bool,
    /// Which pods hold how much of it.
    pub(super) hits: Hits,
    pub(super) prompt_tokens: u32,
    pub(super) expected_output_tokens: u32,
    session: Option<u64>,
    /// The one pod that can answer it, if only one can.
    pub(super) pin: Option<Arc<Pod>>,
    /// How much it matters where not all can be served.
    pub priority: Priority,
    /// Whose turn it takes then.
    pub(super) tenant: Arc<str>,
    /// When it is too late for it to go to a pod.
    pub(super) deadline: Option<Instant>,
    /// Whether that is when it wants its first token.
    pub(super) says_when: bool,
    /// Which pods may, if not all.
    pub(super) among: Option<Few>,
}

/// What a request's headers say of where it shall go and how much it matters; nothing of the last two where its sender is
/// not believed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes<'a> {
    /// The session that it belongs to.
    pub session: Option<&'a str>,
    /// The objective that is its.
    pub objective: Option<&'a str>,
    /// What its model is to be called at its pod, whatever splits say.
    pub served_as: Option<&'a str>,
    /// Who asks.
    pub caller: Option<&'a Caller>,
    /// How much it matters, as a number of its own.
    pub priority: Option<i32>,
    /// Within which time its first token is wanted.
    pub first_token_within: Option<Duration>,
    /// For how long its client waits.
    pub patience: Option<Duration>,
}

/// Why a request was refused that its pool could have taken.
#[derive(Clone, Debug)]
pub struct Shed {
    /// The pool.
    pub pool: Name,
    /// How full it is.
    pub saturation: Saturation,
    /// How much the request matters.
    pub priority: Priority,
}

/// A pod chosen and reserved.
#[derive(Debug)]
pub struct Pick {
    /// What judgement said.
    pub verdict: Verdict,
    /// The place on the pod.
    pub course: Course,
    /// Rings when that is given back, and so stands behind it.
    pub(super) bell: Bell,
    /// How long the choice took.
    pub took: Duration,
}

impl Pick {
    /// No choice: only this pod can answer.
    pub fn of_pod(house: &House, pool: &Arc<PoolState>, pod: &Arc<Pod>) -> Self {
        let verdict = Verdict {
            pod: Arc::clone(pod),
            send: Send::default(),
            price: Price::Any,
            considered: 1,
            sight: Sight::Unneeded,
            policy: "only-one",
            failed_open: false,
        };
        let course = Course::begin(pool, pod, verdict.send, clock::now());
        Self { verdict, course, bell: Bell::new(&house.waiting, pool), took: Duration::ZERO }
    }

    /// What the receipt tells of it, for a request that the pod knows under the name `served_model`.
    pub(super) fn chosen(&self, served_model: &Arc<str>) -> Chosen {
        let verdict = &self.verdict;
        Chosen {
            pool: Name::from(&verdict.pod.pool),
            pod: Arc::clone(verdict.pod.address()),
            asked_pod: None,
            served_model: Name::from(served_model),
            policy: verdict.policy,
            sight: verdict.sight.name(),
            cost_ms: verdict.price.total(),
        }
    }
}

impl Matter {
    /// Finds the route of `ask`, whose body is `body` and whose headers said `wishes`.
    ///
    /// # Errors
    /// [`Rejection::UnknownModel`].
    pub fn new(
        house: &House,
        policy: &ListenerPolicy,
        ask: &Ask,
        body: &[u8],
        wishes: Wishes<'_>,
    ) -> Result<Self, Rejection> {
        let session = wishes.session.or(ask.session.as_deref());
        let opening = || opening_key(ask, body);
        let key = StickyKey { session, opening: &opening };
        let reported = |name: &str| policy.pool_reporting(house, name).or_else(|| policy.pool_for_any(house, name));
        // What names no model has nowhere to write another.
        let forced = wishes.served_as.filter(|_| !ask.model.is_empty());
        let forced = forced.and_then(|served| {
            let led = || policy.pool_reporting(house, &ask.model).or_else(|| policy.pool_reporting(house, served));
            policy.table.forced(&ask.model, served, || led().or_else(|| policy.pool_for_any(house, served)))
        });
        let found = forced.map_or_else(|| policy.table.find(&ask.model, key, reported, &mut clock::rng()), Ok);
        let route = found.map_err(|it| {
            if policy.knows_all { unknown(house, policy, it.asked) } else { Rejection::NoPod(NoPod::PoolEmpty) }
        })?;
        let pool = policy.pool(house, &route.pool).ok_or(Rejection::NoPod(NoPod::PoolEmpty))?;
        if wishes.served_as.is_some_and(|served| *route.served_model == *served) && served_by_none(&pool, &route) {
            return Err(unknown(house, policy, route.served_model.to_string()));
        }
        let salt = ask.cache_salt.as_deref().unwrap_or_default();
        let mut chain = Chain::new(&route.served_model, salt);
        let prompt_bytes = ask.prompt_text(body, Chain::MAX_BYTES, |piece| chain.push(piece));
        let claims = Claims {
            own: wishes.priority,
            objective: wishes.objective,
            caller: wishes.caller.and_then(|caller| caller.priority),
        };
        let tenant = wishes.caller.map_or_else(|| Caller::ANONYMOUS.into(), |caller| Arc::clone(&caller.tenant));
        let mut matter = Self {
            hits: house.prefix.longest(chain.blocks()),
            chain,
            prompt_bytes,
            goes_on: ask.goes_on,
            generates: ask.endpoint.generates(),
            prompt_tokens: pool.tokens(prompt_bytes),
            expected_output_tokens: expected_output(&pool, ask),
            session: session.map(|session| key_of(session.as_bytes())),
            pin: ask.previous_response_id.as_deref().and_then(|id| house.pod_of_response(&tenant, id)),
            among: None,
            priority: policy.objectives.priority(claims, &route),
            tenant,
            deadline: None,
            says_when: false,
            pool,
            route,
        };
        matter.set_deadline(&wishes, clock::now());
        Ok(matter)
    }

    /// The tokens of its prompt, and those that its answer is expected to have.
    pub fn tokens(&self) -> (u32, u32) {
        (self.prompt_tokens, self.expected_output_tokens)
    }

    /// Only such pods may be chosen; `number` is the same for the same ones.
    pub fn only_among(&mut self, number: u64, among: impl Fn(&Pod) -> bool + std::marker::Send + Sync + 'static) {
        self.among = Some(Few { number: number.max(1), among: Arc::new(among) });
    }

    /// What the decision log tells of it, without how it went. Taken before the answer is put behind the prompt.
    pub fn decision(&self) -> Decision {
        Decision {
            at_ms: 0.0,
            model: Arc::clone(&self.route.client_model),
            served_model: Arc::clone(&self.route.served_model),
            pool: Arc::clone(self.pool.name()),
            pod: None,
            session: self.session.map(Hex),
            prompt_tokens: self.prompt_tokens,
            prompt_bytes: self.prompt_bytes,
            output_tokens: None,
            cached_tokens: None,
            ttft_ms: None,
            itl_ms: None,
            outcome: "",
            blocks: self.chain.blocks().hashes().iter().copied().map(Hex).collect(),
        }
    }

    fn question(&self) -> Question<'_> {
        Question {
            served_model: &self.route.served_model,
            prompt_tokens: self.prompt_tokens,
            block_tokens: BLOCK_BYTES as f32 / self.pool.bytes_per_token(),
            hits: &self.hits,
            session: self.session,
            expected_output_tokens: self.expected_output_tokens,
        }
    }

    pub(super) fn pods(&self) -> Arc<Vec<Arc<Pod>>> {
        let all = self.pool.pods();
        let pods = match &self.pin {
            Some(pod) if all.iter().any(|it| Arc::ptr_eq(it, pod)) => Arc::new(vec![Arc::clone(pod)]),
            _ => all,
        };
        match &self.among {
            Some(few) => Arc::new(pods.iter().filter(|pod| (few.among)(pod)).cloned().collect()),
            None => pods,
        }
    }

    /// How full the pods are that could have it; `None` where none is in use.
    pub fn saturation(&self, now: Instant) -> Option<Saturation> {
        Saturation::of(&self.pool, &self.pods(), &self.route.served_model, now)
    }

    /// Why it is to be refused, if it is one that may be and its pool is full. Nobody else asks how full that is.
    pub fn shed(&self) -> Option<Shed> {
        let full = if self.priority.is_sheddable() { self.saturation(clock::now()) } else { None };
        let saturation = full.filter(Saturation::is_full)?;
        Some(Shed { pool: Name::from(self.pool.name()), saturation, priority: self.priority })
    }

    /// Whether there is a pod that it was not sent to yet.
    pub fn leaves_a_pod(&self, tried: &Tried) -> bool {
        self.pods().iter().any(|pod| !tried.contains(pod))
    }

    /// Chooses a pod and reserves it in one step under the pool's gate, so that simultaneous picks see each other.
    ///
    /// # Errors
    /// Why no pod can take it.
    pub fn reserve(&self, house: &House, policy: &ListenerPolicy, tried: &Tried) -> Result<Pick, NoPod> {
        let began = clock::now();
        let pods = self.pods();
        let scene = Scene { pool: &self.pool, pods: &pods, now: began };
        let question = self.question();
        // While nobody waits, a pod at which prompts wait may yet be the best: it holds this one, and is done with those sooner
        // than others would have computed it.
        let spare = if house.waiting.has_line(&self.pool) { Spare::Full } else { Spare::Crowded };
        let gate = self.pool.gate();
        let tried = (tried, spare);
        let verdict = scheduler::pick_with_room(&policy.scheduler, &scene, &question, tried, &mut clock::rng())?;
        let course = Course::begin(&self.pool, &verdict.pod, verdict.send, began);
        drop(gate);
        house.prefix.insert(verdict.pod.slot, self.chain.blocks());
        let took = clock::now().saturating_duration_since(began);
        Ok(Pick { verdict, course, bell: Bell::new(&house.waiting, &self.pool), took })
    }

    /// The pod that would be chosen if all of `tried` failed; nothing is reserved there.
    pub fn next_best(&self, policy: &ListenerPolicy, tried: &Tried) -> Option<Arc<Pod>> {
        let pods = self.pods();
        let scene = Scene { pool: &self.pool, pods: &pods, now: clock::now() };
        let verdict = scheduler::pick(&policy.scheduler, &scene, &self.question(), tried, &mut clock::rng());
        verdict.ok().map(|verdict| verdict.pod)
    }

    /// How long `pod` should take from the first token to the last, by what it has shown.
    pub fn generation_due(&self, pod: &Pod) -> Duration {
        let itl_ms = pod.speed.pace(self.pool.pace()).itl_ms(pod.ledger.in_flight() as f64);
        Duration::try_from_secs_f64(f64::from(self.expected_output_tokens) * itl_ms / 1e3).unwrap_or_default()
    }

    /// It went to `pod` instead of the one picked: its place is there.
    pub fn went_to(&self, house: &House, pick: &mut Pick, pod: &Arc<Pod>) {
        let send = self.question().send(pod.slot);
        let gate = self.pool.gate();
        pick.course = Course::begin(&self.pool, pod, send, pick.course.sent_at());
        drop(gate);
        pick.verdict.pod = Arc::clone(pod);
        house.prefix.insert(pod.slot, self.chain.blocks());
    }

    /// An answer of `pod`, to which it was sent at `sent`, came to its end: what was believed to be cached there, for
    /// comparison with what it found.
    pub fn compare(&self, house: &House, pod: &Pod, usage: Option<Usage>, sent: Instant) {
        let held = self.hits.held(pod.slot);
        if held == 0 {
            return;
        }
        let prompt_tokens = usage.and_then(|usage| usage.prompt_tokens).unwrap_or(self.prompt_tokens);
        let share = (held * BLOCK_BYTES) as f32 / self.prompt_bytes.max(1) as f32;
        let claim = Claim { tokens: prompt_tokens as f32 * share.min(1.0), sent };
        house.prefix.answered(pod.slot, claim, usage.and_then(|usage| usage.cached_tokens), clock::now());
    }

    /// The same choice, explained and not made.
    pub fn explain(&self, policy: &ListenerPolicy, now: Instant) -> scheduler::Explanation {
        let pods = self.pods();
        let scene = Scene { pool: &self.pool, pods: &pods, now };
        scheduler::explain(&policy.scheduler, &scene, &self.question(), &Tried::none(), &mut clock::rng())
    }
}

/// Whether all pods have said what they serve, and this is not among it. Who waited for it would wait in vain.
fn served_by_none(pool: &PoolState, route: &Route) -> bool {
    let pods = pool.pods();
    !pods.is_empty() && pods.iter().all(|pod| pod.serves(&route.served_model) == Some(false))
}

fn unknown(house: &House, policy: &ListenerPolicy, asked: String) -> Rejection {
    Rejection::UnknownModel(UnknownModel { asked, served: house.served_names(policy) })
}

/// What the client allows, or what answers of this pool have, whichever is less; over all its choices.
fn expected_output(pool: &PoolState, ask: &Ask) -> u32 {
    if !ask.endpoint.generates() {
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
    let usual = pool.expected_output_tokens() as u32;
    usual.min(ask.max_tokens.unwrap_or(u32::MAX)).saturating_mul(ask.choices.unwrap_or(1).max(1))
}

fn opening_key(ask: &Ask, body: &[u8]) -> Option<u64> {
    let spans = ask.opening(body);
    let pieces: SmallVec<[&[u8]; 2]> = spans.into_iter().filter_map(|span| body.get(span)).collect();
    (!pieces.is_empty()).then(|| key_of(&pieces.concat()))
}
