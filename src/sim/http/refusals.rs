//! How a simulated pod says no, in vLLM's words.
//!
//! Shapes only; who says no and why is decided where the reason is seen.

use axum::{http::StatusCode, response::Response};
use serde_json::json;

use super::json_response;
use crate::sim::driver::NotTaken;

/// An error in vLLM's shape: unlike in the original API, `code` is a number.
pub(super) fn error(status: StatusCode, kind: &str, message: &str) -> Response {
    let param = (status == StatusCode::NOT_FOUND).then_some("model");
    let body = json!({"error": {"message": message, "type": kind, "param": param, "code": status.as_u16()}});
    json_response(status, &body)
}

/// What a dead engine leaves of a whole answer.
pub(super) fn engine_died() -> Response {
    let message = "EngineCore encountered an issue. See stack trace (above) for the root cause.";
    error(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message)
}

/// The body is not a JSON object.
pub(super) fn not_json() -> Response {
    error(StatusCode::BAD_REQUEST, "Bad Request", "[{'type': 'json_invalid', 'msg': 'JSON decode error'}]")
}

/// No such model here.
pub(super) fn unknown_model(model: &str) -> Response {
    error(StatusCode::NOT_FOUND, "NotFoundError", &format!("The model `{model}` does not exist."))
}

/// More than the model's context.
pub(super) fn too_long(most: u32) -> Response {
    let message =
        format!("This model's maximum context length is {most} tokens. Please reduce the length of the input.");
    error(StatusCode::BAD_REQUEST, "BadRequestError", &message)
}

/// The engine would not take it.
pub(super) fn not_taken(cause: &NotTaken) -> Response {
    match cause {
        NotTaken::TooLong(_) => error(StatusCode::BAD_REQUEST, "BadRequestError", &cause.to_string()),
        NotTaken::QueueFull(_) => {
            let message = "The request queue is full; please try again later or on a different instance.";
            error(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableError", message)
        }
    }
}
