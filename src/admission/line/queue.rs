//! One pool's line: its bands, the highest priority first, and the share that a lower one is owed.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Ahead, Entry, Id,
    drain::Drain,
    turns::{Open, Turns},
};
use crate::config::{Share, Waiting};

/// No band is owed more, tokens: the longest prompt that models take. What it could not use for want of an open lane is not
/// saved up for later.
const MOST_OWED: f64 = 131_072.0;

/// Who waits for one pool.
#[derive(Debug)]
pub(super) struct Queue<L> {
    bands: BTreeMap<Reverse<i32>, Turns<L>>,
    /// The least that bands get of what is admitted.
    shares: Arc<[Share]>,
    /// What those have not had of it yet, in tokens, for as long as somebody waits there.
    owed: BTreeMap<i32, f64>,
    drain: Drain,
}

impl<L> Default for Queue<L> {
    fn default() -> Self {
        Self { bands: BTreeMap::new(), shares: [].into(), owed: BTreeMap::new(), drain: Drain::default() }
    }
}

impl<L> Queue<L> {
    pub(super) fn is_empty(&self) -> bool {
        self.bands.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.bands.values().map(|band| band.all().requests).sum()
    }

    pub(super) fn bands(&self) -> Vec<(i32, Ahead)> {
        self.bands.iter().map(|(Reverse(priority), band)| (*priority, band.all())).collect()
    }

    pub(super) fn wait_for(&self, tokens: u64, now: Instant) -> Option<Duration> {
        self.drain.wait_for(tokens, now)
    }
}

impl<L: Ord + Clone> Queue<L> {
    pub(super) fn add(&mut self, id: Id, entry: &Entry<L>, terms: &Waiting, now: Instant) {
        self.shares = Arc::clone(&terms.shares);
        self.drain.begins(now);
        self.bands.entry(Reverse(entry.priority)).or_default().add(id, entry);
    }

    /// What it cost its tenant is given back.
    pub(super) fn add_again(&mut self, id: Id, entry: &Entry<L>, terms: &Waiting, now: Instant) {
        self.add(id, entry, terms, now);
        if let Some(band) = self.bands.get_mut(&Reverse(entry.priority)) {
            band.pay_back(entry);
        }
    }

    pub(super) fn next(&mut self, mut open: impl FnMut(&L) -> bool) -> Option<Id> {
        let mut open = Open::new(&mut open);
        let owed = |priority: &i32, cost: u32| self.owed.get(priority).filter(|it| **it >= f64::from(cost)).copied();
        let mut first: Option<(f64, Id)> = None;
        for share in self.shares.iter() {
            let Some(band) = self.bands.get_mut(&Reverse(share.priority)) else { continue };
            let Some((id, cost)) = band.next(&mut open) else { continue };
            if let Some(owed) = owed(&share.priority, cost).filter(|owed| first.is_none_or(|(most, _)| *owed > most)) {
                first = Some((owed, id));
            }
        }
        if let Some((_, id)) = first {
            return Some(id);
        }
        self.bands.values_mut().find_map(|band| band.next(&mut open)).map(|(id, _)| id)
    }

    pub(super) fn take(&mut self, id: Id, entry: &Entry<L>, now: Instant) {
        let cost = f64::from(entry.tokens);
        for share in self.shares.iter() {
            if self.bands.contains_key(&Reverse(share.priority)) {
                let owed = self.owed.entry(share.priority).or_default();
                let had = if share.priority == entry.priority { cost } else { 0.0 };
                *owed = (*owed + cost * share.share.0 - had).clamp(0.0, MOST_OWED);
            }
        }
        self.drain.took(entry.tokens, now);
        if let Some(band) = self.bands.get_mut(&Reverse(entry.priority)) {
            band.take(id, entry);
        }
        self.tidy(entry.priority);
    }

    pub(super) fn leave(&mut self, id: Id, entry: &Entry<L>) {
        if let Some(band) = self.bands.get_mut(&Reverse(entry.priority)) {
            band.leave(id, entry);
        }
        self.tidy(entry.priority);
    }

    fn tidy(&mut self, priority: i32) {
        if self.bands.get(&Reverse(priority)).is_some_and(|band| band.all().requests == 0) {
            self.bands.remove(&Reverse(priority));
            self.owed.remove(&priority);
        }
        if self.bands.is_empty() {
            self.drain.ends();
        }
    }

    pub(super) fn ahead(&self, entry: &Entry<L>) -> Ahead {
        let mut ahead = Ahead::default();
        for (Reverse(priority), band) in &self.bands {
            let there = match priority.cmp(&entry.priority) {
                std::cmp::Ordering::Greater => band.all(),
                std::cmp::Ordering::Equal => band.ahead(entry),
                std::cmp::Ordering::Less => break,
            };
            ahead.requests += there.requests;
            ahead.tokens += there.tokens;
        }
        ahead
    }
}
