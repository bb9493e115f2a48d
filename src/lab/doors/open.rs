//! `open`: no door. What a gateway does that only chooses pods: the queue is in the engines.

use std::collections::VecDeque;

use super::{Arrival, Door, Sight, Word};

pub(super) fn make() -> Box<dyn Door> {
    Box::new(Open::default())
}

#[derive(Debug, Default)]
struct Open {
    came: VecDeque<u32>,
}

impl Door for Open {
    fn came(&mut self, arrival: Arrival, _: &Sight<'_>) {
        self.came.push_back(arrival.nth);
    }

    fn gone(&mut self, _: u32) {}

    fn next(&mut self, _: &Sight<'_>) -> Option<Word> {
        self.came.pop_front().map(Word::Enter)
    }

    fn alarm_ms(&self) -> f64 {
        f64::INFINITY
    }
}
