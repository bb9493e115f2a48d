//! `line`: our own. The waiting line and the saturation that `serve` has, asked in the order in which its desk asks them.
//!
//! Below saturation nobody waits. Who comes to a full pool is refused if it is sheddable, else it stands in line, unless it
//! will be too late for it by the pace at which the line moves; then it is refused at once and told when to come again.
//! Whoever is next goes as soon as the pool is not full, and to a pod that is not.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::{Arrival, Door, Sight, Word};
use crate::{
    admission::line::{Entry, Id, Line},
    fleet::Saturation,
    lab::setup::{MODEL, POOL},
    routing::Priority,
};

pub(super) fn make() -> Box<dyn Door> {
    Box::new(Ours::default())
}

#[derive(Debug, Default)]
struct Ours {
    line: Line<()>,
    /// Where in the script those in line are, and under which numbers those are in line.
    asks: HashMap<Id, u32>,
    ids: HashMap<u32, Id>,
    dues: BTreeSet<(Instant, Id)>,
    refused: VecDeque<(u32, f64)>,
    /// When the run began.
    epoch: Option<Instant>,
}

/// Seconds that a refused client is told to wait, as milliseconds: whole ones, and no more than SDKs follow.
fn pause_ms(wait: Duration) -> f64 {
    wait.as_secs_f64().ceil().clamp(1.0, 60.0) * 1e3
}

impl Ours {
    fn forget(&mut self, id: Id, due: Instant) -> Option<u32> {
        self.dues.remove(&(due, id));
        let nth = self.asks.remove(&id)?;
        self.ids.remove(&nth);
        Some(nth)
    }

    fn refuse(&mut self, nth: u32, wait: Option<Duration>) {
        self.refused.push_back((nth, pause_ms(wait.unwrap_or_default())));
    }

    /// Who has waited too long.
    fn overdue(&mut self, now: Instant) {
        while let Some((due, id)) = self.dues.first().copied().filter(|(due, _)| *due <= now) {
            self.line.leave(id);
            let wait = self.line.wait_for(POOL, 0, now);
            if let Some(nth) = self.forget(id, due) {
                self.refuse(nth, wait);
            }
        }
    }
}

impl Door for Ours {
    fn came(&mut self, arrival: Arrival, sight: &Sight<'_>) {
        let Arrival { nth, client, tokens, bytes, .. } = arrival;
        self.epoch.get_or_insert_with(|| {
            sight.now.checked_sub(Duration::from_secs_f64(sight.now_ms / 1e3)).unwrap_or(sight.now)
        });
        let terms = sight.terms;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
        let prompt = tokens.saturating_sub(sight.pool.expected_output_tokens() as u32);
        let wanted = |ms: f64| Duration::try_from_secs_f64(ms / 1e3).ok();
        let first_token = wanted(client.wanted_ms).or(terms.first_token);
        let wanted = first_token.map(|it| sight.pool.spare(it, prompt)).into_iter().chain(wanted(client.patience_ms));
        let patience = wanted.fold(terms.timeout, Duration::min);
        let entry = Entry {
            pool: POOL.into(),
            lane: (),
            tenant: client.tenant.to_string().into(),
            priority: client.priority,
            tokens,
            bytes: bytes as u64,
            due: sight.now + patience,
        };
        if Priority(client.priority).is_sheddable()
            && let Some(full) = Saturation::of(sight.pool, sight.pods, MODEL, sight.now).filter(Saturation::is_full)
        {
            return self.refuse(nth, Some(full.pause()));
        }
        let ahead = self.line.ahead(&entry);
        let wait = self.line.wait_for(POOL, ahead.tokens, sight.now);
        if ahead.requests > 0 && wait.is_some_and(|wait| wait > patience) {
            return self.refuse(nth, wait);
        }
        let due = entry.due;
        match self.line.enter(entry, terms, sight.now) {
            Ok(entered) => {
                self.asks.insert(entered.id, nth);
                self.ids.insert(nth, entered.id);
                self.dues.insert((due, entered.id));
                for (id, gone) in entered.pushed_out {
                    if let Some(nth) = self.forget(id, gone.due) {
                        self.refuse(nth, wait);
                    }
                }
            }
            Err(_) => self.refuse(nth, wait),
        }
    }

    fn gone(&mut self, nth: u32) {
        if let Some(id) = self.ids.get(&nth).copied()
            && let Some(entry) = self.line.leave(id)
        {
            self.forget(id, entry.due);
        }
    }

    fn next(&mut self, sight: &Sight<'_>) -> Option<Word> {
        self.overdue(sight.now);
        if let Some((nth, pause_ms)) = self.refused.pop_front() {
            return Some(Word::Refuse(nth, pause_ms));
        }
        if self.line.is_empty() {
            return None;
        }
        let full = Saturation::of(sight.pool, sight.pods, MODEL, sight.now).is_none_or(|it| it.is_full());
        let id = self.line.next(POOL, |()| !full)?;
        let entry = self.line.take(id, sight.now)?;
        self.forget(id, entry.due).map(Word::Enter)
    }

    fn alarm_ms(&self) -> f64 {
        let due = self.dues.first().zip(self.epoch).map(|((due, _), epoch)| due.saturating_duration_since(epoch));
        // A little later than that, so that no rounding makes it a moment before.
        due.map_or(f64::INFINITY, |due| due.as_secs_f64() * 1e3 + 1e-3)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::bench::{Hall, all, arrival},
        *,
    };
    use crate::lab::script::Client;

    #[test]
    fn nobody_waits_below_saturation_and_at_it_who_matters_more_goes_first() {
        let hall = Hall::new(1);
        let mut door = make();
        // 25,000 tokens at 0.05 ms are 1.25 s: full.
        let full = hall.sent(0, 25_000);
        for (nth, who) in [(0, (1, 0)), (1, (1, 0)), (2, (2, 0)), (3, (1, 1))] {
            door.came(arrival(nth, who, 0.0), &hall.at(0.0));
            assert_eq!(all(&mut *door, &hall.at(0.0)), []);
        }
        door.gone(1);
        drop(full);
        assert_eq!(all(&mut *door, &hall.at(1.0)), [3, 2, 0].map(Word::Enter), "a tenant that came anew");
        door.came(arrival(4, (1, -1), 2.0), &hall.at(2.0));
        assert_eq!(all(&mut *door, &hall.at(2.0)), [Word::Enter(4)]);
    }

    #[test]
    fn who_has_waited_as_long_as_it_may_is_refused_then() {
        let hall = Hall::new(1);
        let mut door = make();
        let _full = hall.sent(0, 1_000_000);
        door.came(arrival(0, (1, 0), 0.0), &hall.at(0.0));
        // 0.95 of what it wants, less 300 ms at a pod, and 20 ms and 750 tokens at 0.05 ms of its own.
        let hurried = Client { wanted_ms: 3_000.0, ..Client::default() };
        door.came(Arrival { client: hurried, ..arrival(1, (1, 0), 0.0) }, &hall.at(0.0));
        assert!((door.alarm_ms() - 2_492.501).abs() < 1e-6, "{}", door.alarm_ms());
        assert_eq!(all(&mut *door, &hall.at(2_492.0)), []);
        let due_ms = door.alarm_ms();
        assert_eq!(all(&mut *door, &hall.at(due_ms)), [Word::Refuse(1, 1_000.0)]);
        assert_eq!(
            all(&mut *door, &hall.at(30_000.001)),
            [Word::Refuse(0, 1_000.0)],
            "the timeout of the configuration"
        );
        assert!(door.alarm_ms().is_infinite());
    }
}
