//! What would become of a request, without doing it: its route, what its limits leave, how full its pool is, its place in
//! line, its pod.

use std::{sync::Arc, time::Duration};

use super::{
    House, ListenerPolicy, Policy,
    decide::{Matter, Wishes},
    receipt::WaitsFor,
    rejection::{Rejection, shortened},
    spending,
};
use crate::{
    admission::{Caller, Refusal},
    clock,
    fleet::Saturation,
    openai::Ask,
    routing::{Priority, Route},
    scheduler,
};

/// What would become of a request, for `explain`.
///
/// # Errors
/// As the request itself would be refused.
pub fn explain(
    house: &House,
    (policy, listener): (&Policy, &ListenerPolicy),
    (ask, body): (&Ask, &[u8]),
    caller: &Arc<Caller>,
    wishes: Wishes<'_>,
) -> Result<Explained, Rejection> {
    if !ask.model.is_empty() && !caller.may_ask_for(&ask.model) {
        return Err(Rejection::ModelNotAllowed(shortened(&ask.model)));
    }
    let matter = Matter::new(house, listener, ask, body, Wishes { caller: Some(&**caller), ..wishes })?;
    let (now, limits) = (clock::now(), &policy.config.waiting);
    let refused = spending::would_refuse(house, policy, caller, &matter, (ask, body));
    let (explanation, saturation) = (matter.explain(listener, now), matter.saturation(now));
    let waits = matter.must_wait(house, limits, now).then(|| {
        let (ahead, expected) = house.waiting.before(&matter.pool, matter.asked(limits), limits.timeout);
        let waits_for = if saturation.is_some() { WaitsFor::Room } else { WaitsFor::Pod };
        Waits { waits_for: waits_for.name(), requests: ahead.requests, tokens: ahead.tokens, expected }
    });
    let full = matter.priority.is_sheddable() && saturation.is_some_and(|full| full.is_full());
    let shed = full && !matter.has_share(limits);
    let waits = waits.filter(|_| !shed);
    let (route, priority, caller) = (matter.route, matter.priority, Arc::clone(caller));
    Ok(Explained { caller, route, refused, saturation, priority, shed, waits, explanation })
}

/// A route and the choice of a pod, explained.
#[derive(Debug)]
pub struct Explained {
    /// Who asks.
    pub caller: Arc<Caller>,
    /// Where the request would go.
    pub route: Route,
    /// Which limit would refuse it, by the counts of this gateway.
    pub refused: Option<Box<Refusal>>,
    /// How full the pods are that could have it, if any is in use.
    pub saturation: Option<Saturation>,
    /// How much it matters where not all can be served.
    pub priority: Priority,
    /// Whether it is refused because it may be and they are full.
    pub shed: bool,
    /// Where it would stand in line, if it has to wait.
    pub waits: Option<Waits>,
    /// Which pod it would get, and every other with its terms.
    pub explanation: scheduler::Explanation,
}

/// A request's place in the line.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// `pod` or `room`.
    pub waits_for: &'static str,
    /// How many would go before it.
    pub requests: usize,
    /// Their prompts and answers.
    pub tokens: u64,
    /// How long those are likely to take, where that was measured.
    pub expected: Option<Duration>,
}
