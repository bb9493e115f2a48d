//! Pages of metrics on their way: asked for, written in the middle of the wait, read at its end; or not.

use rand::RngExt as _;

use super::{Pages, Place, World};
use crate::lab::{
    clockwork::{Event, Sense},
    desk::{Marks, Shown, page},
};

impl World<'_> {
    pub(super) fn scrape(&mut self, sense: Sense, now_ms: f64) {
        let scrape = self.setup.scrape;
        // As the scrape's rhythm: a tenth shorter or longer, so that turns do not fall together.
        let period = scrape.interval_ms * self.rng.random_range(0.9..=1.1);
        let lost = self.rng.random::<f64>() < scrape.loss;
        let Some((place, desk)) = self.pods.get(sense.pod).zip(self.desks.get(sense.desk)) else { return };
        let hangs = matches!(place.pages, Pages::Hanging);
        // Whoever waits for a page does not ask again. A page that never came is evidence of nothing.
        let wait = if hangs || lost { desk.timeout_ms } else { scrape.delay_ms };
        self.clock.put(now_ms + period.max(wait), Event::Scrape(sense));
        if place.down {
            return desk.refused(sense.pod, now_ms);
        }
        if hangs || lost {
            return;
        }
        let marks = desk.marks(sense.pod, now_ms);
        if let (Some(marks), Some(page)) = (marks, self.page_of(sense)) {
            *page = Some((marks, Shown::default()));
            self.clock.put(now_ms + scrape.delay_ms / 2.0, Event::Render(sense));
        }
    }

    pub(super) fn render(&mut self, sense: Sense, now_ms: f64) {
        let Some(place) = self.pods.get(sense.pod).filter(|place| !place.down) else { return };
        let shown = place.shows();
        if let Some(Some(under_way)) = self.page_of(sense) {
            under_way.1 = shown;
            self.clock.put(now_ms + self.setup.scrape.delay_ms / 2.0, Event::Page(sense));
        }
    }

    pub(super) fn page(&mut self, sense: Sense, now_ms: f64) {
        let Some((marks, shown)) = self.page_of(sense).and_then(Option::take) else { return };
        if let Some(desk) = self.desks.get(sense.desk) {
            desk.read(sense.pod, marks, &shown, now_ms);
        }
    }

    fn page_of(&mut self, sense: Sense) -> Option<&mut Option<(Marks, Shown)>> {
        self.pages.get_mut(sense.desk)?.get_mut(sense.pod)
    }
}

impl Place {
    /// What its page says now.
    pub(super) fn shows(&self) -> Shown {
        match &self.pages {
            Pages::Frozen(shown) => Shown::clone(shown),
            Pages::Well | Pages::Hanging => page(&self.engine),
        }
    }
}
