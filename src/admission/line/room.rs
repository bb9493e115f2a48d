//! How much may wait, in all and of one tenant; and who makes room where there is none.
//!
//! Who matters more takes the place of who matters least, the newest first, because it has waited least in vain. Among
//! equals a tenant with few in line takes a place of the one with the most, so that nobody fills the line for others.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use super::{Entry, Id};
use crate::config::Waiting;

/// At most so many leave for one newcomer: who needs more room than that, by its bytes, is no bargain.
const MOST_PUSHED_OUT: usize = 8;

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// As many wait as may, or with as many bytes.
    Line,
    /// As many of this tenant's do.
    Tenant,
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    requests: usize,
    bytes: u64,
}

/// What is held, in all and by whom. A tenant of which nothing waits is not remembered.
#[derive(Debug, Default)]
pub(super) struct Room {
    all: Held,
    tenants: HashMap<Arc<str>, Held>,
}

impl Held {
    fn has_room(self, bytes: u64, (most, most_bytes): (usize, u64)) -> bool {
        self.requests < most && self.bytes.saturating_add(bytes) <= most_bytes
    }

    fn add(&mut self, bytes: u64) {
        self.requests += 1;
        self.bytes += bytes;
    }

    fn give_back(&mut self, bytes: u64) {
        self.requests = self.requests.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Room {
    pub(super) fn bytes(&self) -> u64 {
        self.all.bytes
    }

    pub(super) fn add<L>(&mut self, entry: &Entry<L>) {
        self.all.add(entry.bytes);
        self.tenants.entry(Arc::clone(&entry.tenant)).or_default().add(entry.bytes);
    }

    pub(super) fn give_back<L>(&mut self, entry: &Entry<L>) {
        self.all.give_back(entry.bytes);
        if let Some(held) = self.tenants.get_mut(&entry.tenant) {
            held.give_back(entry.bytes);
            if held.requests == 0 {
                self.tenants.remove(&entry.tenant);
            }
        }
    }

    /// Who has to leave so that `entry` may come: nobody, as a rule.
    pub(super) fn make<L>(
        &self,
        entry: &Entry<L>,
        terms: &Waiting,
        all: &HashMap<Id, Entry<L>>,
    ) -> Result<Vec<Id>, Full> {
        let (most, most_own) = ((terms.requests, terms.bytes.0), (terms.tenant_requests, terms.tenant_bytes.0));
        let (mut held, mut own) = (self.all, self.held_by(&entry.tenant));
        let mut leaving: Vec<Id> = Vec::new();
        loop {
            let crowded = !own.has_room(entry.bytes, most_own);
            if !crowded && held.has_room(entry.bytes, most) {
                return Ok(leaving);
            }
            let full = if held.has_room(entry.bytes, most) { Full::Tenant } else { Full::Line };
            if leaving.len() >= MOST_PUSHED_OUT {
                return Err(full);
            }
            let whose = if crowded { Full::Tenant } else { Full::Line };
            let (id, victim) = self.least(entry, whose, all, &leaving).ok_or(full)?;
            held.give_back(victim.bytes);
            if victim.tenant == entry.tenant {
                own.give_back(victim.bytes);
            }
            leaving.push(id);
        }
    }

    /// Who matters least of those that may be pushed out for `entry` and are not yet: of its own tenant's, or of all.
    fn least<'a, L>(
        &self,
        entry: &Entry<L>,
        whose: Full,
        all: &'a HashMap<Id, Entry<L>>,
        leaving: &[Id],
    ) -> Option<(Id, &'a Entry<L>)> {
        let own = self.held_by(&entry.tenant).requests;
        let gives_way = |victim: &Entry<L>| match whose {
            Full::Tenant => victim.tenant == entry.tenant && victim.priority < entry.priority,
            Full::Line if victim.priority == entry.priority => self.held_by(&victim.tenant).requests > own + 1,
            Full::Line => victim.priority < entry.priority,
        };
        let may = all.iter().filter(|(id, victim)| gives_way(victim) && !leaving.contains(id));
        let rank = |(id, victim): &(&Id, &Entry<L>)| {
            (victim.priority, Reverse(self.held_by(&victim.tenant).requests), Reverse(**id))
        };
        may.min_by_key(rank).map(|(id, victim)| (*id, victim))
    }

    fn held_by(&self, tenant: &str) -> Held {
        self.tenants.get(tenant).copied().unwrap_or_default()
    }
}
