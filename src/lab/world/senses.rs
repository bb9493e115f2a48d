//! Pages of metrics on their way: asked for, written in the middle of the wait, read at its end; or not.

use rand::RngExt as _;

use super::{Pages, Place, World};
use crate::{
    fleet::Reading,
    lab::{
        clockwork::{Event, Sense},
        desk::Marks,
    },
    sim::engine::Engine,
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
        self.turn(sense.desk, now_ms);
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

/// What a page says, adapters by their numbers.
#[derive(Clone, Debug, Default)]
pub(in crate::lab) struct Shown {
    pub(in crate::lab) reading: Reading,
    /// Those in use by running requests; `None` before anything ran: vLLM has no such line then.
    pub(in crate::lab) adapters: Option<Vec<u32>>,
    pub(in crate::lab) max_loras: u32,
}

/// The page that an engine shows, as the scrape would read it.
fn page(engine: &Engine) -> Shown {
    let (gauges, totals, config) = (engine.gauges(), engine.totals(), engine.config());
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let reading = Reading {
        engine: "vllm".to_owned(),
        running: Some(count(gauges.running)),
        waiting: Some(count(gauges.waiting)),
        kv_usage: Some(gauges.kv_usage),
        kv_usage_max: Some(gauges.kv_usage),
        block_size: Some(config.block_size),
        blocks: Some(u64::from(config.num_gpu_blocks)),
        preemptions_total: Some(totals.preemptions),
        prefix_queries_total: Some(totals.prefix_queries),
        prefix_hits_total: Some(totals.prefix_hits),
        prompt_tokens_total: Some(totals.prompt_tokens),
        generation_tokens_total: Some(totals.generation_tokens),
        ..Reading::default()
    };
    let adapters = (totals.steps > 0).then(|| gauges.running_adapters.clone());
    Shown { reading, adapters, max_loras: count(config.max_loras) }
}
