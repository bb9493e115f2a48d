//! `shed`: nobody waits. While the pool is full by the gateway's own account, what is sheddable is refused at once; all
//! else goes to the pods.

use std::collections::VecDeque;

use super::{Arrival, Door, Sight, Word};
use crate::{fleet::Saturation, lab::setup::MODEL, routing::Priority};

pub(super) fn make() -> Box<dyn Door> {
    Box::new(Shed::default())
}

#[derive(Debug, Default)]
struct Shed {
    came: VecDeque<Arrival>,
}

impl Door for Shed {
    fn came(&mut self, arrival: Arrival, _: &Sight<'_>) {
        self.came.push_back(arrival);
    }

    fn gone(&mut self, _: u32) {}

    fn next(&mut self, sight: &Sight<'_>) -> Option<Word> {
        let Arrival { nth, client, .. } = self.came.pop_front()?;
        let full = || Saturation::of(sight.pool, sight.pods, MODEL, sight.now).filter(Saturation::is_full);
        let full = Some(client.priority).filter(|it| Priority(*it).is_sheddable()).and_then(|_| full());
        Some(full.map_or(Word::Enter(nth), |full| Word::Refuse(nth, full.pause().as_secs_f64() * 1e3)))
    }

    fn alarm_ms(&self) -> f64 {
        f64::INFINITY
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::bench::{Hall, all, arrival},
        *,
    };

    #[test]
    fn only_what_is_sheddable_is_refused_and_only_while_the_pool_is_full() {
        let hall = Hall::new(1);
        let mut door = make();
        let full = hall.sent(0, 25_000);
        for (nth, priority) in [-1, 0, 1].into_iter().enumerate() {
            door.came(arrival(u32::try_from(nth).unwrap(), (0, priority), 0.0), &hall.at(0.0));
        }
        // 25,000 tokens at 0.05 ms are 1.25 s: come again after 2.
        assert_eq!(all(&mut *door, &hall.at(0.0)), [Word::Refuse(0, 2_000.0), Word::Enter(1), Word::Enter(2)]);
        drop(full);
        door.came(arrival(3, (0, -1), 1.0), &hall.at(1.0));
        assert_eq!(all(&mut *door, &hall.at(1.0)), [Word::Enter(3)]);
    }
}
