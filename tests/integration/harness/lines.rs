//! What is logged while a test runs: the lines of its requests, and the warnings.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    mem,
    sync::{Arc, Mutex, Once},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    subscriber::{DefaultGuard, set_default, set_global_default},
};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

use super::Gateway;

static SOMEBODY: Once = Once::new();

/// A line's fields.
pub(crate) type Line = BTreeMap<&'static str, String>;

/// The lines of this test's thread, on which its gateway runs too.
#[derive(Clone, Default)]
pub(crate) struct Lines {
    requests: Arc<Mutex<Vec<Line>>>,
    warnings: Arc<Mutex<Vec<Line>>>,
}

impl Lines {
    pub(crate) fn kept() -> (Self, DefaultGuard) {
        // With nobody who listens anywhere, a place that logs for the first time would be taken for one that nobody wants
        // to hear, just when this test begins to.
        SOMEBODY.call_once(|| set_global_default(tracing_subscriber::registry()).unwrap());
        let lines = Self::default();
        let guard = set_default(tracing_subscriber::registry().with(lines.clone()));
        (lines, guard)
    }

    /// The request lines since this was last asked.
    pub(crate) fn requests(&self) -> Vec<Line> {
        mem::take(&mut *self.requests.lock().unwrap())
    }

    /// The warnings since this was last asked.
    pub(crate) fn warnings(&self) -> Vec<Line> {
        mem::take(&mut *self.warnings.lock().unwrap())
    }

    /// The one request line since this was last asked.
    pub(crate) async fn one(&self, gateway: &Gateway) -> Line {
        gateway.quiet().await;
        let mut lines = self.requests();
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.remove(0)
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let lines = match event.metadata() {
            it if it.target() == "tidegate::request" => &self.requests,
            it if *it.level() == Level::WARN => &self.warnings,
            _ => return,
        };
        let mut fields = Fields(Line::new());
        event.record(&mut fields);
        lines.lock().unwrap().push(fields.0);
    }
}

struct Fields(Line);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

/// What a line says in these fields; nothing where it has none.
pub(crate) fn told<const N: usize>(line: &Line, fields: [&str; N]) -> [String; N] {
    fields.map(|field| line.get(field).cloned().unwrap_or_default())
}
