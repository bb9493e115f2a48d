//! Whose request it is that a proxy brings: where its client comes from, as far as those say it who are believed.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, header};

use super::Peer;
use crate::config::{AddressHeader, Network};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The client of a request that `peer` brought. Each proxy adds to the right of what it was told, so the rightmost address
/// that is not a trusted proxy's is the last that somebody trusted has seen with his own eyes; what stands left of it
/// anybody may have written.
pub(in crate::gateway) fn whose(peer: Peer, headers: &HeaderMap, network: &Network) -> Peer {
    let trusted = |address: IpAddr| network.trusted_proxies.hold(address);
    if !trusted(peer.address().ip()) {
        return peer;
    }
    let (name, read): (_, fn(&str) -> Option<IpAddr>) = match network.client_address_header {
        AddressHeader::XForwardedFor => (X_FORWARDED_FOR, address),
        AddressHeader::Forwarded => (header::FORWARDED, forwarded_for),
    };
    let mut client = None;
    'all: for field in headers.get_all(name).iter().rev() {
        // Hop by hop as bytes: what a client wrote on the left, be it no text at all, must not hide what stands right of it.
        for hop in field.as_bytes().rsplit(|byte| *byte == b',') {
            // Who hides an address, or writes none, is the last that is known.
            let Some(address) = str::from_utf8(hop).ok().and_then(|hop| read(hop.trim())) else { break 'all };
            client = Some(address.to_canonical());
            if !trusted(address) {
                break 'all;
            }
        }
    }
    client.map_or_else(|| peer.clone(), |client| peer.speaking_for(client))
}

/// An address, perhaps with a port, perhaps in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|it| it.ip())).or_else(bare)
}

/// The `for` of one element of `Forwarded` (RFC 7239, 4).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let pair = |pair: &'_ str| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim().trim_matches('"').to_owned())
    };
    element.split(';').find_map(pair).and_then(|value| address(&value))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::config::Networks;

    fn client(peer: &str, header: AddressHeader, fields: &[(&'static str, &str)]) -> String {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().unwrap());
        let network =
            Network { trusted_proxies: Networks::new(&trusted), client_address_header: header, ..Network::default() };
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        whose(Peer::from(peer.parse::<SocketAddr>().unwrap()), &headers, &network).shown().to_owned()
    }

    #[test]
    fn the_rightmost_address_that_is_no_trusted_proxys_is_the_client() {
        let xff = |peer, value| client(peer, AddressHeader::XForwardedFor, &[("x-forwarded-for", value)]);
        assert_eq!(xff("192.0.2.9:5", "1.1.1.1"), "192.0.2.9:5", "nobody believes it");
        assert_eq!(xff("10.0.0.1:5", "1.1.1.1"), "1.1.1.1");
        assert_eq!(xff("[::ffff:10.0.0.1]:5", "1.1.1.1"), "1.1.1.1", "an IPv4 proxy at an IPv6 socket");
        assert_eq!(xff("10.0.0.1:5", "6.6.6.6, 1.1.1.1, 10.2.2.2"), "1.1.1.1", "6.6.6.6 is the client's own invention");
        assert_eq!(xff("10.0.0.1:5", "10.1.1.1,10.2.2.2"), "10.1.1.1", "all are trusted");
        assert_eq!(xff("10.0.0.1:5", "1.1.1.1:443"), "1.1.1.1");
        assert_eq!(xff("10.0.0.1:5", "[2001:db8::1]:443"), "2001:db8::1");
        assert_eq!(xff("10.0.0.1:5", "2001:db8::1"), "2001:db8::1");
        assert_eq!(xff("10.0.0.1:5", "::ffff:1.1.1.1"), "1.1.1.1");
        assert_eq!(xff("10.0.0.1:5", "1.1.1.1, unknown"), "10.0.0.1:5");
        assert_eq!(xff("10.0.0.1:5", "1.1.1.1, unknown, 10.2.2.2"), "10.2.2.2", "the last that is known");
        assert_eq!(xff("10.0.0.1:5", ""), "10.0.0.1:5");
    }

    #[test]
    fn a_client_cannot_hide_by_writing_what_is_no_text() {
        for header in [AddressHeader::XForwardedFor, AddressHeader::Forwarded] {
            let (name, theirs) = match header {
                AddressHeader::XForwardedFor => ("x-forwarded-for", "café, \u{80}, 1.1.1.1"),
                AddressHeader::Forwarded => ("forwarded", "for=café, for=1.1.1.1"),
            };
            assert_eq!(client("10.0.0.1:5", header, &[(name, theirs)]), "1.1.1.1");
        }
    }

    #[test]
    fn several_fields_are_one_list_and_the_other_header_is_not_read() {
        let fields = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.1.1.1"), ("forwarded", "for=7.7.7.7")];
        assert_eq!(client("10.0.0.1:5", AddressHeader::XForwardedFor, &fields), "1.1.1.1");
        assert_eq!(client("10.0.0.1:5", AddressHeader::Forwarded, &fields), "7.7.7.7");
    }

    #[test]
    fn forwarded_is_read_as_its_rfc_writes_it() {
        let forwarded = |value| client("10.0.0.1:5", AddressHeader::Forwarded, &[("forwarded", value)]);
        assert_eq!(forwarded("for=192.0.2.43, For=\"[2001:db8:cafe::17]:4711\"; proto=https"), "2001:db8:cafe::17");
        assert_eq!(forwarded("proto=http;for=192.0.2.43;by=10.0.0.1, for=10.3.3.3"), "192.0.2.43");
        assert_eq!(forwarded("for=192.0.2.43, for=_hidden"), "10.0.0.1:5");
        assert_eq!(forwarded("for=192.0.2.43, proto=http"), "10.0.0.1:5");
    }
}
