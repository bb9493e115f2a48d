//! Why an answer is cut that has begun, and what its client is told in the stream.

use crate::openai::ErrorBody;

/// What a stream's client is told when its answer is cut.
pub(in crate::gateway) fn cut_error(why: &'static str) -> ErrorBody<'static> {
    let message = match why {
        STOPPING => "the gateway stopped before the answer was complete",
        TOTAL_TIMEOUT => "the answer took longer than the gateway allows",
        FIRST_TOKEN_TIMEOUT => "the model server did not begin its answer in time",
        IDLE_TIMEOUT => "the model server fell silent before the answer was complete",
        EVICTED => "the answer made room for requests of a higher priority; try again later",
        PANIC => "the gateway failed before the answer was complete",
        _ => "the model server stopped before the answer was complete",
    };
    ErrorBody { message, kind: "server_error", param: None, code: Some("stream_cut") }
}

/// Whether an answer cut for this reason was cut by us and not by the pod's fault.
pub(in crate::gateway) fn is_our_doing(why: &'static str) -> bool {
    matches!(why, STOPPING | TOTAL_TIMEOUT | EVICTED | PANIC)
}

/// Every reason for which an answer is cut.
pub(in crate::gateway) const CUTS: [&str; 12] = [
    "connection_died",
    "no_end",
    "error_event",
    "aborted_by_pod",
    "empty_answer",
    "refused_in_stream",
    FIRST_TOKEN_TIMEOUT,
    IDLE_TIMEOUT,
    TOTAL_TIMEOUT,
    STOPPING,
    EVICTED,
    PANIC,
];

/// Why an answer is cut when the gateway stops and its grace is over.
pub(in crate::gateway) const STOPPING: &str = "stopping";

/// Why one is cut that took longer than the operator allows.
pub(in crate::gateway) const TOTAL_TIMEOUT: &str = "total_timeout";

/// Why one is cut whose pod sends no token.
pub(in crate::gateway) const FIRST_TOKEN_TIMEOUT: &str = "first_token_timeout";

/// Why one is cut whose pod fell silent.
pub(in crate::gateway) const IDLE_TIMEOUT: &str = "idle_timeout";

/// Why a sheddable one is cut while critical requests wait.
pub(in crate::gateway) const EVICTED: &str = "evicted";

/// Why one is cut in which this gateway failed.
pub(in crate::gateway) const PANIC: &str = "panic";
