//! Words of refusals that take more than a line to find.

use crate::upstream::FailureKind;

/// How many served models an unknown one is told of: a list for a person, not a catalogue.
const SHOWN_MODELS: usize = 20;

/// What is served, for who asked for something else.
pub(super) fn shown(served: &[String]) -> String {
    let mut list = served.iter().take(SHOWN_MODELS).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if served.len() > SHOWN_MODELS {
        list.push_str(", ...");
    }
    if list.is_empty() { "nothing yet".to_owned() } else { list }
}

/// What a client may know of an attempt that failed.
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
