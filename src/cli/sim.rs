//! `tidegate sim`: simulated vLLM pods over HTTP, for trying things without a GPU.
//!
//! It only reads flags and prints where the pods are; what a pod does lives in `sim`.

use std::{
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    sim::{EngineConfig, Faults, Pod, PodConfig, RunningPod, profiles, step::StepModel},
    tasks::Tasks,
};

/// Start simulated vLLM pods: real HTTP, metrics and failures, no GPU.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = after_help())]
pub(super) struct Args {
    /// How many pods to start, on consecutive ports
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pods: u16,
    /// Port of the first pod
    #[arg(long, default_value_t = 9001)]
    port: u16,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Name of the base model
    #[arg(long, default_value = "llama2")]
    model: String,
    /// Adapters that every pod serves, by name, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    adapters: Vec<String>,
    /// Model and GPU whose speed to imitate; the list is below
    #[arg(long, default_value = profiles::PROFILES[0].name)]
    profile: String,
    /// Speed of each pod: one number for all, or one for each (0.5 is half as fast)
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "FACTORS")]
    speed: Vec<f64>,
    /// Requests in one batch at most
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_num_seqs: usize,
    /// KV-cache blocks of 16 tokens [default: what fits on the profile's GPU]
    #[arg(long, value_name = "N")]
    num_gpu_blocks: Option<u32>,
    /// Different adapters in one batch at most
    #[arg(long, default_value_t = 4, value_name = "N")]
    max_loras: usize,
    /// Real seconds in each simulated second: 0.1 makes everything ten times as fast
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    time_scale: f64,
    /// Let every answer prove which request it answers: words drawn from body and x-request-id, the last one a checksum
    #[arg(long)]
    checksum: bool,
}

/// Starts the pods and waits for Ctrl-C.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> anyhow::Result<ExitCode> {
    let tasks = Tasks::new();
    let pods = start(&args, &tasks).await?;
    announce(&args, &pods)?;
    tokio::signal::ctrl_c().await.context("cannot wait for Ctrl-C")?;
    tasks.stop();
    tasks.wait().await;
    Ok(ExitCode::SUCCESS)
}

async fn start(args: &Args, tasks: &Tasks) -> anyhow::Result<Vec<RunningPod>> {
    let config = pod_config(args)?;
    let mut pods = Vec::new();
    for nth in 0..args.pods {
        let port = args.port.checked_add(nth).context("the ports would go beyond 65535; choose a lower --port")?;
        let address = SocketAddr::new(args.host, port);
        let factor = args.speed.iter().cycle().nth(usize::from(nth)).copied().unwrap_or(1.0);
        let started = Pod::start(config.clone().speed(factor), address, tasks).await;
        pods.push(started.map_err(|cause| explain(&cause, address, args))?);
    }
    Ok(pods)
}

fn pod_config(args: &Args) -> anyhow::Result<PodConfig> {
    let Some(profile) = profiles::find(&args.profile) else {
        bail!("there is no profile `{}`; choose one of {}", args.profile, names());
    };
    let count = args.speed.len();
    ensure!(
        count == 1 || count == usize::from(args.pods),
        "--speed names {count} factors for {} pods; give one, or one for each pod",
        args.pods
    );
    ensure!(args.speed.iter().all(|&it| it.is_finite() && it > 0.0), "--speed takes numbers above 0");
    ensure!(args.time_scale.is_finite() && args.time_scale > 0.0, "--time-scale takes a number above 0");
    ensure!(args.max_num_seqs > 0 && args.max_loras > 0, "--max-num-seqs and --max-loras must be at least 1");
    let defaults = EngineConfig::new(StepModel::new(profile, 1.0));
    let blocks = args.num_gpu_blocks.unwrap_or(defaults.num_gpu_blocks);
    ensure!(blocks > 1, "--num-gpu-blocks must be at least 2");
    let engine =
        EngineConfig { num_gpu_blocks: blocks, max_num_seqs: args.max_num_seqs, max_loras: args.max_loras, ..defaults };
    let adapters = args.adapters.iter().filter(|name| !name.is_empty()).cloned().collect();
    Ok(PodConfig {
        adapters,
        engine,
        time_scale: args.time_scale,
        checksum: args.checksum,
        ..PodConfig::new(args.model.clone())
    })
}

fn explain(cause: &io::Error, address: SocketAddr, args: &Args) -> anyhow::Error {
    match cause.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "port {} is busy: something already listens on {address}. Stop it (`ss -ltnp 'sport = :{}'` shows what it \
             is) or choose other ports with --port; {} pods need that many in a row.",
            address.port(),
            address.port(),
            args.pods
        ),
        io::ErrorKind::AddrNotAvailable => {
            anyhow::anyhow!("{} is not an address of this machine; choose another --host", address.ip())
        }
        _ => anyhow::anyhow!("cannot listen on {address}: {cause}"),
    }
}

fn announce(args: &Args, pods: &[RunningPod]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    for (pod, speed) in pods.iter().zip(args.speed.iter().cycle()) {
        let what = profiles::find(&args.profile).map_or("", |profile| profile.what);
        let slower = if (*speed - 1.0).abs() < f64::EPSILON { String::new() } else { format!(", speed x{speed}") };
        writeln!(out, "{}  {}  {what}{slower}", pod.url(), args.model)?;
    }
    writeln!(out, "\nA config that serves them (tidegate serve --config FILE):\n\n{}\n", snippet(args, pods))?;
    writeln!(out, "Break one:  curl {}/sim/faults -d '{{\"error_rate\": 0.5}}'   ('{{}}' heals it)", first(pods))?;
    writeln!(out, "Faults:     {}", faults())?;
    writeln!(out, "Ctrl-C ends.")?;
    out.flush()?;
    Ok(())
}

/// What can be wrong with a pod, by the names that `/sim/faults` takes.
fn faults() -> String {
    let none = serde_json::to_value(Faults::default()).unwrap_or_default();
    none.as_object().map(|keys| keys.keys().cloned().collect::<Vec<_>>().join(", ")).unwrap_or_default()
}

fn first(pods: &[RunningPod]) -> String {
    pods.first().map(RunningPod::url).unwrap_or_default()
}

fn snippet(args: &Args, pods: &[RunningPod]) -> String {
    let mut lines = vec!["listeners:".to_owned(), "  - { name: openai, address: 127.0.0.1:8081 }".to_owned()];
    lines.extend(["pools:", "  - name: sim", "    engine: vllm", "    endpoints:"].map(str::to_owned));
    lines.extend(pods.iter().map(|pod| format!("      - {{ url: \"{}\" }}", pod.url())));
    lines.push("models:".to_owned());
    let models = [&args.model].into_iter().chain(&args.adapters);
    lines.extend(models.map(|name| format!("  - {{ modelName: {}, poolRef: sim }}", quoted(name))));
    lines.join("\n")
}

/// A name as YAML takes it whatever is in it: JSON's strings are YAML's.
fn quoted(name: &str) -> String {
    serde_json::Value::from(name).to_string()
}

fn names() -> String {
    profiles::PROFILES.iter().map(|profile| profile.name).collect::<Vec<_>>().join(", ")
}

fn after_help() -> String {
    let list = profiles::PROFILES.iter().map(|profile| format!("  {:<16} {}", profile.name, profile.what));
    format!(
        "Profiles:\n{}\n\nStep times were fitted to measurements that NVIDIA publishes with aiconfigurator (Apache-2.0).\n\
         \nExamples:\n  tidegate sim                                    four pods on 127.0.0.1:9001-9004\n  \
         tidegate sim --speed 1,1,1,0.5 --adapters a,b   the last one is half as fast; two adapters\n\n\
         Exit codes:\n  0  stopped by Ctrl-C\n  1  an address could not be bound, or a name or number makes no sense\n  \
         2  the command line itself is wrong\n\n\
         Faults (`POST /sim/faults`; what is left out is healed):\n  {}",
        list.collect::<Vec<_>>().join("\n"),
        faults()
    )
}
