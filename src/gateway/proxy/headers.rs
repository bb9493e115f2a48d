//! Which headers pass, in both directions. One table each, shown in the docs as it stands here.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use memchr::memchr;
use smallvec::SmallVec;

use crate::gateway::story::X_REQUEST_ID;

/// Headers that belong to one connection (RFC 9110, 7.6.1) and never pass, in either direction; besides those that
/// `Connection` names. `Trailer` is none of them any more: without it, trailers are lost on the way to HTTP/1.1 clients.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Request headers that would let a client steer routing, scheduling or trust at the pod or at another proxy. What we
/// need of them was read before.
const CONTROL: [&str; 14] = [
    "x-gateway-destination-endpoint",
    "x-gateway-destination-endpoint-subset",
    "x-gateway-destination-endpoint-served",
    "x-vllm-priority",
    "x-data-parallel-rank",
    "x-session-id",
    "endpoint-load-metrics-format",
    "x-prefiller-host-port",
    "x-encoder-hosts-ports",
    "x-data-parallel-host-port",
    "x-kv-cache-source-host-port",
    "forwarded",
    "x-real-ip",
    "x-request-id",
];

/// How a gateway names a request's objective to a picker: the name of now, which counts if both are there, and the one of
/// before.
pub(in crate::gateway) const OBJECTIVE: [&str; 2] = ["x-llm-d-inference-objective", "x-gateway-inference-objective"];

/// And how what its model shall be called at its pod.
pub(in crate::gateway) const SERVED_AS: [&str; 2] = ["x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"];

/// And whose share of a full fleet it counts in: its tenant.
pub(in crate::gateway) const FAIRNESS: [&str; 2] = ["x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id"];

/// And within how many milliseconds its first token is wanted.
pub(in crate::gateway) const SLO_TTFT: [&str; 2] = ["x-llm-d-slo-ttft-ms", "x-slo-ttft-ms"];

/// How much a request matters, as a number: our own word for it.
pub(in crate::gateway) const PRIORITY: &str = "x-tidegate-priority";

/// The priority that vLLM schedules by, where it does: the lower, the earlier.
pub(in crate::gateway) const VLLM_PRIORITY: &str = "x-vllm-priority";

/// What else a gateway tells a picker and no pod.
const FOR_PICKERS: [&str; 4] = [SLO_TTFT[0], SLO_TTFT[1], "x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"];

/// Prefixes of the same kind.
const CONTROL_PREFIXES: [&str; 3] = ["x-forwarded-", "x-tidegate-", "x-envoy-"];

/// Request headers that we set ourselves for every pod.
const REPLACED: [&str; 4] = ["host", "content-length", "expect", "accept-encoding"];

/// Answer headers that tell of the pod, not of the answer.
const OF_THE_POD: [&str; 3] = ["server", "endpoint-load-metrics", "x-request-id"];

/// Answer headers by which engines let every web page call. Whose may is said by the listener.
const OF_PAGES: [&str; 5] = [
    "access-control-allow-origin",
    "access-control-allow-credentials",
    "access-control-expose-headers",
    "access-control-allow-methods",
    "access-control-allow-headers",
];

/// Through how many gateways a request has come, for a further one: a pod may be one, and even this one.
const X_TIDEGATE_HOPS: HeaderName = HeaderName::from_static("x-tidegate-hops");

/// What pods nearly always read there.
const ONE_HOP: HeaderValue = HeaderValue::from_static("1");

/// A company's gateway before a region's before a fleet's, and one to spare. Each turn of a loop holds a connection and a
/// copy of the body, so few must be enough.
const MOST_HOPS: u16 = 4;

/// The client's headers as a pod shall see them. `authorization` stays only if the pool forwards it. Most go on, so that
/// the few that do not are taken out of what came.
pub(super) fn to_pod(mut headers: HeaderMap, request_id: &HeaderValue, forward_authorization: bool) -> HeaderMap {
    let before = hops(&headers);
    let named = named_by_connection(&headers);
    let stays_here = |name: &&HeaderName| {
        if **name == header::ACCEPT_ENCODING || **name == X_REQUEST_ID {
            // Replaced below.
            return false;
        }
        let word = name.as_str();
        // Behind CGI-like interfaces `x_forwarded_for` is `x-forwarded-for`: what stays, stays under both names.
        let hyphenated = memchr(b'_', word.as_bytes()).map(|_| word.replace('_', "-"));
        let word = hyphenated.as_deref().unwrap_or(word);
        let credentials = matches!(word, "authorization" | "x-api-key" | "api-key");
        is_ours(word) || (credentials && !forward_authorization) || named.iter().any(|it| it == word)
    };
    let ours: SmallVec<[HeaderName; 8]> = headers.keys().filter(stays_here).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
    // We read what pods answer, so they must not compress it.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(X_REQUEST_ID, request_id.clone());
    headers.insert(X_TIDEGATE_HOPS, if before == 0 { ONE_HOP } else { before.saturating_add(1).into() });
    headers
}

/// Whether it has come through so many gateways that it must be going round.
pub(super) fn goes_round(headers: &HeaderMap) -> bool {
    hops(headers) > MOST_HOPS
}

/// Through how many gateways such as this one it has come. What is no number was written by none.
fn hops(headers: &HeaderMap) -> u16 {
    let said = headers.get(X_TIDEGATE_HOPS).and_then(|value| value.to_str().ok());
    said.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Whether no pod is to see this request header of a client's, or not the client's.
fn is_ours(word: &str) -> bool {
    let is = |it: &&str| *it == word;
    // By the first byte and the length most are told to be none of these.
    match word.as_bytes().first() {
        Some(b'x') => {
            (X_LENGTHS.has(word) && (CONTROL.iter().any(is) || is_for_pickers(word)))
                || CONTROL_PREFIXES.iter().any(|prefix| word.starts_with(prefix))
        }
        _ => OTHER_LENGTHS.has(word) && HOP_BY_HOP.iter().chain(&REPLACED).chain(&CONTROL).any(is),
    }
}

/// Whether a client could steer routing or scheduling at the pod by this header. Where a client comes from is no part of
/// it: that a proxy in front says.
pub(in crate::gateway) fn steers(word: &str) -> bool {
    (CONTROL.contains(&word) && !matches!(word, "forwarded" | "x-real-ip" | "x-request-id")) || is_for_pickers(word)
}

fn is_for_pickers(word: &str) -> bool {
    OBJECTIVE.iter().chain(&SERVED_AS).chain(&FAIRNESS).chain(&FOR_PICKERS).any(|it| *it == word)
}

/// Which lengths the words of a table have, a bit each; none of them is longer than 63.
struct Lengths(u64);

const CONTROL_LENGTHS: Lengths = Lengths::of(&CONTROL, Lengths(0));
const TOLD_LENGTHS: Lengths = Lengths::of(&FAIRNESS, Lengths::of(&FOR_PICKERS, CONTROL_LENGTHS));
const X_LENGTHS: Lengths = Lengths::of(&OBJECTIVE, Lengths::of(&SERVED_AS, TOLD_LENGTHS));
const OTHER_LENGTHS: Lengths = Lengths::of(&HOP_BY_HOP, Lengths::of(&REPLACED, CONTROL_LENGTHS));
const ANSWER_LENGTHS: Lengths = Lengths::of(&HOP_BY_HOP, Lengths::of(&OF_THE_POD, Lengths::of(&OF_PAGES, Lengths(0))));

impl Lengths {
    const fn of(mut words: &[&str], mut others: Self) -> Self {
        while let [word, rest @ ..] = words {
            others.0 |= 1 << word.len();
            words = rest;
        }
        others
    }

    fn has(&self, word: &str) -> bool {
        word.len() < 64 && self.0 >> word.len() & 1 == 1
    }
}

/// A pod's answer headers as the client shall see them. `rewritten`: the body's length changes on the way.
pub(super) fn to_client(pod: &mut HeaderMap, request_id: &HeaderValue, rewritten: bool) {
    // Chunks win over a length that stands beside them (RFC 9112, 6.3), and then the length may be wrong.
    let length_means_nothing = rewritten || pod.contains_key(header::TRANSFER_ENCODING);
    for name in named_by_connection(pod) {
        pod.remove(name);
    }
    // Few answers carry more than one of these: to look for all is cheaper than to take each out.
    let stays_here = |name: &&HeaderName| {
        let word = name.as_str();
        ANSWER_LENGTHS.has(word) && HOP_BY_HOP.iter().chain(&OF_THE_POD).chain(&OF_PAGES).any(|it| *it == word)
    };
    while let Some(name) = pod.keys().find(stays_here).cloned() {
        pod.remove(name);
    }
    if length_means_nothing {
        pod.remove(header::CONTENT_LENGTH);
    }
    pod.insert(X_REQUEST_ID, request_id.clone());
}

fn named_by_connection(headers: &HeaderMap) -> Vec<String> {
    let lists = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let names = lists.flat_map(|list| list.split(',').map(str::trim));
    // The usual one stays here without being named.
    names.filter(|name| !name.eq_ignore_ascii_case("keep-alive")).map(str::to_ascii_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn routing_control_and_credentials_stay_behind_and_the_rest_goes_on_in_full() {
        let client = map(&[
            ("host", "evil"),
            ("authorization", "Bearer client"),
            ("x-api-key", "k"),
            ("x-gateway-destination-endpoint", "10.0.0.9:8000"),
            ("x-vllm-priority", "-9"),
            ("x-forwarded-for", "1.2.3.4"),
            ("connection", "keep-alive, x-secret-hop"),
            ("x-secret-hop", "1"),
            ("te", "trailers"),
            ("accept-encoding", "gzip"),
            ("traceparent", "00-a-b-01"),
            ("x_forwarded_for", "1.2.3.4"),
            ("transfer_encoding", "chunked"),
            ("x_vllm-priority", "-9"),
            ("x-llm-d-inference-objective", "high"),
            ("x-gateway-model-name-rewrite", "other"),
            ("x_gateway_inference_fairness_id", "me"),
            ("x-slo-tpot-ms", "1"),
            ("my_own", "1"),
            ("x-custom", "one"),
            ("x-custom", "two"),
        ]);
        let id = HeaderValue::from_static("id-1");
        let seen = to_pod(client.clone(), &id, false);
        let mut names: Vec<_> =
            seen.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "accept-encoding=identity",
                "my_own=1",
                "traceparent=00-a-b-01",
                "x-custom=one",
                "x-custom=two",
                "x-request-id=id-1",
                "x-tidegate-hops=1"
            ]
        );
        assert_eq!(to_pod(client, &id, true)["authorization"], "Bearer client");
    }

    #[test]
    fn each_gateway_counts_itself_and_more_than_four_are_a_loop() {
        let id = HeaderValue::from_static("id-1");
        for (came, goes_on, round) in
            [("0", "1", false), ("1", "2", false), ("4", "5", false), ("5", "6", true), ("many", "1", false)]
        {
            let client = map(&[("x-tidegate-hops", came)]);
            assert_eq!(goes_round(&client), round, "{came}");
            assert_eq!(to_pod(client, &id, false)["x-tidegate-hops"], goes_on, "{came}");
        }
    }

    #[test]
    fn an_answer_keeps_its_headers_but_not_the_pods_own() {
        let mut pod = map(&[
            ("server", "uvicorn"),
            ("connection", "close"),
            ("content-length", "5"),
            ("content-type", "application/json"),
            ("trailer", "x-cost"),
            ("x-request-id", "theirs"),
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
        ]);
        to_client(&mut pod, &HeaderValue::from_static("ours"), false);
        assert_eq!(pod.len(), 4);
        assert_eq!((&pod["x-request-id"], &pod["content-length"]), (&"ours".parse().unwrap(), &"5".parse().unwrap()));
        to_client(&mut pod, &HeaderValue::from_static("ours"), true);
        assert!(!pod.contains_key("content-length"));
    }
}
