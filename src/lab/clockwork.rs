//! The virtual clock: what happens next, and when. Things due at one moment happen in the order they were put down, so
//! that a run can be repeated.

use std::{cmp::Ordering, collections::BinaryHeap};

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Event {
    /// A request comes.
    Ask(u32),
    /// It comes again.
    Again(u32),
    /// Its client has waited long enough for the answer to this try.
    Leave(u32, u32),
    /// A gateway's door wants to be asked again.
    Alarm(usize),
    /// A pod's step is over.
    Step(usize),
    /// A gateway asks for a pod's page.
    Scrape(Sense),
    /// The pod writes it.
    Render(Sense),
    /// The gateway has read it.
    Page(Sense),
    /// A fault begins or ends.
    Fault(usize),
    /// The split's weights change.
    Shift,
}

/// Which gateway looks at which pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sense {
    pub(super) desk: usize,
    pub(super) pod: usize,
}

/// The clock.
#[derive(Debug, Default)]
pub(super) struct Clockwork {
    due: BinaryHeap<Due>,
    put: u64,
}

#[derive(Debug)]
struct Due {
    /// The bits of its time: those of numbers that are not negative are in the numbers' order, and quicker compared.
    at: u64,
    nth: u64,
    event: Event,
}

impl Clockwork {
    pub(super) fn put(&mut self, at_ms: f64, event: Event) {
        self.due.push(Due { at: at_ms.max(0.0).to_bits(), nth: self.put, event });
        self.put += 1;
    }

    pub(super) fn next(&mut self) -> Option<(f64, Event)> {
        self.due.pop().map(|due| (f64::from_bits(due.at), due.event))
    }
}

impl Ord for Due {
    /// The heap's greatest is what is due first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.nth).cmp(&(self.at, self.nth))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_first_happens_first_and_equals_in_their_order() {
        let mut clock = Clockwork::default();
        for (at, pod) in [(5.0, 0), (1.0, 1), (5.0, 2), (0.5, 3)] {
            clock.put(at, Event::Step(pod));
        }
        let order: Vec<_> = std::iter::from_fn(|| clock.next()).collect();
        assert_eq!(order, [(0.5, 3), (1.0, 1), (5.0, 0), (5.0, 2)].map(|(at, pod)| (at, Event::Step(pod))));
    }
}
