//! From which addresses clients may come, and who may say where another comes from: as typed, and as checked.

use std::net::IpAddr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

/// Who may come in by address.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Network {
    /// Whether connections begin with the PROXY protocol.
    pub proxy_protocol: ProxyProtocol,
    /// Who is believed about where a client comes from.
    pub trusted_proxies: Networks,
    /// By which header they say it.
    pub client_address_header: AddressHeader,
    /// Only from these, unless it is empty.
    pub allow: Networks,
    /// Never from these.
    pub deny: Networks,
}

impl Network {
    /// Whether who comes from `address` may come in.
    pub fn admits(&self, address: IpAddr) -> bool {
        !self.deny.hold(address) && (self.allow.is_empty() || self.allow.hold(address))
    }
}

/// Whether connections begin with the PROXY protocol (versions 1 and 2), in which a balancer says whose they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyProtocol {
    /// None does.
    #[default]
    Off,
    /// Every one does, and all come from `trusted_proxies`; others are closed.
    Required,
    /// Those from `trusted_proxies` do, and no others.
    FromTrusted,
}

/// How a proxy says where its client comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AddressHeader {
    /// `X-Forwarded-For`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// A set of addresses: looked up in a time that hardly grows with their number.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Networks(Vec<(IpAddr, IpAddr)>);

impl Networks {
    /// All addresses of these networks.
    pub fn new(networks: &[IpNet]) -> Self {
        let whole = IpNet::aggregate(&networks.to_vec());
        let mut ranges: Vec<_> = whole.iter().map(|it| (it.network(), it.broadcast())).collect();
        ranges.sort_unstable();
        Self(ranges)
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `address` is one of them. An IPv4 address that an IPv6 socket shows as `::ffff:a.b.c.d` is what it is.
    pub fn hold(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let after = self.0.partition_point(|(first, _)| *first <= address);
        let before = after.checked_sub(1).and_then(|at| self.0.get(at));
        before.is_some_and(|(_, last)| address <= *last)
    }
}

/// The network that a text names (`10.0.0.0/8`, or one address), or why it names none and what to write.
pub(in crate::config) fn network(text: &str) -> Result<IpNet, (String, String)> {
    let bad = || {
        let remedy = "write a network such as `10.0.0.0/8` or `fd00::/8`, or one address";
        (format!("`{text}` is no network"), remedy.to_owned())
    };
    let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| bad())?;
    if let IpAddr::V6(address) = parsed.network()
        && let Some(inner) = address.to_ipv4_mapped()
    {
        let written = format!("{inner}/{}", parsed.prefix_len().saturating_sub(96));
        return Err((format!("`{text}` is IPv4 in other clothes"), format!("write `{written}`: it holds for both")));
    }
    if parsed.addr() != parsed.network() {
        let written = parsed.trunc();
        return Err((
            format!("`{text}` names an address and a network at once"),
            format!("write `{written}` for the network, or `{}` for the address", parsed.addr()),
        ));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(texts: &[&str]) -> Networks {
        Networks::new(&texts.iter().map(|text| network(text).unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn an_address_is_in_the_set_if_one_of_its_networks_holds_it() {
        let set = set(&["10.0.0.0/8", "10.1.0.0/16", "192.168.1.7", "fd00::/8", "0.0.0.0/32"]);
        for inside in ["10.0.0.0", "10.255.255.255", "192.168.1.7", "fd12::1", "::ffff:10.3.2.1", "0.0.0.0"] {
            assert!(set.hold(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["9.255.255.255", "11.0.0.0", "192.168.1.6", "192.168.1.8", "fe00::1", "::a00:1", "::"] {
            assert!(!set.hold(outside.parse().unwrap()), "{outside}");
        }
        assert!(!Networks::default().hold("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn deny_wins_and_an_empty_allow_list_allows_all() {
        let network =
            |allow: &[&str], deny: &[&str]| Network { allow: set(allow), deny: set(deny), ..Network::default() };
        let admits = |network: &Network, address: &str| network.admits(address.parse().unwrap());
        assert!(admits(&network(&[], &[]), "1.2.3.4"));
        let both = network(&["10.0.0.0/8"], &["10.1.0.0/16"]);
        assert!(admits(&both, "10.0.0.1") && !admits(&both, "10.1.0.1") && !admits(&both, "11.0.0.1"));
    }

    #[test]
    fn what_is_no_network_is_told_with_what_to_write() {
        for (text, remedy) in [
            ("10.0.0.1/8", "`10.0.0.0/8` for the network, or `10.0.0.1`"),
            ("::ffff:10.0.0.0/104", "`10.0.0.0/8`"),
            ("10.0.0.0/33", "10.0.0.0/8"),
            ("localhost", "one address"),
            ("", "one address"),
        ] {
            let (_, told) = network(text).unwrap_err();
            assert!(told.contains(remedy), "{text}: {told}");
        }
    }

    proptest! {
        #[test]
        fn the_set_says_what_each_network_by_itself_says(
            networks in proptest::collection::vec((any::<u32>(), 0..=32_u8), 0..9), address in any::<u32>(),
        ) {
            let address = IpAddr::from(address.to_be_bytes());
            let net = |(bits, length): &(u32, u8)| IpNet::new(IpAddr::from(bits.to_be_bytes()), *length).unwrap().trunc();
            let networks: Vec<IpNet> = networks.iter().map(net).collect();
            let said = networks.iter().any(|network| network.contains(&address));
            prop_assert_eq!(Networks::new(&networks).hold(address), said);
        }
    }
}
