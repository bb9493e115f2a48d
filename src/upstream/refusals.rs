//! How pods say that nothing ran: the words by which another pod may be asked instead.
//!
//! Only words that we know from an engine's own sources stand here. A 503 can also come from a proxy before the pod that
//! had already sent the request on; to take every 503 for "nothing ran" would compute prompts twice just when there is
//! no room for them. trtllm-serve is not here: it bounds no queue and has no such words.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use http_body::Body as _;

use super::{Answer, FailureKind};

/// As much of a refusal is read to know it again: the longest of them has 300 bytes, behind a request id or two.
const MOST_READ: usize = 4 * 1024;

/// A refusal is one packet; who takes longer to say no is passed on as it comes.
const READ_WITHIN: Duration = Duration::from_secs(1);

/// A refusal that is known.
#[derive(Debug)]
struct Signature {
    status: StatusCode,
    /// All of this stands in its body.
    says: &'static [&'static str],
    means: FailureKind,
}

const fn signature(status: StatusCode, says: &'static [&'static str], means: FailureKind) -> Signature {
    Signature { status, says, means }
}

const SIGNATURES: [Signature; 7] = {
    use FailureKind::{ModelUnknown, NotReady, QueueFull};
    [
        // vLLM 0.32 with `--max-num-queued-reqs`: `QueueOverflowError` in vllm/exceptions.py, raised before admission.
        signature(
            StatusCode::SERVICE_UNAVAILABLE,
            &["cannot accept new requests", "try again later or on a different instance"],
            QueueFull,
        ),
        // vLLM 0.32 with `--max-num-queued-tokens`: `MaxQueuedTokensError`, there too.
        signature(
            StatusCode::SERVICE_UNAVAILABLE,
            &["prefill token backlog limit", "try again later or on a different instance"],
            QueueFull,
        ),
        // SGLang with `--max-queued-requests`: the scheduler's abort on arrival. (That a request with a higher priority
        // took its place is another message; such a request may have run.)
        signature(StatusCode::SERVICE_UNAVAILABLE, &["The request queue is full"], QueueFull),
        // TGI with `--max-concurrent-requests`: `InferError::Overloaded`, when no permit is left.
        signature(StatusCode::TOO_MANY_REQUESTS, &["Model is overloaded", "overloaded"], QueueFull),
        // Triton with `max_queue_size`: `PriorityQueue::Enqueue`, unavailable over HTTP.
        signature(StatusCode::SERVICE_UNAVAILABLE, &["Exceeds maximum queue size"], QueueFull),
        // llama.cpp while it loads its weights: the server's middleware, before any handler.
        signature(StatusCode::SERVICE_UNAVAILABLE, &["Loading model", "unavailable_error"], NotReady),
        // vLLM, for a name that is neither the model nor a loaded adapter: `_check_model`, before anything else.
        signature(StatusCode::NOT_FOUND, &["The model ", " does not exist"], ModelUnknown),
    ]
};

impl Answer {
    /// What this answer means if by it the pod says that nothing ran. Reads ahead where that depends on the body; what
    /// was read is still part of it. `leaving`: whether the pod is known to be on its way out.
    pub async fn refusal(&mut self, leaving: bool) -> Option<FailureKind> {
        let status = self.head.status;
        if status == StatusCode::BAD_GATEWAY {
            // What stands before the pod's engine finds it gone.
            return leaving.then_some(FailureKind::Leaving);
        }
        if !SIGNATURES.iter().any(|it| it.status == status) {
            return None;
        }
        let body = self.body.read_ahead(MOST_READ, READ_WITHIN).await;
        known(status, &body)
    }

    /// Whether it has no body. Looks for its first byte, no longer than for a refusal; who takes longer is passed on.
    pub async fn is_empty(&mut self) -> bool {
        self.body.read_ahead(1, READ_WITHIN).await.is_empty() && self.body.is_end_stream()
    }

    /// For how long the pod asks to be left alone. A date is not read: engines send seconds.
    pub fn retry_after(&self) -> Option<Duration> {
        retry_after(&self.head.headers)
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse::<u32>().ok()?;
    Some(Duration::from_secs(seconds.into()))
}

fn known(status: StatusCode, body: &[u8]) -> Option<FailureKind> {
    let says = |word: &&str| memchr::memmem::find(body, word.as_bytes()).is_some();
    let found = SIGNATURES.iter().find(|it| it.status == status && it.says.iter().all(says));
    found.map(|it| it.means)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bodies as engines send them.
    const SAID: [(u16, &str, Option<FailureKind>); 12] = [
        (
            503,
            r#"{"error":{"message":"The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.","type":"Service Unavailable","param":null,"code":503}}"#,
            Some(FailureKind::QueueFull),
        ),
        (
            503,
            r#"{"error":{"message":"The engine has reached its prefill token backlog limit. Please try again later or on a different instance.","type":"Service Unavailable","param":null,"code":503}}"#,
            Some(FailureKind::QueueFull),
        ),
        (
            503,
            r#"{"object":"error","message":"The request queue is full.","type":"ServiceUnavailable","param":null,"code":503}"#,
            Some(FailureKind::QueueFull),
        ),
        (429, r#"{"error":"Model is overloaded","error_type":"overloaded"}"#, Some(FailureKind::QueueFull)),
        (503, r#"{"error":"Exceeds maximum queue size"}"#, Some(FailureKind::QueueFull)),
        (
            503,
            r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#,
            Some(FailureKind::NotReady),
        ),
        (
            404,
            r#"{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","param":"model","code":404}}"#,
            Some(FailureKind::ModelUnknown),
        ),
        // The same words with another status, other words with the same one.
        (500, r#"{"error":{"message":"The request queue is full."}}"#, None),
        (503, "upstream connect error or disconnect/reset before headers. reset reason: connection termination", None),
        (503, r#"{"message":"The request is aborted by a higher priority request."}"#, None),
        (404, r#"{"detail":"Not Found"}"#, None),
        (429, r#"{"error":{"message":"Rate limit reached","type":"rate_limit_error"}}"#, None),
    ];

    #[test]
    fn only_words_that_are_known_say_that_nothing_ran() {
        for (status, body, means) in SAID {
            assert_eq!(known(StatusCode::from_u16(status).unwrap(), body.as_bytes()), means, "{status} {body}");
        }
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_nothing_else() {
        let asked = |value: &'static str| {
            let value = http::HeaderValue::from_static(value);
            retry_after(&HeaderMap::from_iter([(header::RETRY_AFTER, value)])).map(|it| it.as_secs())
        };
        assert_eq!(
            ["7", " 0 ", "-1", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT", "99999999999"].map(asked),
            [Some(7), Some(0), None, None, None, None]
        );
    }
}
