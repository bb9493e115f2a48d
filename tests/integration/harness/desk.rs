//! A desk without the rest of a gateway: no senses, whose clocks tick all day, and a house that a test may rebuild.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tidegate::{
    app::still_house,
    clock, config,
    gateway::{Desk, House, Peer, Policy},
    tasks::Tasks,
};
use tokio::net::TcpListener;

use super::RawPod;

/// A desk that serves HTTP/1.1 on loopback.
pub(crate) struct LoneDesk {
    pub(crate) addr: SocketAddr,
    pub(crate) house: Arc<House>,
    tasks: Tasks,
}

impl LoneDesk {
    /// One that sends everything to `pod`, after `rebuild` of its house.
    pub(crate) async fn before(pod: &RawPod, rebuild: impl FnOnce(&mut House)) -> Self {
        let text = format!(
            "listeners: [{{ name: main, address: 127.0.0.1:0 }}]\nmodels: [{{ modelName: m, poolRef: pods }}]\n\
             pools: [{{ name: pods, engine: vllm, endpoints: [{}] }}]",
            pod.endpoint()
        );
        let (config, _) = config::load("test.yaml", &text).unwrap_or_else(|report| panic!("{report:?}\n{text}"));
        let config = Arc::new(config);
        let mut house = still_house(&config);
        rebuild(&mut house);
        let house = Arc::new(house);
        let [config::Endpoint::Fixed(target)] = &config.pools[0].endpoints[..] else { panic!("one pod") };
        house.fleet.set("pods", std::slice::from_ref(target), clock::now());
        let policy = Arc::new(ArcSwap::from_pointee(Policy::new(config, &house.fleet)));
        let desk = Desk::new(Arc::clone(&house), policy, 0);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, tasks) = (listener.local_addr().unwrap(), Tasks::new());
        let spawner = tasks.clone();
        tasks.spawn_until_stop(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let (desk, peer) = (desk.clone(), Peer::from(peer));
                let serve = service_fn(move |request| desk.clone().serve(peer.clone(), request));
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve);
                spawner.spawn_until_stop(async { _ = connection.await });
            }
        });
        Self { addr, house, tasks }
    }
}

impl Drop for LoneDesk {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}
