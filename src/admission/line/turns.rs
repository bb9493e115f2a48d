//! One band: tenants take turns. Each turn a tenant may spend a quantum of tokens, and what a request costs beyond it the
//! tenant owes and pays with the turns that follow, so that over time all who wait get the same, however large theirs are.
//!
//! Deficit round robin in the form of `FlowQueue-CoDel` (RFC 8290): who comes anew is served before those who have had a turn,
//! once, so that whoever asks little hardly waits. Who owes nothing and has nobody waiting is forgotten.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use super::{Ahead, Entry, Id};

/// What a tenant may spend each turn, tokens: a prompt as SGLang's gateway takes unknown ones to be, so that most requests
/// are paid within one turn. It bounds how far one tenant is ahead of another, not what they get.
const QUANTUM: i64 = 1_024;

/// Tenants that owe something and wait for nothing, at most: more than a gateway's keys as a rule, and then the debts are
/// forgiven.
const MOST_DEBTORS: usize = 1_024;

/// Which lanes are open, each asked about once.
pub(super) struct Open<'a, L> {
    ask: &'a mut dyn FnMut(&L) -> bool,
    known: BTreeMap<L, bool>,
}

impl<'a, L: Ord + Clone> Open<'a, L> {
    pub(super) fn new(ask: &'a mut dyn FnMut(&L) -> bool) -> Self {
        Self { ask, known: BTreeMap::new() }
    }

    fn is(&mut self, lane: &L) -> bool {
        if let Some(known) = self.known.get(lane) {
            return *known;
        }
        let open = (self.ask)(lane);
        self.known.insert(lane.clone(), open);
        open
    }
}

/// One tenant's requests.
#[derive(Debug)]
struct Tenant<L> {
    /// What it may still spend this turn; what it owes, below 0.
    credit: i64,
    /// By lane, who is due first first, with what it costs.
    lanes: BTreeMap<L, BTreeMap<(Instant, Id), u32>>,
    all: Ahead,
}

impl<L> Default for Tenant<L> {
    fn default() -> Self {
        Self { credit: QUANTUM, lanes: BTreeMap::new(), all: Ahead::default() }
    }
}

impl<L: Ord + Clone> Tenant<L> {
    /// Its first request whose lane is open, and the cost.
    fn head(&self, open: &mut Open<'_, L>) -> Option<(Id, u32)> {
        let firsts = self.lanes.iter().filter_map(|(lane, requests)| Some((lane, requests.first_key_value()?)));
        let open = firsts.filter(|(lane, _)| open.is(lane));
        open.min_by_key(|(_, (place, _))| **place).map(|(_, ((_, id), cost))| (*id, *cost))
    }

    fn remove(&mut self, id: Id, entry: &Entry<L>) {
        let Some(lane) = self.lanes.get_mut(&entry.lane) else { return };
        if lane.remove(&(entry.due, id)).is_some() {
            self.all = self.all.less(entry.tokens);
        }
        if lane.is_empty() {
            self.lanes.remove(&entry.lane);
        }
    }
}

impl Ahead {
    fn more(self, tokens: u32) -> Self {
        Self { requests: self.requests + 1, tokens: self.tokens + u64::from(tokens) }
    }

    fn less(self, tokens: u32) -> Self {
        Self { requests: self.requests.saturating_sub(1), tokens: self.tokens.saturating_sub(u64::from(tokens)) }
    }
}

/// The tenants of a band.
#[derive(Debug)]
pub(super) struct Turns<L> {
    tenants: HashMap<Arc<str>, Tenant<L>>,
    /// Those who came anew, and then those who have had a turn. A tenant is in one of both.
    fresh: VecDeque<Arc<str>>,
    round_robin: VecDeque<Arc<str>>,
    all: Ahead,
}

impl<L> Default for Turns<L> {
    fn default() -> Self {
        Self { tenants: HashMap::new(), fresh: VecDeque::new(), round_robin: VecDeque::new(), all: Ahead::default() }
    }
}

impl<L> Turns<L> {
    pub(super) fn all(&self) -> Ahead {
        self.all
    }
}

impl<L: Ord + Clone> Turns<L> {
    pub(super) fn add(&mut self, id: Id, entry: &Entry<L>) {
        if !self.tenants.contains_key(&entry.tenant) {
            self.fresh.push_back(Arc::clone(&entry.tenant));
        }
        let tenant = self.tenants.entry(Arc::clone(&entry.tenant)).or_default();
        let lane = tenant.lanes.entry(entry.lane.clone()).or_default();
        if lane.insert((entry.due, id), entry.tokens).is_none() {
            tenant.all = tenant.all.more(entry.tokens);
            self.all = self.all.more(entry.tokens);
        }
        self.forget_debtors();
    }

    pub(super) fn pay_back(&mut self, entry: &Entry<L>) {
        if let Some(tenant) = self.tenants.get_mut(&entry.tenant) {
            tenant.credit = (tenant.credit + i64::from(entry.tokens)).min(QUANTUM);
        }
    }

    /// Who is next, and what it costs.
    pub(super) fn next(&mut self, open: &mut Open<'_, L>) -> Option<(Id, u32)> {
        // Who has nobody in an open lane keeps its place, and neither spends nor earns.
        let mut shut = Vec::new();
        let found = self.next_fresh(open, &mut shut).or_else(|| {
            loop {
                match self.round(open, &mut shut) {
                    Ok(found) => break found,
                    Err(most) => self.earn(1 - most / QUANTUM),
                }
            }
        });
        while let Some(name) = shut.pop() {
            self.round_robin.push_front(name);
        }
        found
    }

    fn next_fresh(&mut self, open: &mut Open<'_, L>, shut: &mut Vec<Arc<str>>) -> Option<(Id, u32)> {
        while let Some(name) = self.fresh.pop_front() {
            let Some(tenant) = self.tenants.get(&name) else { continue };
            if tenant.all.requests == 0 || tenant.credit <= 0 {
                self.round_robin.push_back(name);
                continue;
            }
            match tenant.head(open) {
                Some(found) => {
                    self.fresh.push_front(name);
                    return Some(found);
                }
                None => shut.push(name),
            }
        }
        None
    }

    /// Goes round once: who may go, or else the most credit that one has who could, which is none.
    fn round(&mut self, open: &mut Open<'_, L>, shut: &mut Vec<Arc<str>>) -> Result<Option<(Id, u32)>, i64> {
        let mut most = None;
        for _ in 0..self.round_robin.len() {
            let Some(name) = self.round_robin.pop_front() else { break };
            let Some(tenant) = self.tenants.get(&name) else { continue };
            if tenant.all.requests > 0 {
                match tenant.head(open) {
                    None => {
                        shut.push(name);
                        continue;
                    }
                    Some(found) if tenant.credit > 0 => {
                        self.round_robin.push_front(name);
                        return Ok(Some(found));
                    }
                    Some(_) => most = most.max(Some(tenant.credit)),
                }
            }
            self.round_robin.push_back(name);
        }
        most.map_or(Ok(None), Err)
    }

    /// As many rounds pass at once as it takes until somebody has credit again: a large request must not cost as many
    /// rounds as it has quanta. Who has paid and wants nothing is forgotten.
    fn earn(&mut self, rounds: i64) {
        self.round_robin.retain(|name| {
            let Some(tenant) = self.tenants.get_mut(name) else { return false };
            tenant.credit = (tenant.credit + rounds * QUANTUM).min(QUANTUM);
            let stays = tenant.all.requests > 0 || tenant.credit <= 0;
            if !stays {
                self.tenants.remove(name);
            }
            stays
        });
    }

    pub(super) fn take(&mut self, id: Id, entry: &Entry<L>) {
        if let Some(tenant) = self.tenants.get_mut(&entry.tenant) {
            // What costs nothing would have no turn that ends.
            tenant.credit -= i64::from(entry.tokens.max(1));
        }
        self.remove(id, entry);
    }

    pub(super) fn leave(&mut self, id: Id, entry: &Entry<L>) {
        self.remove(id, entry);
        if self.tenants.get(&entry.tenant).is_some_and(|it| it.all.requests == 0 && it.credit >= QUANTUM) {
            self.forget(|name| *name == entry.tenant);
        }
    }

    fn remove(&mut self, id: Id, entry: &Entry<L>) {
        if let Some(tenant) = self.tenants.get_mut(&entry.tenant) {
            let before = tenant.all.requests;
            tenant.remove(id, entry);
            if tenant.all.requests < before {
                self.all = self.all.less(entry.tokens);
            }
        }
    }

    fn forget_debtors(&mut self) {
        if self.tenants.len() > self.all.requests + MOST_DEBTORS {
            let idle: BTreeSet<Arc<str>> =
                self.tenants.iter().filter(|(_, it)| it.all.requests == 0).map(|(name, _)| Arc::clone(name)).collect();
            self.forget(|name| idle.contains(name));
        }
    }

    fn forget(&mut self, which: impl Fn(&Arc<str>) -> bool) {
        self.tenants.retain(|name, _| !which(name));
        self.fresh.retain(|name| !which(name));
        self.round_robin.retain(|name| !which(name));
    }

    /// What would be served before `entry`: of its own tenant those that are due before it, of each other one no more than
    /// its own tenant is served until then.
    pub(super) fn ahead(&self, entry: &Entry<L>) -> Ahead {
        let own = self.tenants.get(&entry.tenant);
        let before = own.into_iter().flat_map(|tenant| tenant.lanes.values()).flatten();
        let before = before.filter(|((due, _), _)| *due <= entry.due);
        let own = before.fold(Ahead::default(), |sum, (_, tokens)| sum.more(*tokens));
        let turn = own.more(entry.tokens);
        let others = self.tenants.iter().filter(|(name, _)| **name != entry.tenant).map(|(_, it)| it.all);
        others.fold(own, |sum, it| Ahead {
            requests: sum.requests + it.requests.min(turn.requests),
            tokens: sum.tokens + it.tokens.min(turn.tokens),
        })
    }
}
