//! `tidegate explain`: where a request would go, and why, without sending it.

use std::{
    io::{self, Read as _, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;

use super::{OK, PROBLEMS, load_config, table::Table};
use crate::{
    admin::{self, ExplainAnswer},
    app, clock,
    config::Config,
    fleet::FleetSnapshot,
    gateway::Policy,
    scheduler::{Candidate, Explanation},
};

/// Say where a request would go, and why.
///
/// Prints the route, every pod with each term of its score, and the verdict. Nothing is sent to any pod. It asks a
/// running gateway (the one of --config, or that at --admin), or judges from a saved state: what `GET /debug/fleet`
/// answered. A saved state knows nothing of prefix caches, so there every prompt token counts as uncached.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes:
  0  a pod would be chosen
  1  none would be, or the gateway could not be asked; the reason is printed
  2  the command line itself is wrong

Examples:
  tidegate explain --config gateway.yaml --request body.json
  curl -s localhost:9090/debug/fleet > state.json
  tidegate explain --config gateway.yaml --request body.json --state state.json")]
pub(super) struct Args {
    /// The gateway's configuration
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// The request's body, JSON; `-` reads standard input
    #[arg(short, long, value_name = "BODY.json")]
    request: PathBuf,
    /// The path that it would be sent to
    #[arg(long, default_value = "/v1/chat/completions")]
    path: String,
    /// The listener that it would come in by [default: the first]
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// The running gateway's admin address [default: the configuration's]
    #[arg(long, value_name = "URL", conflicts_with = "state")]
    admin: Option<String>,
    /// A saved `/debug/fleet` answer to judge from instead of a running gateway
    #[arg(long, value_name = "STATE.json")]
    state: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Some(config) = load_config(&args.config)? else { return Ok(ExitCode::from(PROBLEMS)) };
    let body = read(&args.request)?;
    let (answer, source) = match &args.state {
        Some(state) => (from_state(config, args, &body, state)?, format!("state of {}", state.display())),
        None => {
            let admin = args.admin.clone().unwrap_or_else(|| format!("http://{}", reachable(config.admin)));
            (from_gateway(&admin, args, body)?, format!("live, from {admin}"))
        }
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?;
    } else {
        write!(out, "{}", rendered(&answer, &source, super::colour(&io::stdout())))?;
    }
    Ok(ExitCode::from(if answer.decision.verdict.is_some() { OK } else { PROBLEMS }))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut body = Vec::new();
        io::stdin().lock().read_to_end(&mut body)?;
        return Ok(body);
    }
    std::fs::read(path).with_context(|| format!("cannot read the request {}", path.display()))
}

/// Where an address that a gateway listens on can be reached from here.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let v6 = address.is_ipv6();
        address.set_ip(if v6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) });
    }
    address
}

fn from_gateway(admin: &str, args: &Args, body: Vec<u8>) -> anyhow::Result<ExplainAnswer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut query = vec![("path", args.path.clone())];
    query.extend(args.listener.clone().map(|listener| ("listener", listener)));
    runtime.block_on(async {
        let client =
            reqwest::Client::builder().no_proxy().tls_backend_preconfigured(crate::upstream::client_tls(None)?);
        let url = format!("{}/debug/explain", admin.trim_end_matches('/'));
        let asked = client.build()?.post(&url).query(&query).body(body).send().await;
        let response = asked.with_context(|| {
            format!("no gateway answers at {admin}; is it running? --admin URL names another, --state FILE needs none")
        })?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("the gateway would refuse this request ({status}): {}", text.trim());
        }
        serde_json::from_str(&text).with_context(|| format!("{url} answered something else than an explanation"))
    })
}

fn from_state(config: Config, args: &Args, body: &[u8], state: &Path) -> anyhow::Result<ExplainAnswer> {
    let text = std::fs::read_to_string(state).with_context(|| format!("cannot read {}", state.display()))?;
    let snapshot: FleetSnapshot =
        serde_json::from_str(&text).with_context(|| format!("{} is not what /debug/fleet answers", state.display()))?;
    let config = Arc::new(config);
    let house = app::still_house(&config);
    let now = clock::now();
    let held = snapshot.restore(&house.fleet, now);
    let policy = Arc::new(ArcSwap::from_pointee(Policy::new(config)));
    let answer = admin::explain_request(&house, &policy.load_full(), args.listener.as_deref(), &args.path, body);
    drop(held);
    Ok(answer?)
}

fn rendered(answer: &ExplainAnswer, source: &str, coloured: bool) -> String {
    let Explanation { policy, prompt_tokens, candidates, verdict, refusal, sight, failed_open, .. } = &answer.decision;
    let mut text = format!(
        "route     {} -> pool {}, served as {} (listener {})\nrequest   about {prompt_tokens} prompt tokens\n\
         policy    {policy}{}   ({source})\n",
        answer.model,
        answer.pool,
        answer.served_model,
        answer.listener,
        sight.map(|sight| format!(", sight {}", sight.name())).unwrap_or_default(),
    );
    if *failed_open {
        text.push_str("          no pod is admitted: failing open to pods that are out\n");
    }
    text.push('\n');
    text.push_str(&candidates_table(candidates, verdict.as_deref()).rendered(coloured));
    match (verdict, refusal) {
        (Some(pod), _) => text.push_str(&format!("\nverdict   {pod}{}\n", margin(candidates, pod))),
        (None, Some(why)) => text.push_str(&format!("\nverdict   none: {why}\n")),
        (None, None) => {}
    }
    text
}

fn candidates_table(candidates: &[Candidate], verdict: Option<&str>) -> Table {
    let terms: Vec<&str> = candidates
        .iter()
        .find(|it| !it.terms.is_empty())
        .map_or_else(Vec::new, |it| it.terms.iter().map(|term| &*term.name).collect());
    let unit = candidates.iter().find(|it| it.total.is_some()).map_or("", |it| &*it.unit);
    let fixed = ["", "pod", "condition", "read ago", "in flight", "streams", "uncached"];
    let total = format!("total {unit}");
    let mut table = Table::new(fixed.into_iter().chain(terms.iter().copied()).chain([total.as_str(), ""]));
    for candidate in candidates {
        let chosen = verdict == Some(candidate.pod.as_str());
        let mut row = vec![
            if chosen { ">" } else { "" }.to_owned(),
            candidate.pod.clone(),
            candidate.condition.to_string(),
            candidate.reading_age_ms.map_or_else(|| "never".to_owned(), |ms| format!("{ms} ms")),
            candidate.in_flight.to_string(),
            candidate.streams.map_or_else(|| "?".to_owned(), |streams| format!("{streams:.1}")),
            candidate.uncached_tokens.to_string(),
        ];
        row.extend(terms.iter().map(|name| {
            candidate
                .terms
                .iter()
                .find(|term| term.name == *name)
                .map_or_else(String::new, |term| format!("{:.1}", term.value))
        }));
        row.push(candidate.total.map_or_else(String::new, |total| format!("{total:.1}")));
        row.push(candidate.excluded.as_ref().map_or_else(String::new, ToString::to_string));
        table.push(row, chosen);
    }
    table
}

/// How clear the verdict is: the next best price.
fn margin(candidates: &[Candidate], pod: &str) -> String {
    let price = |it: &Candidate| it.total;
    let Some(best) = candidates.iter().find(|it| it.pod == pod).and_then(price) else { return String::new() };
    let unit = candidates.iter().find(|it| it.pod == pod).map_or("", |it| &*it.unit);
    let others = candidates.iter().filter(|it| it.pod != pod).filter_map(price);
    let next = others.min_by(|a, b| (a - best).abs().total_cmp(&(b - best).abs()));
    next.map_or_else(String::new, |next| format!(" at {best:.1} {unit}, the next at {next:.1} {unit}"))
}
