//! An Envoy, its picker and their pods, put up for one test.

use std::net::SocketAddr;

use super::{
    harness::{Call, Gateway, Reply, SimPod},
    process::{Envoy, deployed, program},
};

/// A gateway whose first listener is a picker with these `keys`, over these endpoints.
pub(crate) async fn picker(endpoints: Vec<String>, keys: &str, rest: &str) -> Gateway {
    let text = format!(
        "listeners:
  - name: picker
    address: 127.0.0.1:0
    protocol: ext-proc
    ext_proc: {{ {keys} }}
pools: [{{ name: pods, engine: vllm, endpoints: [{}] }}]
admin: {{ address: 127.0.0.1:0 }}
{rest}",
        endpoints.join(", ")
    );
    Gateway::from(&text).await
}

pub(crate) struct Scene {
    pub(crate) envoy: Envoy,
    pub(crate) gateway: Gateway,
    pub(crate) pods: Vec<SimPod>,
}

/// What is different about a scene.
pub(crate) struct Different<'a> {
    pub(crate) deployed: &'a str,
    pub(crate) envoy: &'a [(&'a str, &'a str)],
    pub(crate) keys: &'a str,
    pub(crate) rest: &'a str,
}

pub(crate) const PLAIN: Different<'_> =
    Different { deployed: "original-dst", envoy: &[], keys: "secure: true", rest: "" };

impl Scene {
    pub(crate) async fn with(many: usize, different: Different<'_>) -> Option<Self> {
        let program = program()?;
        let mut pods = Vec::new();
        for _ in 0..many {
            pods.push(SimPod::start().await);
        }
        let endpoints = pods.iter().map(SimPod::endpoint).collect();
        let gateway = picker(endpoints, different.keys, different.rest).await;
        gateway.sees_all_pods().await;
        let addresses: Vec<SocketAddr> = pods.iter().map(|pod| pod.addr()).collect();
        let mut config = deployed(different.deployed, gateway.addr, &addresses);
        for (from, to) in different.envoy {
            assert!(config.contains(from), "{from}");
            config = config.replace(from, to);
        }
        let envoy = Envoy::start(&program, &config).await;
        Some(Self { envoy, gateway, pods })
    }

    pub(crate) async fn send(&self, call: Call) -> Reply {
        call.send(self.envoy.addr).await
    }

    pub(crate) async fn quiet(&self) {
        self.gateway.quiet().await;
    }
}
