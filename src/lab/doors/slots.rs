//! `slots`: a fixed number of requests for each pod; the others wait in one line, first come, first served.
//!
//! The oldest rule there is, and what most proxies can be told. The number is the Inference Extension's default for its own
//! concurrency detector.

use std::collections::VecDeque;

use super::{Arrival, Door, PAUSE_MS, Sight, Word};

/// Requests at each pod (`maxConcurrency`).
const EACH: usize = 100;

/// How long one waits at most, and how many do: as in `gie`.
const TTL_MS: f64 = 60_000.0;
const MOST: usize = 5_000;

pub(super) fn make() -> Box<dyn Door> {
    Box::new(Slots::default())
}

#[derive(Debug, Default)]
struct Slots {
    line: VecDeque<(u32, f64)>,
    /// Who found the line full.
    turned_away: VecDeque<u32>,
}

impl Door for Slots {
    fn came(&mut self, arrival: Arrival, _: &Sight<'_>) {
        if self.line.len() < MOST {
            self.line.push_back((arrival.nth, arrival.at_ms));
        } else {
            self.turned_away.push_back(arrival.nth);
        }
    }

    fn gone(&mut self, nth: u32) {
        self.line.retain(|(other, _)| *other != nth);
    }

    fn next(&mut self, sight: &Sight<'_>) -> Option<Word> {
        if let Some(nth) = self.turned_away.pop_front() {
            return Some(Word::Refuse(nth, PAUSE_MS));
        }
        let &(nth, at_ms) = self.line.front()?;
        let there: u64 = sight.pods.iter().map(|pod| pod.ledger.in_flight()).sum();
        let word = if sight.now_ms - at_ms >= TTL_MS {
            Word::Refuse(nth, PAUSE_MS)
        } else if there < (EACH * sight.pods.len()) as u64 {
            Word::Enter(nth)
        } else {
            return None;
        };
        self.line.pop_front();
        Some(word)
    }

    fn alarm_ms(&self) -> f64 {
        self.line.front().map_or(f64::INFINITY, |(_, at_ms)| at_ms + TTL_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::bench::{Hall, all, arrival},
        *,
    };

    #[test]
    fn a_place_that_is_given_back_goes_to_who_came_first() {
        let hall = Hall::new(1);
        let mut door = make();
        let mut there: Vec<_> = (0..100).map(|_| hall.sent(0, 10)).collect();
        for (nth, priority) in [(0, -1), (1, 5), (2, 0)] {
            door.came(arrival(nth, (0, priority), f64::from(nth)), &hall.at(f64::from(nth)));
        }
        assert_eq!(all(&mut *door, &hall.at(3.0)), []);
        door.gone(0);
        there.pop();
        assert_eq!(door.next(&hall.at(4.0)), Some(Word::Enter(1)), "whatever it says of itself");
        there.push(hall.sent(0, 10));
        assert_eq!((door.next(&hall.at(5.0)), door.alarm_ms()), (None, 60_002.0));
        assert_eq!(all(&mut *door, &hall.at(60_002.0)), [Word::Refuse(2, PAUSE_MS)]);
    }

    #[test]
    fn the_line_has_an_end() {
        let hall = Hall::new(1);
        let _full: Vec<_> = (0..100).map(|_| hall.sent(0, 10)).collect();
        let mut door = make();
        (0..5_001).for_each(|nth| door.came(arrival(nth, (0, 0), 0.0), &hall.at(0.0)));
        assert_eq!(all(&mut *door, &hall.at(0.0)), [Word::Refuse(5_000, PAUSE_MS)]);
    }
}
