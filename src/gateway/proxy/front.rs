//! What is refused for how it is asked, before anybody looks at what is asked: heads that two readers could take for
//! two different requests. One strict reader at the front is what keeps an attacker from asking a pod what we did not
//! see. It repairs nothing.

use http::{HeaderMap, HeaderValue, Method, Uri, Version, header, request};

use super::headers;
use crate::gateway::rejection::Rejection;

const ONE_HOST: Rejection = Rejection::Unclear("a request names its host once, in one Host header");
const NO_HOST: Rejection = Rejection::Unclear("the Host is not a host name or address with perhaps a port");
const OTHER_HOST: Rejection = Rejection::Unclear("the Host is not the one that the request's target names");
const OTHER_CODING: Rejection = Rejection::Unclear("'chunked' is the only transfer-encoding that is understood");
const OTHER_LENGTH: Rejection = Rejection::Unclear("a request has one Content-Length or none");
const NO_TUNNELS: Rejection = Rejection::Unclear("CONNECT is not served: this is no proxy to elsewhere");
const UNCLEAR_QUERY: Rejection = Rejection::Unclear("percent-encode all but visible ASCII characters in the query");

/// Refuses what no pod should have to interpret. `most_fields`: how many header fields there may be; HTTP/1.1 heads with
/// more have not come this far.
pub(super) fn check(head: &request::Parts, most_fields: usize) -> Result<(), Rejection> {
    let headers = &head.headers;
    if headers.len() > most_fields {
        return Err(Rejection::HeadTooLarge);
    }
    if head.method == Method::CONNECT {
        return Err(NO_TUNNELS);
    }
    if headers::goes_round(&head.headers) {
        return Err(Rejection::Loop);
    }
    check_host(&head.uri, headers, head.version)?;
    check_framing(headers)?;
    if head.uri.query().is_some_and(|query| !query.bytes().all(|byte| byte.is_ascii_graphic())) {
        return Err(UNCLEAR_QUERY);
    }
    // Other offers would have to be ignored, and what follows on the connection is then anybody's guess; h2c is what
    // Java's client and `curl --http2` offer with every first request, and they wait for the answer.
    let h2c = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"h2c");
    if !headers.get_all(header::UPGRADE).iter().all(h2c) {
        return Err(Rejection::Upgrade);
    }
    let awaits = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if !headers.get_all(header::EXPECT).iter().all(awaits) {
        return Err(Rejection::Expectation);
    }
    check_encoding(headers)
}

/// A body is read as it comes, so it must not be packed.
pub(in crate::gateway) fn check_encoding(headers: &HeaderMap) -> Result<(), Rejection> {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    match encodings.find(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        Some(encoding) => Err(Rejection::Encoded(String::from_utf8_lossy(encoding.as_bytes()).into_owned())),
        None => Ok(()),
    }
}

/// One host, well formed, and the same wherever it is named. Where the target of HTTP/1.1 is a whole URI, or in HTTP/2
/// `:authority` is given, other readers believe that; here both must say the same.
fn check_host(target: &Uri, headers: &HeaderMap, version: Version) -> Result<(), Rejection> {
    let mut given = headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes);
    let (host, authority) = (given.next(), target.authority().map(|it| it.as_str().as_bytes()));
    if given.next().is_some() {
        return Err(ONE_HOST);
    }
    // HTTP/1.0 knew no Host; HTTP/2 has `:authority` instead; HTTP/1.1 has it in any case.
    let needed = match version {
        Version::HTTP_10 => true,
        Version::HTTP_11 => host.is_some(),
        _ => host.is_some() || authority.is_some(),
    };
    if !needed {
        return Err(ONE_HOST);
    }
    if !host.into_iter().chain(authority).all(is_host) {
        return Err(NO_HOST);
    }
    match (host, authority) {
        (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority) => Err(OTHER_HOST),
        _ => Ok(()),
    }
}

/// A name, an IPv4 address or an IPv6 address in brackets, and perhaps a port. Less than RFC 3986 allows: no userinfo,
/// no percent-encoding, no sub-delimiters; no real host has them.
fn is_host(text: &[u8]) -> bool {
    let (host, behind) = if let Some(rest) = text.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
        let (inside, behind) = rest.split_at(end);
        let address = inside.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'));
        (if address { inside } else { b"" }, behind.get(1..).unwrap_or_default())
    } else {
        let end = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
        let (name, behind) = text.split_at(end);
        let plain = name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
        (if plain { name } else { b"" }, behind)
    };
    let port = match behind.split_first() {
        None => true,
        Some((colon, digits)) => *colon == b':' && digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
    };
    !host.is_empty() && port
}

/// hyper takes whatever ends in `chunked`, and drops a length that stands beside it; engines need not agree.
fn check_framing(headers: &HeaderMap) -> Result<(), Rejection> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let one = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if !one || codings.next().is_some() {
        return Err(OTHER_CODING);
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return Err(OTHER_LENGTH);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn checked(version: Version, target: &str, fields: &[(&str, &str)]) -> Result<(), String> {
        let mut request = Request::builder().version(version).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        check(&head, 8).map_err(|rejection| rejection.to_string())
    }

    fn h1(target: &str, fields: &[(&str, &str)]) -> Result<(), String> {
        checked(Version::HTTP_11, target, fields)
    }

    #[test]
    fn hosts_are_names_or_addresses_with_a_port() {
        for host in ["a", "a.b-c_d:80", "10.0.0.1:8081", "[::1]", "[fe80::1]:443", "localhost:"] {
            assert_eq!(h1("/", &[("host", host)]), Ok(()), "{host}");
        }
        for host in [
            "", ":80", "a/b", "a?b", "a#b", "u@a", "u:p@a", "a b", "a,b", "a\\b", "a%2fb", "a:b", "a:1:2", "a:123456",
            "[::1", "[]", "[x]", "[::1]x", "::1", "é",
        ] {
            assert_eq!(h1("/", &[("host", host)]), Err(NO_HOST.to_string()), "{host}");
        }
    }

    #[test]
    fn a_request_has_one_host_wherever_it_is_named() {
        assert_eq!(h1("/", &[]), Err(ONE_HOST.to_string()));
        assert_eq!(checked(Version::HTTP_10, "/", &[]), Ok(()));
        assert_eq!(h1("/", &[("host", "a"), ("host", "a")]), Err(ONE_HOST.to_string()));
        assert_eq!(h1("http://a:8081/", &[("host", "A:8081")]), Ok(()));
        assert_eq!(h1("http://a/", &[("host", "b")]), Err(OTHER_HOST.to_string()));
        assert_eq!(h1("http://a/", &[]), Err(ONE_HOST.to_string()));
        assert_eq!(h1("http://u@a/", &[("host", "u@a")]), Err(NO_HOST.to_string()));
        assert_eq!(checked(Version::HTTP_2, "http://a/", &[]), Ok(()));
        assert_eq!(checked(Version::HTTP_2, "/", &[("host", "a")]), Ok(()));
        assert_eq!(checked(Version::HTTP_2, "/", &[]), Err(ONE_HOST.to_string()));
        assert_eq!(checked(Version::HTTP_2, "http://a/", &[("host", "b")]), Err(OTHER_HOST.to_string()));
    }

    #[test]
    fn what_could_be_framed_in_two_ways_is_refused() {
        let with = |name, value| h1("/", &[("host", "a"), (name, value)]);
        assert_eq!(with("transfer-encoding", "Chunked"), Ok(()));
        for coding in ["gzip, chunked", "identity, chunked", "chunked, chunked", "chunked;x=1", ""] {
            assert_eq!(with("transfer-encoding", coding), Err(OTHER_CODING.to_string()), "{coding}");
        }
        let twice = [("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(h1("/", &twice), Err(OTHER_CODING.to_string()));
        assert_eq!(h1("/?a=\u{e9}", &[("host", "a")]), Err(UNCLEAR_QUERY.to_string()));
    }

    #[test]
    fn only_what_we_can_do_is_promised() {
        let with = |name, value| h1("/", &[("host", "a"), (name, value)]);
        assert_eq!(with("upgrade", "h2c"), Ok(()));
        assert_eq!(with("expect", "100-Continue"), Ok(()));
        for (name, value) in [("upgrade", "websocket"), ("upgrade", "h2c, foo"), ("upgrade", "foo"), ("expect", "200")]
        {
            assert!(with(name, value).is_err(), "{name}: {value}");
        }
        let many: Vec<_> = std::iter::repeat_n(("x", "1"), 8).chain([("host", "a")]).collect();
        assert_eq!(h1("/", &many), Err(Rejection::HeadTooLarge.to_string()));
    }
}
