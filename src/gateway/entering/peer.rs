//! Who is at the other end of a connection: its address, and what its certificate says.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::admission::PeerCertificate;

/// Who is at the other end of a connection, as the door found out; written once for all its requests.
#[derive(Clone, Debug)]
pub struct Peer(Arc<Found>);

#[derive(Debug)]
struct Found {
    address: SocketAddr,
    shown: Box<str>,
    certificate: Option<Arc<PeerCertificate>>,
}

impl Peer {
    /// The one at `address`, who showed `certificate`.
    pub fn new(address: SocketAddr, certificate: Option<Arc<PeerCertificate>>) -> Self {
        Self(Arc::new(Found { address, shown: address.to_string().into(), certificate }))
    }

    /// The same one, who showed `certificate`.
    #[must_use]
    pub fn showing(&self, certificate: Option<Arc<PeerCertificate>>) -> Self {
        let (address, shown) = (self.0.address, self.0.shown.clone());
        Self(Arc::new(Found { address, shown, certificate }))
    }

    /// The client at `address` for whom this one speaks. Its certificate stays that of the connection.
    #[must_use]
    pub(in crate::gateway) fn speaking_for(&self, address: IpAddr) -> Self {
        let certificate = self.0.certificate.clone();
        // Nobody said from which port.
        Self(Arc::new(Found { address: SocketAddr::new(address, 0), shown: address.to_string().into(), certificate }))
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The same as text, as the log names it.
    pub fn shown(&self) -> &str {
        &self.0.shown
    }

    /// What its certificate says, if it was asked for one and showed one that was found trusted.
    pub fn certificate(&self) -> Option<&Arc<PeerCertificate>> {
        self.0.certificate.as_ref()
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self::new(address, None)
    }
}
