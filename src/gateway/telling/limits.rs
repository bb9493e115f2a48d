//! What clients read of limits: the headers that tell what room is left, and those of a refusal.
//!
//! OpenAI's clients read `x-ratelimit-*` with durations as Go writes them, Anthropic's `anthropic-ratelimit-*` with times.
//! Who is told to come again later than clients wait by themselves is told not to come again by itself: the SDKs would
//! ignore the pause and repeat at once.

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::rejection::{Told, told_as};
use crate::{
    admission::{Refusal, Relief, Room, Standing, rfc3339},
    clock,
    openai::Dialect,
};

/// The longest pause that the SDKs keep to; with a longer one they repeat after their own, which is shorter.
const LONGEST_KEPT: Duration = Duration::from_secs(60);

/// After how long one of the requests that are open has likely ended: clients back off by themselves from there.
const UNTIL_ONE_ENDS: Duration = Duration::from_secs(1);

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Status, kind, code and reason of a refusal.
pub(super) fn told(refusal: &Refusal) -> Told {
    const RATE: (&str, &str) = ("rate_limit_error", "rate_limit_exceeded");
    const QUOTA: &str = "insufficient_quota";
    let status = StatusCode::TOO_MANY_REQUESTS;
    match refusal.relief {
        Relief::WhenKnown => {
            told_as(StatusCode::SERVICE_UNAVAILABLE, "server_error", "limits_unknown", "limits_unknown")
        }
        _ if refusal.limit.is_budget() => told_as(status, QUOTA, QUOTA, "budget_spent"),
        Relief::Never { .. } => told_as(status, RATE.0, RATE.1, "over_the_limit"),
        Relief::WhenOneEnds => told_as(status, RATE.0, RATE.1, "too_many_at_once"),
        _ => told_as(status, RATE.0, RATE.1, "rate_limit"),
    }
}

/// When a client may come again by itself, if it may.
pub(super) fn pause(refusal: &Refusal) -> Option<Duration> {
    match refusal.relief {
        Relief::After(wait) => Some(wait).filter(|wait| *wait <= LONGEST_KEPT),
        Relief::WhenOneEnds | Relief::WhenKnown => Some(UNTIL_ONE_ENDS),
        Relief::Anew { .. } | Relief::Never { .. } => None,
    }
}

/// What a refusal says besides its body.
pub(super) fn tell_refusal(headers: &mut HeaderMap, refusal: &Refusal, dialect: Dialect) {
    if let Some(pause) = pause(refusal) {
        let whole = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
        let millis = u64::try_from(pause.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(whole.max(1)));
        headers.insert(RETRY_AFTER_MS, HeaderValue::from(millis.max(1)));
    } else {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        if let Relief::Anew { wait, .. } | Relief::After(wait) = refusal.relief {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().saturating_add(1)));
        }
    }
    tell_standing(headers, &refusal.standing, dialect);
}

/// The room that is left, in the words of the client's dialect.
pub(in crate::gateway) fn tell_standing(headers: &mut HeaderMap, standing: &Standing, dialect: Dialect) {
    let Standing { requests, tokens, input_tokens, output_tokens } = *standing;
    let anthropic = dialect == Dialect::Anthropic;
    // OpenAI has one word for tokens.
    let shown = if anthropic { tokens } else { tokens.or(tightest(input_tokens, output_tokens)) };
    let kinds =
        [("requests", requests), ("tokens", shown), ("input-tokens", input_tokens), ("output-tokens", output_tokens)];
    let unix = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    for (kind, room) in kinds.into_iter().take(if anthropic { 4 } else { 2 }) {
        let Some(Room { limit, remaining, reset }) = room else { continue };
        let mut tell = |what: &str, value: HeaderValue| {
            let name = if anthropic {
                format!("anthropic-ratelimit-{kind}-{what}")
            } else {
                format!("x-ratelimit-{what}-{kind}")
            };
            if let Ok(name) = HeaderName::try_from(name) {
                headers.insert(name, value);
            }
        };
        let reset = if anthropic { rfc3339(unix.saturating_add(reset)) } else { go_duration(reset) };
        tell("limit", limit.into());
        tell("remaining", remaining.into());
        if let Ok(reset) = HeaderValue::try_from(reset) {
            tell("reset", reset);
        }
    }
}

fn tightest(one: Option<Room>, other: Option<Room>) -> Option<Room> {
    match (one, other) {
        (Some(one), Some(other)) if other.remaining < one.remaining => Some(other),
        (one, other) => one.or(other),
    }
}

/// As Go's `time.Duration` shows itself, to the millisecond.
fn go_duration(time: Duration) -> String {
    let millis = time.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 1_000 {
        return format!("{millis}ms");
    }
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    let mut text = String::new();
    if hours > 0 {
        text.push_str(&format!("{hours}h"));
    }
    if hours > 0 || minutes > 0 {
        text.push_str(&format!("{minutes}m"));
    }
    let (seconds, rest) = (millis / 1_000 % 60, millis % 1_000);
    if rest == 0 {
        text.push_str(&format!("{seconds}s"));
    } else {
        let digits = format!("{rest:03}");
        text.push_str(&format!("{seconds}.{}s", digits.trim_end_matches('0')));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{Limit, Scope};

    fn refusal(limit: Limit, relief: Relief) -> HeaderMap {
        let room = Room { limit: 60, remaining: 0, reset: Duration::from_secs(360) };
        let standing = Standing { requests: Some(room), ..Standing::default() };
        let refusal = Refusal { scope: Scope::All, limit, size: 60, relief, standing };
        let mut headers = HeaderMap::new();
        tell_refusal(&mut headers, &refusal, Dialect::OpenAi);
        headers
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        let shown = |millis| go_duration(Duration::from_millis(millis));
        let all = [0, 20, 1_000, 7_660, 360_000, 3_600_000, 5_445_050].map(shown);
        assert_eq!(all, ["0s", "20ms", "1s", "7.66s", "6m0s", "1h0m0s", "1h30m45.05s"]);
    }

    #[test]
    fn a_short_pause_is_told_in_seconds_and_exactly() {
        let headers = refusal(Limit::Requests, Relief::After(Duration::from_millis(1_250)));
        assert_eq!(
            (&headers["retry-after"], &headers["retry-after-ms"]),
            (&HeaderValue::from(2), &HeaderValue::from(1_250))
        );
        assert_eq!(headers["x-ratelimit-limit-requests"], "60");
        assert_eq!(headers["x-ratelimit-remaining-requests"], "0");
        assert_eq!(headers["x-ratelimit-reset-requests"], "6m0s");
        assert!(!headers.contains_key("x-should-retry"));
    }

    #[test]
    fn who_would_come_in_vain_is_told_not_to() {
        let hours = Duration::from_secs(7_200);
        for (limit, relief) in [
            (Limit::Day, Relief::Anew { at: hours, wait: hours }),
            (Limit::Tokens, Relief::Never { needs: 61 }),
            (Limit::Tokens, Relief::After(hours)),
        ] {
            let headers = refusal(limit, relief);
            assert_eq!(headers["x-should-retry"], "false", "{relief:?}");
            assert!(!headers.contains_key("retry-after-ms"), "{relief:?}");
        }
    }

    #[test]
    fn anthropics_clients_are_told_times() {
        let room = Room { limit: 60, remaining: 7, reset: Duration::from_secs(5) };
        let standing = Standing { input_tokens: Some(room), ..Standing::default() };
        let mut headers = HeaderMap::new();
        tell_standing(&mut headers, &standing, Dialect::Anthropic);
        assert_eq!(headers["anthropic-ratelimit-input-tokens-remaining"], "7");
        let reset = headers["anthropic-ratelimit-input-tokens-reset"].to_str().unwrap();
        assert!(reset.len() == 20 && reset.ends_with('Z'), "{reset}");
        let mut headers = HeaderMap::new();
        tell_standing(&mut headers, &standing, Dialect::OpenAi);
        assert_eq!(headers["x-ratelimit-remaining-tokens"], "7", "OpenAI's have one word for tokens");
    }
}
