//! What callers may use up: reserved before a request goes anywhere, settled when it is known what it took.
//!
//! A request counts in up to four scopes: everybody's, its model's, its tenant's and its key's. It is reserved in all of
//! them or in none, under all their locks at once, which are taken in that order and held for as long as it takes to add
//! up: nobody slips past, and nothing is held across a wait. What is reserved is what it will likely take; what it took
//! beyond that is debt that later requests wait for.
//!
//! It reads no clock and knows no price table: who calls says what time it is and what a request may cost.

mod bucket;
mod plan;
mod refusal;
mod saved;
mod scope;
mod together;
mod window;

#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use dashmap::DashMap;
use smallvec::SmallVec;

pub use plan::{Counted, Plan};
pub use refusal::{Limit, Refusal, Relief, Room, Scope, Standing};
pub use saved::Saved;
pub use window::rfc3339;

use crate::config::{Money, Quota};
use scope::{Meters, Taken};

/// Scopes counted at once: ten times the keys that a large fleet has, at some 400 bytes each.
const MOST_SCOPES: usize = 100_000;

/// Fewer are not worth a look for idle ones.
const WORTH_SWEEPING: usize = 1_024;

/// A point in time, by both clocks: what leaks goes by the one, what begins anew at midnight by the other.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The clock that never goes back.
    pub at: Instant,
    /// The clock on the wall, since 1970.
    pub unix: Duration,
}

/// What a request will likely take. By default it counts as a request and takes nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Tokens of its prompt, as estimated.
    pub input: u64,
    /// How many more they may be: held, and never a reason to say that it is too large.
    pub spare: u64,
    /// Tokens of its answer.
    pub output: u64,
    /// What they cost; `None` if its model costs nothing.
    pub cost: Option<Money>,
}

/// What it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// 1, or 0 if nothing of it went anywhere.
    pub requests: u64,
    /// Tokens of its prompt.
    pub input: u64,
    /// Tokens of its answer.
    pub output: u64,
    /// What they cost.
    pub cost: Money,
}

/// Everybody's counts. They outlive every configuration: limits come with each request.
#[derive(Debug)]
pub struct Counts {
    scopes: DashMap<Scope, Arc<Tab>>,
    /// As many scopes as when idle ones are looked for.
    sweep_at: AtomicUsize,
    most: usize,
}

/// One scope's counts.
#[derive(Debug)]
struct Tab {
    scope: Scope,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    meters: Meters,
    /// As the last request brought it.
    quota: Arc<Quota>,
    /// Whether the configuration names this scope.
    named: bool,
}

/// What one request holds. Dropped unsettled, nothing of it happened.
#[derive(Debug)]
pub struct Hold {
    taken: SmallVec<[(Arc<Tab>, Taken); 4]>,
}

/// A request that was let in.
#[derive(Debug)]
pub struct Granted {
    /// What it holds until it is settled.
    pub hold: Hold,
    /// What is left.
    pub standing: Standing,
    /// Who would have refused it, if that were not only counted.
    pub would: SmallVec<[Refusal; 1]>,
}

/// Whether limits are kept here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They are.
    Enforce,
    /// Somebody else does; here it is counted, so that there is something to go by when nobody does.
    Count,
    /// They are, but nothing is taken: somebody only asks what would be.
    Look,
}

impl Default for Counts {
    fn default() -> Self {
        Self::at_most(MOST_SCOPES)
    }
}

impl Counts {
    fn at_most(most: usize) -> Self {
        Self { scopes: DashMap::new(), sweep_at: AtomicUsize::new(WORTH_SWEEPING.min(most)), most }
    }

    /// Takes `demand` in every scope of `plan`, or in none.
    ///
    /// # Errors
    /// The limit that lets it wait longest.
    pub fn reserve(&self, plan: &Plan, demand: &Demand, mode: Mode, now: &Moment) -> Result<Granted, Box<Refusal>> {
        let mut tabs: SmallVec<[_; 4]> = plan.scopes.iter().map(|it| (self.tab(it, now), it)).collect();
        // In one order for all, and each once, so that no two requests wait for each other, nor one for itself. Only an
        // overflow is out of order, or there twice.
        tabs.sort_by(|(one, _), (other, _)| one.scope.cmp(&other.scope));
        tabs.dedup_by(|(one, _), (other, _)| Arc::ptr_eq(one, other));
        let mut locked: SmallVec<[(MutexGuard<'_, State>, &Counted); 4]> = SmallVec::new();
        for (tab, counted) in &tabs {
            let mut state = tab.lock();
            if !Arc::ptr_eq(&state.quota, &counted.quota) {
                state.quota = Arc::clone(&counted.quota);
            }
            state.named = counted.named;
            state.meters.flow(&counted.quota, now);
            locked.push((state, counted));
        }
        let (mut worst, mut would) = (None::<Refusal>, SmallVec::<[Refusal; 1]>::new());
        let mut lets: SmallVec<[bool; 4]> = SmallVec::new();
        for (state, counted) in &locked {
            let kept = mode != Mode::Count || !counted.quota.enforce;
            let short = if kept { state.meters.short(&counted.quota, demand, now) } else { None };
            lets.push(short.is_none());
            let Some(scope::Short { limit, size, relief }) = short else { continue };
            let scope = counted.scope.clone();
            let refusal = Refusal { scope, limit, size, relief, standing: Standing::default() };
            if !counted.quota.enforce {
                would.push(refusal);
            } else if worst.as_ref().is_none_or(|other| outlasts(relief, other.relief)) {
                worst = Some(refusal);
            }
        }
        let mut standing = Standing::default();
        let mut taken = SmallVec::new();
        for (((mut state, counted), lets), (tab, _)) in locked.into_iter().zip(lets).zip(tabs.iter()) {
            // What would have been refused would not have been used either.
            if worst.is_none() && lets && mode != Mode::Look {
                taken.push((Arc::clone(tab), state.meters.take(&counted.quota, demand)));
            }
            if counted.quota.enforce {
                state.meters.stand(&counted.quota, &mut standing);
            }
        }
        match worst {
            Some(refusal) => Err(Box::new(Refusal { standing, ..refusal })),
            None => Ok(Granted { hold: Hold { taken }, standing, would }),
        }
    }

    /// The counts of a scope, found or begun.
    fn tab(&self, counted: &Counted, now: &Moment) -> Arc<Tab> {
        if let Some(tab) = self.scopes.get(&counted.scope) {
            return Arc::clone(&tab);
        }
        if self.scopes.len() >= self.sweep_at.load(Relaxed) {
            self.sweep(now);
        }
        // Whoever is one too many is counted with all others of whom there are too many, and not left uncounted.
        let scope = if self.scopes.len() < self.most { counted.scope.clone() } else { Scope::Overflow };
        let begun = || {
            let state = State { meters: Meters::default(), quota: Arc::clone(&counted.quota), named: counted.named };
            Arc::new(Tab { scope: scope.clone(), state: Mutex::new(state) })
        };
        Arc::clone(&self.scopes.entry(scope.clone()).or_insert_with(begun))
    }

    /// Forgets scopes of which nothing is known that matters.
    pub fn sweep(&self, now: &Moment) {
        self.scopes.retain(|_, tab| {
            // Who holds it will settle there.
            if Arc::strong_count(tab) > 1 {
                return true;
            }
            let mut state = tab.lock();
            let quota = Arc::clone(&state.quota);
            state.meters.flow(&quota, now);
            !state.meters.is_idle()
        });
        // The next look is worth its while when twice as many have come.
        let next = (self.scopes.len() * 2).clamp(WORTH_SWEEPING.min(self.most), self.most);
        self.sweep_at.store(next, Relaxed);
    }

    /// How many scopes there are.
    pub fn len(&self) -> usize {
        self.scopes.len()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.scopes.is_empty()
    }

    /// Gives each scope with what is used of each of its limits, and whether the configuration names it.
    pub fn each(&self, now: &Moment, mut take: impl FnMut(&Scope, bool, &Quota, &[(Limit, f64, u64)])) {
        for tab in self.all() {
            let mut state = tab.lock();
            let quota = Arc::clone(&state.quota);
            state.meters.flow(&quota, now);
            let used: SmallVec<[_; 7]> = state.meters.used(&quota).collect();
            let named = state.named;
            drop(state);
            take(&tab.scope, named, &quota, &used);
        }
    }

    /// All tabs as they are now, so that nobody is kept out of the map while they are looked at.
    fn all(&self) -> Vec<Arc<Tab>> {
        self.scopes.iter().map(|it| Arc::clone(it.value())).collect()
    }
}

/// Whether one relief takes longer than another.
fn outlasts(one: Relief, other: Relief) -> bool {
    let lasts = |relief| match relief {
        Relief::Never { .. } => Duration::MAX,
        Relief::After(wait) | Relief::Anew { wait, .. } => wait,
        Relief::WhenOneEnds | Relief::WhenKnown => Duration::ZERO,
    };
    lasts(one) > lasts(other)
}

impl Tab {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold {
    /// It took `spent`. What is left of the hold is nothing, so that this happens once.
    pub fn settle(mut self, spent: &Spent, now: &Moment) {
        for (tab, taken) in self.taken.drain(..) {
            let mut state = tab.lock();
            let quota = Arc::clone(&state.quota);
            state.meters.flow(&quota, now);
            state.meters.settle(&taken, spent);
        }
    }

    /// Whether it holds nothing anywhere.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        for (tab, taken) in self.taken.drain(..) {
            tab.lock().meters.settle(&taken, &Spent::default());
        }
    }
}
