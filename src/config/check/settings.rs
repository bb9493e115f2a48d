//! Limits, timeouts and the other sections of single values: what is given, else the default.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{Sheet, address, doors};
use crate::config::{
    Api, ExtProc, Limits, Log, ModelTimeouts, Retry, Saturation, Sessions, Share, Timeouts, Waiting, defaults,
    file::{ApiFile, LimitsFile, LogFile, ModelTimeoutsFile, RetryFile, SessionsFile, TimeoutsFile},
    listener::{ListenerFile, ProtocolFile},
    overload::{SaturationFile, ShareFile, WaitingFile},
    report::suggestion,
    tree::At,
    units::Span,
};

/// The bounds, with defaults.
pub(super) fn limits(file: Option<&LimitsFile>, sheet: &mut Sheet) -> Limits {
    let empty = LimitsFile::default();
    let given = file.unwrap_or(&empty);
    let default = defaults::LIMITS;
    let limits = Limits {
        body: sheet.bytes(given.body.as_ref(), default.body),
        buffered_bodies: sheet.bytes(given.buffered_bodies.as_ref(), default.buffered_bodies),
        connections: given.connections.as_ref().map_or(default.connections, |at| sheet.count(Some(at), 1) as usize),
        header_fields: given
            .header_fields
            .as_ref()
            .map_or(default.header_fields, |at| sheet.count(Some(at), 1) as usize),
        header_bytes: sheet.bytes(given.header_bytes.as_ref(), default.header_bytes),
        http2_streams: sheet.count(given.http2_streams.as_ref(), default.http2_streams),
    };
    let blamed = given.body.as_ref().or(given.buffered_bodies.as_ref());
    if let Some(blamed) = blamed.filter(|_| limits.body > limits.buffered_bodies) {
        let message = format!("`body` ({}) is more than `buffered_bodies` ({})", limits.body, limits.buffered_bodies);
        sheet.error(
            blamed.place,
            message,
            "the largest body alone has to fit: raise `buffered_bodies` or lower `body`",
        );
    }
    limits
}

/// The timeouts, with defaults.
pub(super) fn timeouts(file: Option<&TimeoutsFile>, sheet: &mut Sheet) -> Timeouts {
    let empty = TimeoutsFile::default();
    let given = file.unwrap_or(&empty);
    let default = defaults::TIMEOUTS;
    let plain = |value: Option<&At<Span>>, default: Duration| value.map_or(default, |at| at.value.0);
    let timeouts = Timeouts {
        header_read: sheet.span(given.header_read.as_ref(), default.header_read),
        body_read: sheet.span(given.body_read.as_ref(), default.body_read),
        client_idle: sheet.span(given.client_idle.as_ref(), default.client_idle),
        write_stall: sheet.span(given.write_stall.as_ref(), default.write_stall),
        connect: sheet.span(given.connect.as_ref(), default.connect),
        first_byte: sheet.span(given.first_byte.as_ref(), default.first_byte),
        first_token: sheet.span(given.first_token.as_ref(), default.first_token),
        idle: sheet.span(given.idle.as_ref(), default.idle),
        total: given_span(given.total.as_ref(), sheet),
        // These three may be zero: keep nothing, wait for nothing.
        pool_idle: plain(given.pool_idle.as_ref(), default.pool_idle),
        drain_delay: plain(given.drain_delay.as_ref(), default.drain_delay),
        drain_grace: plain(given.drain_grace.as_ref(), default.drain_grace),
    };
    bounded_by_total(
        given.total.as_ref(),
        [("first_byte", given.first_byte.as_ref()), ("first_token", given.first_token.as_ref())],
        sheet,
    );
    if let Some(at) = given.pool_idle.as_ref().filter(|at| at.value.0 >= Duration::from_secs(5)) {
        let message =
            "uvicorn, under most engines, closes idle connections after 5s, and requests would be lost to that race";
        sheet.warning(
            at.place,
            message,
            "stay below 5s, unless every pod was started with a longer keep-alive timeout",
        );
    }
    timeouts
}

/// Says which of the steps that the file bounds can never reach their bound, because the whole is over before.
fn bounded_by_total(total: Option<&At<Span>>, steps: [(&str, Option<&At<Span>>); 2], sheet: &mut Sheet) {
    let Some(total) = total else { return };
    for (name, step) in steps {
        if step.is_some_and(|step| total.value.0 < step.value.0) {
            let message = format!("`total` is shorter than `{name}`, which can never be reached");
            sheet.warning(total.place, message, format!("raise `total`, or lower `{name}` below it"));
        }
    }
}

/// A time that has no default, if it is given.
fn given_span(value: Option<&At<Span>>, sheet: &mut Sheet) -> Option<Duration> {
    value.map(|at| sheet.span(Some(at), at.value.0))
}

/// A model's own timeouts.
pub(super) fn model_timeouts(file: Option<&ModelTimeoutsFile>, sheet: &mut Sheet) -> ModelTimeouts {
    let empty = ModelTimeoutsFile::default();
    let given = file.unwrap_or(&empty);
    bounded_by_total(
        given.total.as_ref(),
        [("first_byte", given.first_byte.as_ref()), ("first_token", given.first_token.as_ref())],
        sheet,
    );
    ModelTimeouts {
        first_byte: given_span(given.first_byte.as_ref(), sheet),
        first_token: given_span(given.first_token.as_ref(), sheet),
        idle: given_span(given.idle.as_ref(), sheet),
        total: given_span(given.total.as_ref(), sheet),
    }
}

/// The retries, with defaults.
pub(super) fn retry(file: Option<&RetryFile>, sheet: &mut Sheet) -> Retry {
    let empty = RetryFile::default();
    let given = file.unwrap_or(&empty);
    let default = defaults::RETRY;
    if let Some(at) = given.attempts.as_ref().filter(|at| at.value > defaults::MOST_ATTEMPTS) {
        sheet.error(
            at.place,
            format!("{} further attempts are too many", at.value),
            format!("write at most {}", defaults::MOST_ATTEMPTS),
        );
    }
    if let Some(at) = given.attempts.as_ref().filter(|at| at.value == 0)
        && given.on.as_ref().is_some_and(|on| !on.is_empty())
    {
        let message = "`attempts` is 0, so nothing of what `on` names is tried again";
        sheet.warning(at.place, message, "write at least 1, or leave `on` out");
    }
    Retry {
        attempts: given.attempts.as_ref().map_or(default.attempts, |at| at.value),
        budget: given.budget.unwrap_or(default.budget),
        budget_floor: given.budget_floor.unwrap_or(default.budget_floor),
        on: given.on.clone().unwrap_or(default.on),
    }
}

/// The waiting, with defaults.
pub(super) fn waiting(file: Option<&WaitingFile>, sheet: &mut Sheet) -> Waiting {
    let empty = WaitingFile::default();
    let given = file.unwrap_or(&empty);
    let default = defaults::waiting();
    let requests = given.requests.as_ref().map_or(default.requests, |at| sheet.count(Some(at), 1) as usize);
    let bytes = sheet.bytes(given.bytes.as_ref(), default.bytes);
    Waiting {
        // Zero is a wish: refuse at once.
        timeout: given.timeout.as_ref().map_or(default.timeout, |at| at.value.0),
        requests,
        bytes,
        tenant_requests: given.tenant_requests.as_ref().map_or(requests, |at| sheet.count(Some(at), 1) as usize),
        tenant_bytes: sheet.bytes(given.tenant_bytes.as_ref(), bytes),
        shares: shares(given.shares.as_deref().unwrap_or_default(), sheet),
        evict_sheddable: given.evict_sheddable.unwrap_or(default.evict_sheddable),
    }
}

/// What lower priorities are guaranteed: each once, and together less than all there is.
fn shares(given: &[ShareFile], sheet: &mut Sheet) -> Arc<[Share]> {
    let (mut seen, mut sum) = (BTreeSet::new(), 0.0);
    for ShareFile { priority, share } in given {
        if !seen.insert(priority.value) {
            let message = format!("priority {} has two shares", priority.value);
            sheet.error(priority.place, message, "leave one of them out");
        }
        let before = sum;
        sum += share.value.0;
        if share.value.0 <= 0.0 {
            sheet.error(share.place, "a share of nothing guarantees nothing", "leave it out, or write such as `5%`");
        } else if before < 1.0 && sum >= 1.0 {
            let remedy = "lower them: what is left goes to whoever matters most";
            sheet.error(share.place, "the shares leave nothing", remedy);
        }
    }
    given.iter().map(|it| Share { priority: it.priority.value, share: it.share.value }).collect()
}

/// When a pool is full, if that is said; else as `usual`.
pub(super) fn saturation(file: Option<&SaturationFile>, usual: Saturation, sheet: &mut Sheet) -> Saturation {
    let batch = file.and_then(|given| given.batch.as_ref());
    if let Some(none) = batch.filter(|it| it.value == 0) {
        let remedy = "write what the engine was started with (`--max-num-seqs`), or leave it out";
        sheet.error(none.place, "a pod that runs no requests serves none", remedy);
    }
    Saturation {
        wait: sheet.span(file.and_then(|given| given.wait.as_ref()), usual.wait),
        batch: batch.map(|it| it.value).or(usual.batch),
    }
}

/// Whether who comes in at `listener` is believed in what headers say of objectives and models.
pub(super) fn trust_headers(listener: &ListenerFile) -> bool {
    let envoy = listener.protocol.as_ref().is_some_and(|protocol| protocol.value == ProtocolFile::ExtProc);
    listener.trust_headers.as_ref().map_or(envoy, |given| given.value)
}

/// How sessions are named.
pub(super) fn sessions(file: Option<&SessionsFile>, sheet: &mut Sheet) -> Sessions {
    let Some(SessionsFile { header }) = file else {
        return defaults::sessions();
    };
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if header.value.is_empty() || !header.value.bytes().all(token) {
        sheet.error(
            header.place,
            format!("`{}` is not a header's name", header.value),
            "write one such as `x-session-id`",
        );
    }
    Sessions { header: header.value.to_ascii_lowercase() }
}

/// Where engines tell of themselves: load, model, and how much of both.
const METRICS: &str = "/metrics";

/// What is served without being named. `openai` decides; this room stands beside it, and a test holds the two together.
pub(super) const SERVED: [&str; 17] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/v1/score",
    "/score",
    "/tokenize",
    "/detokenize",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/v1/models",
];

/// What is open and added; `timeouts` are those in force.
pub(super) fn api(file: Option<&ApiFile>, timeouts: &Timeouts, sheet: &mut Sheet) -> Api {
    let default = defaults::api();
    let Some(given) = file else { return default };
    let paths = given.extra_paths.as_deref().unwrap_or_default();
    for path in paths {
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
        if !path.value.starts_with('/') || !path.value.bytes().all(plain) {
            sheet.error(
                path.place,
                format!("`{}` is not a path", path.value),
                "write it as in a request, from `/` on and without a query: `/v1/moderations`",
            );
        } else if path.value == METRICS {
            let message = "the pods' own metrics become public";
            sheet.warning(path.place, message, "take it out: Tidegate's own `/metrics` are at `admin` and `probes`");
        } else if SERVED.contains(&path.value.as_str()) {
            sheet.warning(path.place, format!("`{}` is served anyway", path.value), "take it out");
        }
    }
    // A stream's head has to come within both.
    let (name, head) = if timeouts.first_token < timeouts.first_byte {
        ("first_token", timeouts.first_token)
    } else {
        ("first_byte", timeouts.first_byte)
    };
    if let Some(at) = given.heartbeat.as_ref().filter(|at| at.value.0 >= head) {
        let message = format!("`heartbeat` is no shorter than `{name}` ({head:?}), so it never beats");
        sheet.warning(at.place, message, format!("lower it below `{name}`, well below what clients and proxies wait"));
    }
    Api {
        extra_paths: paths.iter().map(|path| path.value.clone()).collect(),
        serve_reported_models: given.serve_reported_models.unwrap_or(default.serve_reported_models),
        inject_usage: given.inject_usage.unwrap_or(default.inject_usage),
        decision_headers: given.decision_headers.unwrap_or(default.decision_headers),
        index_answers: given.index_answers.unwrap_or(default.index_answers),
        heartbeat: given_span(given.heartbeat.as_ref(), sheet),
    }
}

/// How a listener serves Envoy, if it does.
pub(super) fn ext_proc(listener: &ListenerFile, sheet: &mut Sheet) -> Option<ExtProc> {
    if listener.protocol.as_ref().is_none_or(|protocol| protocol.value == ProtocolFile::Http) {
        if let Some(given) = &listener.ext_proc {
            let message = format!("listener `{}` is not asked by Envoy", listener.name.value);
            sheet.error(given.place, message, "write `protocol: ext-proc` beside it, or take it out");
        }
        return None;
    }
    let mut picker = defaults::EXT_PROC;
    let Some(At { value: given, .. }) = &listener.ext_proc else { return Some(picker) };
    if let Some(at) = given.fallbacks.as_ref().filter(|at| at.value > defaults::MOST_FALLBACKS) {
        let remedy = format!("write at most {}", defaults::MOST_FALLBACKS);
        sheet.error(at.place, format!("{} further pods are too many", at.value), remedy);
    }
    if let Some(at) = given.client_certificates.as_ref().filter(|_| given.secure == Some(false)) {
        let remedy = "take `secure: false` out; a certificate is shown within TLS";
        sheet.error(at.ca_file.place, "`secure` is false, so nobody shows a certificate", remedy);
    }
    if let Some(at) = given.cert_path.as_ref().filter(|_| given.secure == Some(false)) {
        sheet.warning(at.place, "`secure` is false, so there is no certificate", "take one of the two out");
    }
    picker.secure = given.secure.unwrap_or(picker.secure);
    picker.cert_path = given.cert_path.as_ref().map(|at| at.value.clone());
    picker.request_body = given.request_body.unwrap_or(picker.request_body);
    picker.response_body = given.response_body.unwrap_or(picker.response_body);
    picker.observe_responses = given.observe_responses.unwrap_or(picker.observe_responses);
    picker.fallbacks = given.fallbacks.as_ref().map_or(picker.fallbacks, |at| at.value as usize);
    picker.client_certificates = given.client_certificates.as_ref().map(doors::client_certificates);
    picker.health = given.health.as_ref().and_then(|door| address(&door.address, sheet));
    picker.message_timeout = given_span(given.message_timeout.as_ref(), sheet);
    picker.other_paths = given.other_paths.unwrap_or(picker.other_paths);
    Some(picker)
}

/// The levels of a log filter.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Level and shape of the log.
pub(super) fn log(file: Option<&LogFile>, sheet: &mut Sheet) -> Log {
    let default = defaults::log();
    let Some(given) = file else { return default };
    if let Some(level) = &given.level {
        for (problem, remedy) in wrong_levels(&level.value) {
            sheet.error(level.place, problem, remedy);
        }
    }
    Log {
        level: given.level.as_ref().map_or(default.level, |level| level.value.clone()),
        format: given.format.unwrap_or(default.format),
    }
}

/// What of a log filter is no level, and what could be; wherever the filter comes from.
pub fn wrong_levels(filter: &str) -> impl Iterator<Item = (String, String)> {
    filter.split(',').map(str::trim).filter_map(|part| {
        // A bare word that is no level would be taken for a module whose every line is wanted.
        let word = part.rsplit_once('=').map_or(part, |(_, word)| word);
        let known = LEVELS.iter().any(|known| known.eq_ignore_ascii_case(word));
        (!known).then(|| (format!("`{word}` is not a log level"), suggestion(word, &LEVELS, "the levels are")))
    })
}
