//! The stages of a stop, in order; every door and the readiness probe watch them. And how a connection is brought to
//! its end without losing a request that is already on its way.
//!
//! A server that closes an idle HTTP/1.1 connection cannot know what its client is just sending. So clients are told to
//! go with an answer (`connection: close`) from the first stage on, long before anything closes, and who has not asked
//! anything since gets a last call. HTTP/2 has GOAWAY for it, which hyper sends in two steps: what comes between them is
//! still served.

use std::time::Duration;

use http::{HeaderValue, Response, Version, header};
use tokio::{net::TcpListener, sync::watch, time::sleep};

/// How long an idle HTTP/1.1 connection, or one that was just made, may still ask after the door has closed: a request
/// that crossed with the closing is here within a round trip (300 ms around the earth) and one retransmission.
const LAST_CALL: Duration = Duration::from_secs(1);

/// How long a door that has a successor turns new connections away before it closes, so that those half made are made:
/// a round trip. A client that is turned away asks again after a second and finds the successor.
const HALF_MADE: Duration = Duration::from_millis(300);

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// All is open.
    Serving,
    /// Not ready any more, but still accepting: load balancers need a moment to notice.
    Leaving,
    /// No new connections; those that exist are told to go after what they are doing.
    Closing,
    /// Whoever is still here is cut off.
    Cutting,
}

/// The present phase, and the right to move it forward.
#[derive(Debug)]
pub struct Stage(watch::Sender<Phase>);

impl Default for Stage {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Serving))
    }
}

impl Stage {
    /// Moves on to `phase`; never back.
    pub fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let forward = phase > *now;
            *now = phase.max(*now);
            forward
        });
    }

    /// The present phase.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Follows the phases.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }

    /// From the first stage of a stop on, an HTTP/1.1 client is told that this was the last answer here, so that its next
    /// request goes elsewhere. HTTP/2 knows no such header.
    pub fn take_leave<B>(&self, version: Version, mut response: Response<B>) -> Response<B> {
        if version < Version::HTTP_2 && self.phase() > Phase::Serving {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Resolves once `phase` is reached or passed.
    pub async fn reached(&self, phase: Phase) {
        // The sender lives in self, so waiting cannot fail.
        self.watch().wait_for(|now| *now >= phase).await.ok();
    }
}

/// Resolves when a connection is to be told to go: as soon as the stage says so where the protocol loses nothing by that
/// (`says_goodbye`), after a last call elsewhere.
pub(super) async fn last_call(mut phase: watch::Receiver<Phase>, says_goodbye: impl Fn() -> bool) {
    if phase.wait_for(|phase| *phase >= Phase::Closing).await.is_err() {
        // The stage is gone, and nobody will say anything any more.
        std::future::pending::<()>().await;
    }
    if !says_goodbye() {
        sleep(LAST_CALL).await;
    }
}

/// Resolves when a door may close. One that has a successor first turns new connections away, so that they are made
/// there, and those half made here are still accepted.
pub(super) async fn may_close(socket: &TcpListener, mut phase: watch::Receiver<Phase>, shared: bool) {
    let said = phase.wait_for(|phase| *phase >= Phase::Closing).await.is_ok();
    if said && shared && turn_away(socket) {
        sleep(HALF_MADE).await;
    }
}

/// The kernel drops every further SYN at this socket, and nothing else.
#[cfg(target_os = "linux")]
fn turn_away(socket: &TcpListener) -> bool {
    use socket2::{SockFilter, SockRef};
    // Classic BPF over the TCP header: load byte 13 (the flags); with SYN set, keep 0 bytes of the packet, else all.
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    let filter = [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(JUMP_IF_SET, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    let done = SockRef::from(socket).attach_filter(&filter);
    if let Err(error) = &done {
        tracing::warn!(%error, "new connections cannot be turned away: some may be reset while the door closes");
    }
    done.is_ok()
}

/// Elsewhere the few that come while the door closes are reset.
#[cfg(not(target_os = "linux"))]
fn turn_away(_: &TcpListener) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, net::SocketAddr, sync::Arc};

    use http::Request;
    use hyper::body::Incoming;
    use prometheus_client::metrics::gauge::Gauge;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpSocket, TcpStream},
        sync::Semaphore,
    };

    use super::{
        super::{Door, Limits, Rejected},
        *,
    };
    use crate::tasks::Tasks;

    #[test]
    fn a_stop_never_goes_back() {
        let stage = Stage::default();
        stage.enter(Phase::Closing);
        stage.enter(Phase::Leaving);
        assert_eq!(stage.phase(), Phase::Closing);
    }

    /// A listener and its address, which others may share.
    fn shared(address: SocketAddr) -> (TcpListener, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseport(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    async fn answer(mut stream: TcpStream) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn who_stands_in_the_backlog_when_the_door_closes_is_still_served() {
        let (socket, address) = shared(([127, 0, 0, 1], 0).into());
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let long = Duration::from_secs(9);
        let limits = Limits {
            header_read: long,
            client_idle: long,
            write_stall: long,
            header_fields: 9,
            header_bytes: 9_000,
            http2_streams: 9,
            may_give_up: false,
        };
        let room = Arc::new(Semaphore::new(100));
        let door = Door {
            name: "door".into(),
            socket,
            limits,
            room,
            open: Gauge::default(),
            shared: false,
            rejected: Rejected::default(),
            tls: None,
            rules: super::super::Rules::default(),
        };
        let (stage, tasks) = (Stage::default(), Tasks::new());
        stage.enter(Phase::Closing);
        let serve = |_, _: Request<Incoming>| async { Ok::<_, Infallible>(Response::new(String::from("here"))) };
        let clients = clients.into_iter().map(|client| tasks.spawn(answer(client))).collect::<Vec<_>>();
        super::super::run(door, serve, stage.watch(), tasks.clone()).await;
        for client in clients {
            assert!(client.await.unwrap().ends_with("here"));
        }
        tasks.wait().await;
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_door_with_a_successor_turns_clients_away_and_they_find_it_there() {
        let (leaving, address) = shared(([127, 0, 0, 1], 0).into());
        let made = TcpStream::connect(address).await.unwrap();
        assert!(turn_away(&leaving));
        let tasks = Tasks::new();
        let late = tasks.spawn(TcpStream::connect(address));
        let (mut accepted, _) = leaving.accept().await.unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), made.local_addr().unwrap(), "what was made is whole");
        accepted.write_all(b"here").await.unwrap();
        tokio::time::timeout(HALF_MADE, leaving.accept()).await.unwrap_err();
        assert!(!late.is_finished(), "neither made nor refused");
        let (successor, _) = shared(address);
        drop(leaving);
        let (found, _) = successor.accept().await.unwrap();
        let late = late.await.unwrap().unwrap();
        assert_eq!(late.local_addr().unwrap(), found.peer_addr().unwrap());
    }
}
