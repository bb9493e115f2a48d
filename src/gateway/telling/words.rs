//! Words that refusals are put in: lists that end, failures without addresses, what a client wrote cut to a line.

use crate::upstream::FailureKind;

/// How many served models an unknown one is told of: a list for a person, not a catalogue.
const SHOWN_MODELS: usize = 20;

/// Names as a client reads them, the first of them.
pub(super) fn shown(served: &[String]) -> String {
    let mut list = served.iter().take(SHOWN_MODELS).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if served.len() > SHOWN_MODELS {
        list.push_str(", ...");
    }
    if list.is_empty() { "nothing yet".to_owned() } else { list }
}

/// What became of a request at its pod.
pub(super) fn told(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::FirstByteTimeout => "the model server did not begin to answer in time",
        FailureKind::OutOfFiles => "the gateway has too many connections open; try again shortly",
        FailureKind::EmptyAnswer => "the model server's answer was empty",
        FailureKind::Status(_) => "the model server failed on the request",
        FailureKind::Died | FailureKind::ReuseRace => "the model server closed the connection before it answered",
        FailureKind::NotHttp => "the model server's answer could not be understood",
        FailureKind::Unbuildable => "the gateway could not prepare the request for the model server",
        _ => "no model server could be reached",
    }
}

/// What a client wrote, short enough for a log line.
pub(in crate::gateway) fn shortened(text: &str) -> String {
    /// Longer than every path that is served and most models' names.
    const SHOWN: usize = 128;
    text.chars().take(SHOWN).collect()
}
