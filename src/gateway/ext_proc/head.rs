//! What stands in Envoy's heads and notes: headers as ours, which pods may be chosen, which pod answered, and what Envoy
//! says of how it came to the answer.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::{
    session::Noted,
    wire::{self, Kind, Struct},
};
use crate::upstream::FailureKind;

/// Where the pod is named: in the request's head, and in the metadata of the balancer.
pub(super) const DESTINATION: &str = "x-gateway-destination-endpoint";

/// The balancer's metadata.
pub(super) const BALANCER: &str = "envoy.lb";

/// Where the gateway says which pods may be chosen, and under which name.
const SUBSET: (&str, &str) = ("envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset");

/// Where it says which pod answered.
const SERVED: &str = "x-gateway-destination-endpoint-served";

/// Where the filter puts attributes, and those that we look at.
const ATTRIBUTES: &str = "envoy.filters.http.ext_proc";
const UPSTREAM: &str = "upstream.address";
const DETAILS: &str = "response.code_details";

/// What Envoy says of an answer that a pod gave.
const VIA_UPSTREAM: &str = "via_upstream";

/// How Envoy begins what it says of a pod that did not answer, as in `upstream_reset_before_response_started`.
const FAILED: &str = "upstream_re";

/// What it says if its own circuit breaker let nothing through to the pod.
const OVERFLOW: &str = "{overflow";

/// What it says of a pod to which no connection could be made, with or without `remote_` or `local_` before it, in time or
/// not...
const UNCONNECTED: &str = "connection_failure";

/// ... and of one that was silent for too long.
const TIMEOUT: &str = "timeout";

/// A request's head.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    /// Without its query.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) noted: Noted,
}

/// The head of an answer.
#[derive(Debug)]
pub(super) struct AnswerHead {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    noted: Noted,
}

/// As many fields are prepared for at once; Envoy takes 100 by default.
const MOST_FIELDS: usize = 128;

/// What was said of a head, its pseudo headers apart. Fields that no HTTP has are not there.
fn fields(said: wire::HttpHeaders, mut pseudo: impl FnMut(&[u8], &Bytes)) -> HeaderMap {
    let said = said.headers.unwrap_or_default().headers;
    let mut headers = HeaderMap::with_capacity(said.len().min(MOST_FIELDS));
    for field in said {
        let value = field.bytes();
        if field.key.starts_with(b":") {
            pseudo(&field.key, value);
        } else if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(&field.key), HeaderValue::from_maybe_shared(value.clone()))
        {
            // More than a map holds are more than anybody reads.
            _ = headers.try_append(name, value);
        }
    }
    headers
}

impl Head {
    pub(super) fn read(said: wire::HttpHeaders, noted: Noted) -> Self {
        let (mut method, mut path) = (Method::GET, "/".to_owned());
        let headers = fields(said, |name, value| match name {
            b":method" => method = Method::from_bytes(value).unwrap_or_default(),
            b":path" => path = without_query(value),
            _ => {}
        });
        Self { method, path, headers, noted }
    }

    /// The pods that may be chosen, if the gateway says so: an empty list is none.
    pub(super) fn subset(&self) -> Option<Vec<String>> {
        match self.noted.metadata.filter_metadata.get(SUBSET.0)?.get(SUBSET.1)? {
            Kind::String(text) => Some(listed(text)),
            Kind::List(list) => {
                let text = |value: &wire::Value| match &value.kind {
                    Some(Kind::String(text)) => listed(text),
                    _ => Vec::new(),
                };
                Some(list.values.iter().flat_map(text).collect())
            }
            Kind::Struct(_) => None,
        }
    }
}

fn listed(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|it| !it.is_empty()).map(ToOwned::to_owned).collect()
}

fn without_query(target: &[u8]) -> String {
    let path = target.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
    String::from_utf8_lossy(path).into_owned()
}

impl AnswerHead {
    pub(super) fn read(said: wire::HttpHeaders, noted: Noted) -> Self {
        let mut status = StatusCode::OK;
        let headers = fields(said, |name, value| {
            if name == b":status" {
                status = StatusCode::from_bytes(value).unwrap_or_default();
            }
        });
        Self { status, headers, noted }
    }

    /// The pod that answered, where the gateway says it.
    pub(super) fn served(&self) -> Option<&str> {
        let noted = self.noted.metadata.filter_metadata.get(BALANCER).and_then(|lb| text(lb, SERVED));
        noted.or_else(|| self.attribute(UPSTREAM)).map(str::trim).filter(|it| !it.is_empty())
    }

    /// Whether Envoy made this answer, because it got none from a pod.
    pub(super) fn is_envoys_own(&self) -> bool {
        self.attribute(DETAILS).is_some_and(|details| details != VIA_UPSTREAM)
    }

    /// What Envoy says of how it came to the answer.
    pub(super) fn details(&self) -> &str {
        self.attribute(DETAILS).unwrap_or_default()
    }

    /// How the pod failed, if that is why Envoy made the answer: it was not reached, kept silent or hung up. That there
    /// was no host is nobody's failure.
    pub(super) fn failure(&self) -> Option<FailureKind> {
        let details = self.details();
        if !details.starts_with(FAILED) || details.contains(OVERFLOW) {
            return None;
        }
        Some(match details {
            it if it.contains(UNCONNECTED) => FailureKind::Connect,
            it if it.contains(TIMEOUT) => FailureKind::FirstByteTimeout,
            _ => FailureKind::Died,
        })
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        text(self.noted.attributes.get(ATTRIBUTES)?, name)
    }
}

fn text<'a>(of: &'a Struct, name: &str) -> Option<&'a str> {
    match of.get(name)? {
        Kind::String(text) => Some(text),
        _ => None,
    }
}

/// Whether these are two pods. A name is none, and neither is what a mesh puts in place of an address: of those nobody can
/// tell.
pub(super) fn differ(one: &str, other: &str) -> bool {
    let address = |text: &str| text.parse::<std::net::SocketAddr>().ok();
    one != other && address(one).zip(address(other)).is_some_and(|(one, other)| one != other)
}

/// Whether `allowed`, as a gateway writes an endpoint, is this pod's address: with its port if it names one, and an IPv6
/// address with or without brackets.
pub(super) fn names(allowed: &str, address: &str) -> bool {
    if allowed == address {
        return true;
    }
    let bare = |text: &str| text.trim_start_matches('[').trim_end_matches(']').to_owned();
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    match allowed.parse::<std::net::SocketAddr>() {
        Ok(allowed) => address.parse() == Ok(allowed),
        // Without a port it is an address alone: all of its ports.
        Err(_) => bare(allowed).parse::<std::net::IpAddr>().is_ok_and(|allowed| bare(host).parse() == Ok(allowed)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::gateway::wire::{HeaderValue as Field, ListValue, Metadata, Value};

    fn noted(space: &str, name: &str, kind: Kind) -> Noted {
        let metadata = Metadata { filter_metadata: HashMap::from([(space.to_owned(), Struct::of(name, kind))]) };
        Noted { metadata, ..Noted::default() }
    }

    fn head(fields: &[(&'static str, &'static str)], noted: Noted) -> Head {
        let headers = fields.iter().map(|(name, value)| Field::new(name, *value)).collect();
        let said = wire::HttpHeaders { headers: Some(wire::HeaderMap { headers }), end_of_stream: false };
        Head::read(said, noted)
    }

    #[test]
    fn a_head_is_read_from_either_field_and_what_is_twice_stays_twice() {
        let fields = [(":method", "POST"), (":path", "/v1/x?a=1"), ("a", "1"), ("a", "2"), ("b\u{0}", "c"), ("", "d")];
        let mut head = head(&fields, Noted::default());
        assert_eq!((head.method.as_str(), head.path.as_str()), ("POST", "/v1/x"));
        assert_eq!(head.headers.get_all("a").iter().count(), 2);
        assert_eq!(head.headers.len(), 2, "a name that no HTTP has is not there");
        let old = Field { key: "k".into(), value: "v".into(), raw_value: Bytes::new() };
        let said = wire::HttpHeaders { headers: Some(wire::HeaderMap { headers: vec![old] }), end_of_stream: true };
        head = Head::read(said, Noted::default());
        assert_eq!(head.headers["k"], "v");
    }

    #[test]
    fn a_subset_is_a_list_or_a_text_and_an_empty_one_is_none_at_all() {
        let text = |text: &str| Kind::String(text.to_owned());
        let list = |items: &[&str]| {
            let values = items.iter().map(|item| Value { kind: Some(text(item)) }).collect();
            Kind::List(ListValue { values })
        };
        let subset = |kind| head(&[], noted(SUBSET.0, SUBSET.1, kind)).subset();
        assert_eq!(head(&[], Noted::default()).subset(), None);
        assert_eq!(subset(list(&["10.0.0.1:8000", "10.0.0.2:8000"])).unwrap().len(), 2);
        assert_eq!(subset(text(" 10.0.0.1:8000 , [::1]:80")).unwrap(), ["10.0.0.1:8000", "[::1]:80"]);
        assert_eq!(subset(list(&[])), Some(Vec::new()));
    }

    #[test]
    fn an_endpoint_names_a_pod_with_its_port_and_an_address_names_all_its_ports() {
        for (allowed, address, is) in [
            ("10.0.0.1:8000", "10.0.0.1:8000", true),
            ("10.0.0.1:8001", "10.0.0.1:8000", false),
            ("10.0.0.1", "10.0.0.1:8000", true),
            ("10.0.0.2", "10.0.0.1:8000", false),
            ("[::1]:8000", "[::1]:8000", true),
            ("[0:0::1]:8000", "[::1]:8000", true),
            ("[::1]:8001", "[::1]:8000", false),
            ("::1", "[::1]:8000", true),
            ("pod-1:8000", "pod-1:8000", true),
            ("", "10.0.0.1:8000", false),
        ] {
            assert_eq!(names(allowed, address), is, "{allowed} {address}");
        }
    }

    #[test]
    fn who_answered_is_told_by_the_balancer_or_by_envoys_attributes() {
        let read = |noted| AnswerHead::read(wire::HttpHeaders::default(), noted);
        assert_eq!(read(Noted::default()).served(), None);
        assert_eq!(read(noted(BALANCER, SERVED, Kind::String("1.2.3.4:5".into()))).served(), Some("1.2.3.4:5"));
        let told = |details: &str| {
            let mut told = Struct::of_text(DETAILS, details.to_owned());
            told.fields.extend(Struct::of_text(UPSTREAM, "1.2.3.4:6".to_owned()).fields);
            read(Noted { attributes: HashMap::from([(ATTRIBUTES.to_owned(), told)]), ..Noted::default() })
        };
        assert_eq!(told(VIA_UPSTREAM).served(), Some("1.2.3.4:6"));
        assert!(!told(VIA_UPSTREAM).is_envoys_own() && !read(Noted::default()).is_envoys_own());
        for (details, failure) in [
            ("upstream_reset_before_response_started{connection_failure}", Some(FailureKind::Connect)),
            (
                "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_111}",
                Some(FailureKind::Connect),
            ),
            ("upstream_reset_before_response_started{connection_termination}", Some(FailureKind::Died)),
            ("upstream_response_timeout", Some(FailureKind::FirstByteTimeout)),
            ("upstream_reset_before_response_started{overflow}", None),
            ("no_healthy_upstream", None),
        ] {
            let read = told(details);
            assert!(read.is_envoys_own(), "{details}");
            assert_eq!((read.failure(), read.details()), (failure, details));
        }
    }

    #[test]
    fn a_pod_differs_from_another_only_where_both_are_addresses() {
        for (one, other, do_differ) in [
            ("10.0.0.1:8000", "10.0.0.1:8000", false),
            ("10.0.0.1:8000", "10.0.0.2:8000", true),
            ("[0:0::1]:8000", "[::1]:8000", false),
            ("127.0.0.1:8000", "localhost:8000", false),
            ("envoy://connect_originate/10.0.0.2:8000", "10.0.0.1:8000", false),
        ] {
            assert_eq!(differ(one, other), do_differ, "{one} {other}");
        }
    }
}
