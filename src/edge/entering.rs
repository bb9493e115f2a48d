//! What a connection goes through before its first request: is it from where clients may come, whose is it, and what
//! does it speak.
//!
//! In this order, because each step is dearer than the one before: an address costs nothing, a handshake half a
//! millisecond.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::server::TlsStream;

use super::{
    Rejected, Tls, proxy_header,
    rejected::{NO_HEADER, UNTRUSTED},
};
use crate::{
    config::{Network, ProxyProtocol},
    gateway::{Peer, refuse_clear_text},
};

/// From where nobody may come.
pub(super) const DENIED: &str = "denied_address";

/// How long a client that spoke clear text may take to read that it should not, and how much it may go on saying.
const LAST_WORDS: Duration = Duration::from_secs(2);
const MOST_HEARD: u64 = 64 << 10;

/// Says which rules on addresses are in force now.
#[derive(Clone)]
pub struct Rules(Arc<dyn Fn() -> Arc<Network> + Send + Sync>);

impl Rules {
    /// As `now` says whenever it is asked.
    pub fn of(now: impl Fn() -> Arc<Network> + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(super) fn now(&self) -> Arc<Network> {
        (self.0)()
    }
}

impl Default for Rules {
    /// Everybody may come, as who they are.
    fn default() -> Self {
        let all = Arc::<Network>::default();
        Self::of(move || Arc::clone(&all))
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rules")
    }
}

/// What must be heard of a connection before it is known whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// Nothing.
    Nothing,
    /// A PROXY header.
    Header,
}

/// What a new connection from `address` has to say first; else why it may not be here. Whoever is trusted to speak for
/// others is judged with them, request by request.
pub(super) fn at_the_door(network: &Network, address: IpAddr) -> Result<First, &'static str> {
    let trusted = network.trusted_proxies.hold(address);
    match network.proxy_protocol {
        ProxyProtocol::Required if !trusted => Err(UNTRUSTED),
        ProxyProtocol::Required => Ok(First::Header),
        ProxyProtocol::FromTrusted if trusted => Ok(First::Header),
        _ if trusted || network.admits(address) => Ok(First::Nothing),
        _ => Err(DENIED),
    }
}

/// A connection as its requests will come.
pub(super) enum Entered {
    /// In clear text.
    Plain(TcpStream),
    /// Within TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// What lies between a door and its first request.
#[derive(Clone)]
pub(super) struct Porch {
    pub(super) tls: Option<Tls>,
    pub(super) rejected: Rejected,
    /// How long all of it may take.
    pub(super) limit: Duration,
}

impl Porch {
    /// Leads one client through; whoever does not get through is counted.
    pub(super) async fn lead(
        &self,
        stream: TcpStream,
        peer: Peer,
        (network, first): (Arc<Network>, First),
    ) -> Option<(Entered, Peer)> {
        let from = peer.clone();
        let through = async {
            let (mut stream, mut peer) = (stream, peer);
            if first == First::Header {
                peer = self.named(&mut stream, peer, &network).await?;
            }
            match &self.tls {
                None => Some((Entered::Plain(stream), peer)),
                Some(tls) => self.greeted(tls, stream, peer).await,
            }
        };
        timeout(self.limit, through).await.unwrap_or_else(|_| {
            self.rejected.no_handshake(from.shown(), None);
            None
        })
    }

    /// The client that a balancer names.
    async fn named(&self, stream: &mut TcpStream, peer: Peer, network: &Network) -> Option<Peer> {
        let client = match proxy_header::read(stream).await {
            Ok(Some(client)) => Peer::from(client),
            Ok(None) => peer,
            // So balancers look whether anybody is there.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
            Err(error) => {
                self.rejected.turned_away(NO_HEADER, peer.shown(), &error);
                return None;
            }
        };
        let address = client.address().ip();
        if network.trusted_proxies.hold(address) || network.admits(address) {
            return Some(client);
        }
        self.rejected.count(DENIED);
        None
    }

    async fn greeted(&self, tls: &Tls, stream: TcpStream, peer: Peer) -> Option<(Entered, Peer)> {
        let mut stream = stream;
        if speaks_http(&stream).await {
            self.rejected.clear_text();
            // Nobody is kept waiting for it.
            _ = timeout(LAST_WORDS, advise(&mut stream)).await;
            return None;
        }
        match tls.greet(stream).await {
            Ok((stream, certificate)) => {
                let peer = if certificate.is_some() { peer.showing(certificate) } else { peer };
                Some((Entered::Tls(Box::new(stream)), peer))
            }
            Err(error) => {
                self.rejected.no_handshake(peer.shown(), Some(&error));
                None
            }
        }
    }
}

/// Whether the first byte is a letter, as that of every method is and that of a handshake is not.
async fn speaks_http(stream: &TcpStream) -> bool {
    let mut first = [0];
    matches!(stream.peek(&mut first).await, Ok(1)) && first.iter().all(u8::is_ascii_uppercase)
}

/// Tells a client in clear text that there is none here.
async fn advise(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(&refuse_clear_text()).await?;
    stream.shutdown().await?;
    // What it goes on saying is dropped, because a reset would take our answer with it.
    tokio::io::copy(&mut stream.take(MOST_HEARD), &mut tokio::io::sink()).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        Networks,
        ProxyProtocol::{FromTrusted, Off, Required},
    };

    #[test]
    fn who_may_not_come_is_told_by_the_address_alone_and_who_speaks_for_others_is_heard() {
        let set = |text: &str| Networks::new(&[text.parse().unwrap()]);
        let network = |proxy_protocol| Network {
            proxy_protocol,
            trusted_proxies: set("10.0.0.0/8"),
            deny: set("10.6.0.0/16"),
            allow: set("192.168.0.0/16"),
            ..Network::default()
        };
        for (protocol, address, expected) in [
            (Off, "10.0.0.1", Ok(First::Nothing)),
            (Off, "10.6.0.1", Ok(First::Nothing)),
            (Off, "192.168.0.1", Ok(First::Nothing)),
            (Off, "172.16.0.1", Err(DENIED)),
            (Required, "10.0.0.1", Ok(First::Header)),
            (Required, "192.168.0.1", Err(UNTRUSTED)),
            (FromTrusted, "10.0.0.1", Ok(First::Header)),
            (FromTrusted, "192.168.0.1", Ok(First::Nothing)),
            (FromTrusted, "172.16.0.1", Err(DENIED)),
        ] {
            assert_eq!(at_the_door(&network(protocol), address.parse().unwrap()), expected, "{protocol:?} {address}");
        }
    }
}
