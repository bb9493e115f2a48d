//! Who waits, and who is next: the line of a pool in which requests stand that cannot be served yet.
//!
//! Strict between priorities, but for the shares that an operator guarantees; within a priority tenants take turns by
//! tokens (deficit round robin, [`turns`]); within a tenant who is due first comes first, which is who came first unless
//! somebody gave a deadline. A request stands in a *lane* of its pool: all in one lane can be served by the same pods, and
//! who stands in a lane that is shut is passed over, so that nobody waits behind one who waits for something else.
//!
//! Data only: it knows no pods, wakes nobody and reads no clock, so that the lab can play it. Whoever holds it says which
//! lanes are open and tells it who went ([`Line::take`]) or left ([`Line::leave`]).

mod drain;
mod queue;
mod room;
mod turns;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

pub use self::room::Full;
use self::{queue::Queue, room::Room};
use crate::config::Waiting;

/// What stands in the line under one number.
pub type Id = u64;

/// A request about to stand in line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<L> {
    /// Its pool's name.
    pub pool: Arc<str>,
    /// Which pods will do, as far as that differs between requests of one pool.
    pub lane: L,
    /// Whose turn it takes.
    pub tenant: Arc<str>,
    /// Higher comes first.
    pub priority: i32,
    /// What it costs its tenant: prompt tokens to be computed, and those of the expected answer.
    pub tokens: u32,
    /// What it holds in memory meanwhile.
    pub bytes: u64,
    /// When it will be too late for it.
    pub due: Instant,
}

/// What stands before a request that would come now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// How many.
    pub requests: usize,
    /// Their tokens.
    pub tokens: u64,
}

/// It stands in line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered<L> {
    /// Under this number.
    pub id: Id,
    /// These had to make room for it and are in line no more.
    pub pushed_out: Vec<(Id, Entry<L>)>,
}

/// The lines of all pools, under one bound.
#[derive(Debug)]
pub struct Line<L> {
    entries: HashMap<Id, Entry<L>>,
    queues: BTreeMap<Arc<str>, Queue<L>>,
    room: Room,
    next: Id,
}

impl<L> Default for Line<L> {
    fn default() -> Self {
        Self { entries: HashMap::new(), queues: BTreeMap::new(), room: Room::default(), next: 0 }
    }
}

impl<L: Ord + Clone> Line<L> {
    /// `entry` stands in line from `now` on, where `terms` leave room for it; perhaps in the place of others that matter
    /// less.
    ///
    /// # Errors
    /// What there is too much of.
    pub fn enter(&mut self, entry: Entry<L>, terms: &Waiting, now: Instant) -> Result<Entered<L>, Full> {
        let pushed_out = self.room.make(&entry, terms, &self.entries)?;
        let pushed_out = pushed_out.into_iter().filter_map(|id| Some((id, self.leave(id)?))).collect();
        let id = self.next;
        self.next += 1;
        self.room.add(&entry);
        self.queues.entry(Arc::clone(&entry.pool)).or_default().add(id, &entry, terms, now);
        self.entries.insert(id, entry);
        Ok(Entered { id, pushed_out })
    }

    /// Stands again where it stood: it was taken and not served after all. There may be one more then than `terms` allow.
    pub fn enter_again(&mut self, id: Id, entry: Entry<L>, terms: &Waiting, now: Instant) {
        if self.entries.contains_key(&id) {
            return;
        }
        self.room.add(&entry);
        self.queues.entry(Arc::clone(&entry.pool)).or_default().add_again(id, &entry, terms, now);
        self.entries.insert(id, entry);
    }

    /// Who of `pool` is next, of those whose lane is open; it stays in line. Each lane is asked about once at most.
    pub fn next(&mut self, pool: &str, open: impl FnMut(&L) -> bool) -> Option<Id> {
        self.queues.get_mut(pool)?.next(open)
    }

    /// `id` goes on to a pod: its tenant has had that turn.
    pub fn take(&mut self, id: Id, now: Instant) -> Option<Entry<L>> {
        let entry = self.entries.remove(&id)?;
        self.room.give_back(&entry);
        if let Some(queue) = self.queues.get_mut(&entry.pool) {
            queue.take(id, &entry, now);
        }
        Some(entry)
    }

    /// `id` leaves without having been served.
    pub fn leave(&mut self, id: Id) -> Option<Entry<L>> {
        let entry = self.entries.remove(&id)?;
        self.room.give_back(&entry);
        if let Some(queue) = self.queues.get_mut(&entry.pool) {
            queue.leave(id, &entry);
        }
        Some(entry)
    }

    /// Those for whom it is too late at `now`; they stay in line.
    pub fn overdue(&self, now: Instant) -> Vec<Id> {
        let mut ids: Vec<_> = self.entries.iter().filter(|(_, it)| it.due <= now).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// What would stand before `entry`, if those who are there took their turns and nobody else came.
    pub fn ahead(&self, entry: &Entry<L>) -> Ahead {
        self.queues.get(&entry.pool).map(|queue| queue.ahead(entry)).unwrap_or_default()
    }

    /// How long `tokens` of `pool` take to be admitted, at the pace at which those before them were; `None` until that was
    /// seen for long enough.
    pub fn wait_for(&self, pool: &str, tokens: u64, now: Instant) -> Option<Duration> {
        self.queues.get(pool)?.wait_for(tokens, now)
    }

    /// Forgets what was learned of `pool`, which is gone. Who stands in its line still has to leave.
    pub fn forget(&mut self, pool: &str) {
        if self.queues.get(pool).is_some_and(Queue::is_empty) {
            self.queues.remove(pool);
        }
    }

    /// How many wait for `pool`.
    pub fn waiting_for(&self, pool: &str) -> usize {
        self.queues.get(pool).map_or(0, Queue::len)
    }

    /// What waits for `pool`, by priority, the highest first: how many requests, with how many tokens.
    pub fn bands(&self, pool: &str) -> Vec<(i32, Ahead)> {
        self.queues.get(pool).map(Queue::bands).unwrap_or_default()
    }

    /// The request under `id`, if it is in line.
    pub fn entry(&self, id: Id) -> Option<&Entry<L>> {
        self.entries.get(&id)
    }

    /// All that are in line, in no order.
    pub fn entries(&self) -> impl Iterator<Item = (Id, &Entry<L>)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    /// How many wait in all.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What those who wait hold in memory.
    pub fn bytes(&self) -> u64 {
        self.room.bytes()
    }
}

#[cfg(test)]
mod tests;
