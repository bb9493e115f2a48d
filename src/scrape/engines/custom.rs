//! An engine whose metric names the operator gave, each as `name` or `name{label="value",...}`. Every series that
//! carries the labels counts: requests are added up, usage is averaged.

use super::{narrow, sum, usage};
use crate::{
    config::CustomMetrics,
    fleet::Reading,
    scrape::exposition::{Labels, Page, Sample},
};

/// The operator's names, taken apart.
pub(super) struct Spec<'c> {
    waiting: Option<Selector<'c>>,
    running: Option<Selector<'c>>,
    kv_usage: Option<Selector<'c>>,
}

/// Which series count.
struct Selector<'c> {
    name: &'c str,
    labels: Labels<'c>,
}

impl<'c> Spec<'c> {
    pub(super) fn of(names: &'c CustomMetrics) -> Self {
        let selector = |text: &'c Option<String>| Selector::parse(text.as_deref()?);
        Self {
            waiting: selector(&names.waiting),
            running: selector(&names.running),
            kv_usage: selector(&names.kv_cache_usage),
        }
    }

    pub(super) fn wanted(&self) -> Vec<&'c str> {
        let selectors = [&self.waiting, &self.running, &self.kv_usage];
        selectors.into_iter().flatten().map(|selector| selector.name).collect()
    }

    pub(super) fn read(&self, page: &Page<'_>) -> Reading {
        let total = |selector: &Option<Selector<'_>>| sum(selector.as_ref()?.series(page)).map(narrow);
        let (kv_usage, kv_usage_max) = usage(self.kv_usage.iter().flat_map(|selector| selector.series(page)));
        Reading {
            running: total(&self.running),
            waiting: total(&self.waiting),
            kv_usage,
            kv_usage_max,
            ..Reading::default()
        }
    }
}

impl<'c> Selector<'c> {
    fn parse(text: &'c str) -> Option<Self> {
        let text = text.trim_ascii();
        let (name, labels) = match text.split_once('{') {
            Some((name, inside)) => (name.trim_ascii_end(), closed(inside)?),
            None => (text, Labels::default()),
        };
        (!name.is_empty()).then_some(Self { name, labels })
    }

    fn series<'p, 'a: 'p>(&'p self, page: &'p Page<'a>) -> impl Iterator<Item = &'p Sample<'a>> {
        page.all(self.name)
            .filter(|sample| self.labels.iter().all(|(key, value)| sample.labels.get(key) == Some(value)))
    }
}

/// The labels before a closing brace with nothing behind it.
fn closed(inside: &str) -> Option<Labels<'_>> {
    let (labels, rest) = Labels::split_off(inside)?;
    rest.trim_ascii().is_empty().then_some(labels)
}
