//! Sockets that were bound before we started: a service manager that keeps them (systemd's `LISTEN_FDS`) refuses nobody
//! while the gateway is replaced, and lets it listen on ports below 1024.
//!
//! A socket belongs to the address that it is bound to, so the configuration is the same with a service manager and
//! without one; names of sockets are not looked at.

use std::{io, net::SocketAddr};

use listenfd::ListenFd;
use tokio::net::{TcpListener, TcpSocket};

use super::StartError;

/// Connections that may wait to be accepted: what tokio and most servers ask for; the kernel caps it (`somaxconn`).
const BACKLOG: u32 = 1_024;

/// What was handed to this process and not taken yet.
pub(super) struct Handed(Vec<(SocketAddr, std::net::TcpListener)>);

/// A socket that listens.
pub(super) struct Bound {
    pub(super) socket: TcpListener,
    /// Whether a successor binds its own beside it. One that was handed to us is handed to the successor too.
    pub(super) shared: bool,
}

impl Handed {
    /// All that there are. To be called once in a process.
    pub(super) fn take() -> Self {
        let mut given = ListenFd::from_env();
        let sockets = (0..given.len()).filter_map(|at| match given.take_tcp_listener(at) {
            Ok(socket) => socket.and_then(|socket| Some((socket.local_addr().ok()?, socket))),
            Err(error) => {
                tracing::warn!(%error, "a socket that was passed to us is not used");
                None
            }
        });
        Self(sockets.collect())
    }

    /// The socket for `address` that was handed to us, or a new one; with `reuse_port`, beside another process of this user
    /// that did the same.
    pub(super) fn bind(&mut self, what: String, address: SocketAddr, reuse_port: bool) -> Result<Bound, StartError> {
        let handed = self.0.iter().position(|(bound, _)| *bound == address);
        let bound = match handed.map(|at| self.0.swap_remove(at)) {
            Some((_, socket)) => adopt(socket).map(|socket| Bound { socket, shared: false }),
            None => bind(address, reuse_port).map(|socket| Bound { socket, shared: reuse_port }),
        };
        bound.map_err(|source| {
            let passed = self.0.iter().map(|(bound, _)| *bound).find(|bound| bound.port() == address.port());
            StartError::Bind { what, address, passed, source }
        })
    }

    /// Tells of those that no listener wants. Before any is bound: one that is not what was meant is in the way then.
    pub(super) fn tell_of_unwanted(&self, wanted: &[SocketAddr]) {
        for (address, _) in self.0.iter().filter(|(address, _)| !wanted.contains(address)) {
            tracing::warn!(%address, "a socket was passed to us for an address at which nothing listens");
        }
    }
}

fn adopt(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(reuse_port)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_for_all_addresses_in_the_way_of_one_for_a_single_address_is_named() {
        // What `ListenStream=8080` passes.
        let before = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let passed = before.local_addr().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], passed.port()));
        let mut handed = Handed(vec![(passed, before)]);
        let error = handed.bind("listener 'main'".to_owned(), address, false).err().unwrap().to_string();
        assert_eq!(
            error,
            format!(
                "cannot listen on {address} for listener 'main' (a socket for {passed} was passed to us: write that address \
                 in the configuration, or `ListenStream={address}` in the .socket unit)"
            )
        );
    }

    #[tokio::test]
    async fn a_socket_is_given_to_whoever_listens_at_its_address_and_to_nobody_else() {
        let before = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = before.local_addr().unwrap();
        let mut handed = Handed(vec![(address, before)]);
        let other = handed.bind("other".to_owned(), "127.0.0.1:0".parse().unwrap(), true).unwrap();
        assert!(other.shared && other.socket.local_addr().unwrap() != address);
        let taken = handed.bind("main".to_owned(), address, true).unwrap();
        assert!(!taken.shared && taken.socket.local_addr().unwrap() == address);
        assert!(handed.bind("again".to_owned(), address, false).is_err(), "it is in use");
    }
}
