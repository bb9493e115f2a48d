//! A pool and its targets, for the tests of this room and those above.

use std::{sync::Arc, time::Duration};

use crate::config::{Bytes, Engine, Metrics, Origin, Pool, Saturation, Target};

/// A pool of any engine, scraped every 250 ms, without endpoints of its own.
pub(crate) fn pool(name: &str) -> Arc<Pool> {
    let metrics = Metrics {
        path: "/metrics".into(),
        port: None,
        interval: Duration::from_millis(250),
        timeout: Duration::from_secs(1),
        max_page: Bytes(4 << 20),
    };
    Arc::new(Pool {
        name: name.into(),
        engine: Engine::Auto,
        endpoints: Vec::new(),
        metrics,
        forward_authorization: false,
        ca_file: None,
        client_certificate: None,
        server_name: None,
        saturation: Saturation { wait: Duration::from_secs(1), batch: None },
        priority_scheduling: false,
    })
}

/// Plain http on port 8000.
pub(crate) fn target(host: &str) -> Target {
    let origin = Origin { https: false, host: host.into(), port: 8000 };
    Target { origin, base_path: String::new(), token_file: None, metrics_url: None }
}
