//! Web pages of others that call from a browser: what it is told, so that it lets them.
//!
//! It protects nobody here: who is no browser never asks. It says which pages a browser may hand our answers to.

use http::{HeaderMap, HeaderValue, Method, header};

use crate::config::Cors;

/// The methods that are served.
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST");

/// What a page may read besides the six fields that it always may (Fetch, 3.3.6), where `*` does not stand for all.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-request-id, retry-after, x-should-retry, x-tidegate-refused, x-tidegate-pod, x-tidegate-decision, x-tidegate-attempts, \
     x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, \
     x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens",
);

/// On what an answer to a preflight depends.
const DEPENDS: HeaderValue =
    HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers");

const EVERYBODY: HeaderValue = HeaderValue::from_static("*");

/// Whether a browser only asks whether a page may call. It carries no key, so nobody asks for one.
pub(in crate::gateway) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// What it is told. A page that may not call is told nothing, which the browser takes for a no.
pub(in crate::gateway) fn preflight(cors: &Cors, asked: &HeaderMap) -> HeaderMap {
    let mut told = HeaderMap::new();
    told.insert(header::VARY, DEPENDS);
    let Some(origin) = allowed(cors, asked.get(header::ORIGIN)) else { return told };
    told.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    told.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    let wanted = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    let headers = match &cors.headers {
        Some(list) => HeaderValue::from_str(&list.join(", ")).ok(),
        None => wanted.cloned(),
    };
    if let Some(headers) = headers {
        told.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, headers);
    }
    told.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(cors.max_age.as_secs()));
    allow_credentials(cors, &mut told);
    told
}

/// Puts on an answer whose page may read it.
pub(in crate::gateway) fn mark(cors: &Cors, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
    if cors.origins.is_some() || cors.credentials {
        // Also where nobody asked: a cache must not give one page what was said to another.
        answer.append(header::VARY, HeaderValue::from_static("origin"));
    }
    let Some(origin) = allowed(cors, origin) else { return };
    answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, if cors.credentials { EXPOSED } else { EVERYBODY });
    allow_credentials(cors, answer);
}

fn allow_credentials(cors: &Cors, headers: &mut HeaderMap) {
    if cors.credentials {
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
}

/// The origin as it is told that it may; `None` = it may not.
fn allowed(cors: &Cors, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
    let origin = origin?;
    match &cors.origins {
        None => Some(EVERYBODY),
        Some(list) => list.iter().any(|it| it.as_bytes() == origin.as_bytes()).then(|| origin.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderName;

    use super::*;

    fn cors(origins: Option<&[&str]>, credentials: bool) -> Cors {
        let origins = origins.map(|list| list.iter().map(|it| (*it).to_owned()).collect());
        Cors { origins, headers: None, max_age: Duration::from_secs(600), credentials }
    }

    fn asked(origin: &'static str) -> HeaderMap {
        let field = |name: HeaderName, value| (name, HeaderValue::from_static(value));
        HeaderMap::from_iter([
            field(header::ORIGIN, origin),
            field(header::ACCESS_CONTROL_REQUEST_METHOD, "POST"),
            field(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization,content-type,x-stainless-os"),
        ])
    }

    #[test]
    fn a_preflight_of_a_page_that_may_call_is_told_all_and_another_nothing() {
        let ours = asked("https://a.example");
        assert!(is_preflight(&Method::OPTIONS, &ours) && !is_preflight(&Method::POST, &ours));
        assert!(!is_preflight(&Method::OPTIONS, &HeaderMap::new()));
        let listed = cors(Some(&["https://a.example"]), true);
        let told = preflight(&listed, &ours);
        assert_eq!(told["access-control-allow-origin"], "https://a.example");
        assert_eq!(told["access-control-allow-headers"], "authorization,content-type,x-stainless-os");
        assert_eq!(told["access-control-allow-methods"], "GET, POST");
        assert_eq!(told["access-control-max-age"], "600");
        assert_eq!(told["access-control-allow-credentials"], "true");
        for other in ["https://b.example", "https://a.example.evil", "http://a.example", "null"] {
            let told = preflight(&listed, &asked(other));
            assert_eq!(told.len(), 1, "{other}: {told:?}");
            assert!(told.contains_key("vary"));
        }
        let two = Cors { headers: Some(vec!["authorization".to_owned(), "x-a".to_owned()]), ..cors(None, false) };
        let told = preflight(&two, &asked("null"));
        assert_eq!(told["access-control-allow-origin"], "*");
        assert_eq!(told["access-control-allow-headers"], "authorization, x-a");
        assert!(!told.contains_key("access-control-allow-credentials"));
    }

    #[test]
    fn an_answer_says_whose_pages_may_read_it_and_that_it_depends_on_the_page() {
        let marked = |cors: &Cors, origin: Option<&'static str>| {
            let mut answer = HeaderMap::new();
            mark(cors, origin.map(HeaderValue::from_static).as_ref(), &mut answer);
            answer
        };
        let listed = cors(Some(&["https://a.example"]), false);
        assert_eq!(marked(&listed, Some("https://a.example"))["access-control-allow-origin"], "https://a.example");
        for none in [Some("https://b.example"), None] {
            let answer = marked(&listed, none);
            assert_eq!((answer.len(), &answer["vary"]), (1, &HeaderValue::from_static("origin")), "{none:?}");
        }
        let all = marked(&cors(None, false), Some("https://b.example"));
        assert_eq!(
            (&all["access-control-allow-origin"], &all["access-control-expose-headers"]),
            (&EVERYBODY, &EVERYBODY)
        );
        assert!(!all.contains_key("vary"));
        let exposed = &marked(&cors(Some(&["https://a.example"]), true), Some("https://a.example"))["access-control-expose-headers"];
        assert!(
            exposed.to_str().unwrap().contains("x-request-id, retry-after"),
            "`*` means nothing beside credentials"
        );
    }
}
