//! Stops and restarts under load: clients that do what they are told lose nothing.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{net::TcpSocket, task::JoinHandle};

use crate::{
    binary::{Served, config},
    harness::{Call, Client, Gateway, SimPod, chat, chat_stream, eventually, within},
};

/// Where a new connection goes.
type Where = Arc<dyn Fn() -> SocketAddr + Send + Sync>;

/// Clients at work, and what went wrong for them.
#[derive(Clone, Default)]
struct Load(Arc<Tally>);

#[derive(Default)]
struct Tally {
    over: AtomicBool,
    served: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Load {
    fn over(&self) -> bool {
        self.0.over.load(Relaxed)
    }

    fn served(&self) -> usize {
        self.0.served.load(Relaxed)
    }

    fn note(&self, who: &str, answer: Result<(), String>) {
        match answer {
            Ok(()) => _ = self.0.served.fetch_add(1, Relaxed),
            Err(wrong) => self.0.wrong.lock().unwrap().push(format!("{who}: {wrong}")),
        }
    }

    /// A connection for each request, one request after the other.
    fn fresh(&self, to: &Where) -> JoinHandle<()> {
        let (load, to) = (self.clone(), Arc::clone(to));
        tokio::spawn(async move {
            while !load.over() {
                let answer = match tokio::net::TcpStream::connect(to()).await {
                    Ok(stream) => ask_once(stream).await,
                    Err(error) => Err(format!("connect: {error}")),
                };
                load.note("fresh", answer);
            }
        })
    }

    /// One connection until it is told to leave, with a pause between requests.
    fn kept(&self, to: &Where, h2: bool, pause: Duration) -> JoinHandle<()> {
        let (load, to) = (self.clone(), Arc::clone(to));
        let who = if h2 { "h2" } else { "h1" };
        tokio::spawn(async move {
            'connect: while !load.over() {
                let mut client = if h2 { Client::h2(to()).await } else { Client::h1(to()).await };
                while !load.over() {
                    let reply = match client.ask(chat_stream("hi", 3)).await {
                        Ok(reply) => reply,
                        // Nothing of it was sent: the connection had been closed, or told to close, before.
                        Err(error) if error.is_canceled() => continue 'connect,
                        Err(error) => {
                            load.note(who, Err(format!("{error:?}")));
                            continue 'connect;
                        }
                    };
                    let (status, last) = (reply.status(), reply.header("connection") == Some("close"));
                    let text = reply.collected().await.map(|(bytes, _)| bytes);
                    let whole = |bytes: &[u8]| status == 200 && bytes.ends_with(b"data: [DONE]\n\n");
                    load.note(
                        who,
                        match text {
                            Ok(bytes) if whole(&bytes) => Ok(()),
                            other => Err(format!("{status} {other:?}")),
                        },
                    );
                    if last {
                        continue 'connect;
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        })
    }

    fn crowd(&self, to: &Where) -> Vec<JoinHandle<()>> {
        let mut clients = vec![self.fresh(to), self.fresh(to)];
        for h2 in [false, true] {
            for pause in [0, 5, 50, 400] {
                clients.push(self.kept(to, h2, Duration::from_millis(pause)));
            }
        }
        clients
    }

    async fn end(&self, clients: Vec<JoinHandle<()>>) {
        self.0.over.store(true, Relaxed);
        for client in clients {
            within("a client to end", client).await.unwrap();
        }
        let wrong = self.0.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{} served, {} lost: {wrong:#?}", self.served(), wrong.len());
    }
}

async fn ask_once(stream: tokio::net::TcpStream) -> Result<(), String> {
    let mut client = Client::over(stream).await.map_err(|error| format!("handshake: {error:?}"))?;
    let reply = client.ask(chat("hi", 1)).await.map_err(|error| format!("{error:?}"))?;
    let status = reply.status();
    let text = reply.collected().await.map_err(|error| format!("{error:?}"))?.0;
    if status == 200 { Ok(()) } else { Err(format!("{status} {text:?}")) }
}

#[tokio::test]
async fn a_stop_under_load_loses_nothing_for_clients_whose_balancer_watches_the_probe() {
    let pod = SimPod::start().await;
    let [one, two] = [Gateway::over([pod.endpoint()]).start().await, Gateway::over([pod.endpoint()]).start().await];
    let ready = Arc::new(AtomicBool::new(true));
    let (addresses, probed) = ([one.addr, two.addr], Arc::clone(&ready));
    let to: Where = Arc::new(move || addresses[usize::from(!probed.load(Relaxed))]);
    let load = Load::default();
    let clients = load.crowd(&to);
    eventually("load", || load.served() > 200).await;
    let house = Arc::clone(&one.running.house);
    let admin = one.admin();
    let delay = Duration::from_millis(700);
    let stopped = tokio::spawn(one.running.stop(delay, Duration::from_secs(15), std::future::pending()));
    let not_ready = async { while Call::get("/readyz").send(admin).await.status() != 503 {} };
    within("the probe to fail", not_ready).await;
    ready.store(false, Relaxed);
    assert_eq!(within("the stop", stopped).await.unwrap().cut, 0);
    assert_eq!(house.requests_open.load(Relaxed), 0);
    let already = load.served();
    eventually("load on the other", || load.served() > already + 100).await;
    load.end(clients).await;
}

#[tokio::test]
async fn every_client_is_told_to_go_before_anything_closes() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let (mut h1, mut idle, to) = (Client::h1(gateway.addr).await, Client::h1(gateway.addr).await, gateway.addr);
    for client in [&mut h1, &mut idle] {
        let reply = client.ask(chat("hi", 1)).await.unwrap();
        assert_eq!(reply.header("connection"), None);
        reply.bytes().await;
    }
    let silent = tokio::net::TcpStream::connect(to).await.unwrap();
    let (delay, admin) = (Duration::from_millis(300), gateway.admin());
    let stopped = tokio::spawn(gateway.running.stop(delay, Duration::from_secs(15), std::future::pending()));
    let not_ready = async { while Call::get("/readyz").send(admin).await.status() != 503 {} };
    within("the probe to fail", not_ready).await;
    let reply = h1.ask(chat("hi", 1)).await.unwrap();
    assert_eq!(reply.header("connection"), Some("close"));
    reply.bytes().await;
    let closed = async { while tokio::net::TcpStream::connect(to).await.is_ok() {} };
    within("the door to close", closed).await;
    // Who was idle all the while, and who had only just come, may still ask once.
    let reply = idle.ask(chat("hi", 1)).await.unwrap();
    assert_eq!((reply.status(), reply.header("connection")), (200, Some("close")));
    reply.bytes().await;
    assert_eq!(ask_once(silent).await, Ok(()));
    assert_eq!(stopped.await.unwrap().cut, 0);
}

/// A port of ours that others of this user may share; nobody is connected to this socket.
fn shared_port() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test]
async fn a_process_takes_over_from_another_under_load() {
    let pod = SimPod::start().await;
    let folder = tempfile::tempdir().unwrap();
    let ((_one, address), (_two, admin)) = (shared_port(), shared_port());
    let path = config(folder.path(), &pod.endpoint(), "reuse_port: true\ntimeouts: { drain_delay: 200ms }\n");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replacen("127.0.0.1:0", &address.to_string(), 1).replacen("127.0.0.1:0", &admin.to_string(), 1);
    fs::write(&path, text).unwrap();
    let mut serving = Served::start(&path);
    let load = Load::default();
    let to: Where = Arc::new(move || address);
    let clients = load.crowd(&to);
    for _ in 0..3 {
        let already = load.served();
        eventually("load", || load.served() > already + 200).await;
        let successor = Served::start(&path);
        let already = load.served();
        eventually("load on both", || load.served() > already + 200).await;
        serving.signal("TERM");
        let (code, log) = serving.ended().await;
        assert_eq!(code, 0, "{log}");
        assert!(!log.contains("cannot be turned away"), "{log}");
        serving = successor;
    }
    assert_eq!(Call::get("/readyz").send(admin).await.status(), 200);
    load.end(clients).await;
    serving.signal("INT");
    assert_eq!(serving.ended().await.0, 0);
}
