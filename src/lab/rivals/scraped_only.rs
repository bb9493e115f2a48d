//! `scraped-only`: the fewest running and waiting requests by the last page alone. What herds when pages are old.

use super::{Dice, Rival, View, lowest};

pub(super) fn make(_pods: usize) -> Box<dyn Rival> {
    Box::new(ScrapedOnly)
}

#[derive(Debug)]
struct ScrapedOnly;

impl Rival for ScrapedOnly {
    fn choose(&mut self, view: &View<'_>, rng: &mut Dice) -> usize {
        lowest(view, view.pods.iter().map(|pod| pod.running + pod.waiting), rng)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Seen, super::bench::asked, *};

    #[test]
    fn what_was_sent_since_the_page_is_not_seen() {
        let idle_by_its_page = Seen { in_flight: 50.0, running: 1.0, ..Seen::default() };
        let busy_by_its_page = Seen { running: 1.0, waiting: 1.0, ..Seen::default() };
        assert_eq!(asked(&mut ScrapedOnly, &[busy_by_its_page, idle_by_its_page], 100.0), 1);
    }
}
