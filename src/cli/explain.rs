//! `tidegate explain`: where a request would go, and why, without sending it.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use http::{HeaderValue, StatusCode, header::AUTHORIZATION};
use serde_json::value::{RawValue, to_raw_value};

use super::{OK, PROBLEMS, load_config, table::Table};
use crate::{
    admin::{self, ExplainAnswer, Waits},
    admission::Caller,
    app, clock,
    config::{Config, Sticky},
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
  0  a pod would be chosen, be it after a wait, be it one that is out because all are (failing open)
  1  none would be, or it would be refused for a limit or because its pool is full, or the gateway could not be asked;
     the reason is printed
  2  the command line itself is wrong

Examples:
  tidegate explain --config gateway.yaml --request body.json
  tidegate explain --admin localhost:9091 --request body.json    (a picker that has only flags)
  tidegate explain --config gateway.yaml --request body.json --key team-a-1    (why does this key get 429?)
  curl -s localhost:9090/debug/fleet > state.json
  tidegate explain --config gateway.yaml --request body.json --state state.json")]
pub(super) struct Args {
    /// The gateway's configuration; a gateway that is named by --admin needs none
    #[arg(short, long, value_name = "FILE", required_unless_present = "admin")]
    config: Option<PathBuf>,
    /// The request's body, JSON; `-` reads standard input
    #[arg(short, long, value_name = "BODY.json")]
    request: PathBuf,
    /// The path that it would be sent to
    #[arg(long, default_value = "/v1/chat/completions")]
    path: String,
    /// The listener that it would come in by [default: the first]
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// The session that it would name, instead of the one that its body names
    #[arg(long, value_name = "NAME")]
    session: Option<String>,
    /// The objective that its header would name; heard only by listeners that trust headers
    #[arg(long, value_name = "NAME")]
    objective: Option<String>,
    /// The key that it would show, by its public id: what it may ask for, its priority and its limits count
    #[arg(long, value_name = "ID", conflicts_with = "state")]
    key: Option<String>,
    /// The tenant that it would be of, where no key says it
    #[arg(long, value_name = "NAME", conflicts_with = "key")]
    tenant: Option<String>,
    /// The priority that its header would name; heard only by listeners that trust headers
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// The running gateway's admin address, such as 127.0.0.1:9090 [default: the configuration's]
    #[arg(long, value_name = "URL", conflicts_with = "state")]
    admin: Option<String>,
    /// A file with the token that the admin listener asks for [default: the configuration's]
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    token_file: Option<PathBuf>,
    /// A saved `/debug/fleet` answer to judge from instead of a running gateway
    #[arg(long, value_name = "STATE.json")]
    state: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = match args.config.as_deref().map(load_config).transpose()? {
        Some(None) => return Ok(ExitCode::from(PROBLEMS)),
        given => given.flatten(),
    };
    let body = read(&args.request)?;
    let body = args.session.as_ref().and_then(|session| naming_session(&body, session)).unwrap_or(body);
    let arms = config.as_ref().map(|config| Arms::of(config, &body)).unwrap_or_default();
    let (answer, source) = if let Some((state, config)) = args.state.as_ref().zip(config.clone()) {
        (from_state(config, args, &body, state)?, format!("state of {}", state.display()))
    } else {
        let configured = || config.as_ref().map(|config| reachable(config.admin.address).to_string());
        let admin = args.admin.clone().or_else(configured).context("which gateway? Give --config or --admin")?;
        let admin = if admin.contains("://") { admin } else { format!("http://{admin}") };
        let own = config.as_ref().and_then(|config| config.admin.token_file.clone());
        let token = args.token_file.clone().or(own).map(|file| token(&file)).transpose()?;
        (from_gateway(&admin, args, token, body)?, format!("live, from {admin}"))
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?;
    } else {
        write!(out, "{}", rendered(&answer, &arms.told(&answer), &source, super::colour(&io::stdout())))?;
    }
    Ok(ExitCode::from(if answer.decision.verdict.is_some() && !answer.shed && answer.refused.is_none() {
        OK
    } else {
        PROBLEMS
    }))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut body = Vec::new();
        io::stdin().lock().read_to_end(&mut body)?;
        return Ok(body);
    }
    std::fs::read(path).with_context(|| format!("cannot read the request {}", path.display()))
}

/// The body with another session; nothing if it is no JSON object, which the gateway will say better. Values stay as
/// they are, byte for byte, because prefixes are told by their bytes.
fn naming_session(body: &[u8], session: &str) -> Option<Vec<u8>> {
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(body).ok()?;
    fields.insert("session_id".to_owned(), to_raw_value(session).ok()?);
    serde_json::to_vec(&fields).ok()
}

/// What the configuration and the request say of splits, to tell why a request is on its arm.
#[derive(Default)]
struct Arms {
    /// Each split model's targets with their weights, and what keeps a request on one.
    splits: BTreeMap<String, (Vec<(String, u32)>, Sticky)>,
    session: Option<String>,
}

impl Arms {
    fn of(config: &Config, body: &[u8]) -> Self {
        let split = config.models.iter().filter(|model| model.targets.len() > 1);
        let splits = split.map(|model| {
            let arms = model.targets.iter().map(|target| (target.name.to_string(), target.weight)).collect();
            (model.name.to_string(), (arms, model.sticky))
        });
        let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let word = |key| body.get(key).and_then(serde_json::Value::as_str).filter(|word| !word.is_empty());
        let session = word("session_id").or_else(|| word("user")).map(ToOwned::to_owned);
        Self { splits: splits.collect(), session }
    }

    /// The line on the split that the route came from; empty if it came from none.
    fn told(&self, answer: &ExplainAnswer) -> String {
        let Some((arms, sticky)) = self.splits.get(&answer.model) else { return String::new() };
        let Some((at, (name, weight))) = arms.iter().enumerate().find(|(_, (name, _))| *name == answer.served_model)
        else {
            return String::new();
        };
        let total: u64 = arms.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let why = match (sticky, &self.session) {
            (Sticky::None, _) => "drawn, as every request is".to_owned(),
            (Sticky::Conversation, _) => "kept by the conversation's beginning".to_owned(),
            (Sticky::Session, Some(session)) => format!("kept by session `{session}`"),
            (Sticky::Session, None) => "drawn, as the request names no session".to_owned(),
        };
        let (at, of) = (at + 1, arms.len());
        format!("split     {name} is arm {at} of {of}, with weight {weight} of {total}: {why}\n")
    }
}

/// Where an address that a gateway listens on can be reached from here.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let v6 = address.is_ipv6();
        address.set_ip(if v6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) });
    }
    address
}

/// What the file holds, as a header.
fn token(file: &Path) -> anyhow::Result<HeaderValue> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read the token {}", file.display()))?;
    let mut header = HeaderValue::try_from(format!("Bearer {}", text.trim()))
        .with_context(|| format!("{} holds no token", file.display()))?;
    header.set_sensitive(true);
    Ok(header)
}

fn from_gateway(admin: &str, args: &Args, token: Option<HeaderValue>, body: Vec<u8>) -> anyhow::Result<ExplainAnswer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut query = vec![("path", args.path.clone())];
    query.extend(args.listener.clone().map(|listener| ("listener", listener)));
    query.extend(args.objective.clone().map(|objective| ("objective", objective)));
    query.extend(args.key.clone().map(|key| ("key", key)));
    query.extend(args.tenant.clone().map(|tenant| ("tenant", tenant)));
    query.extend(args.priority.map(|priority| ("priority", priority.to_string())));
    runtime.block_on(async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .default_headers(token.map(|token| (AUTHORIZATION, token)).into_iter().collect())
            .tls_backend_preconfigured(rustls::ClientConfig::clone(&crate::upstream::PodTls::common()?.config))
            .build()?;
        let url = format!("{}/debug/explain", admin.trim_end_matches('/'));
        let asked = client.post(&url).query(&query).body(body).send().await;
        let stranger = || anyhow::anyhow!("{admin} answers, but that is not a Tidegate admin address; --admin URL names another");
        let response = match asked {
            Ok(response) => response,
            Err(error) if error.is_connect() || error.is_builder() => {
                return Err(error).with_context(|| {
                    format!("no gateway answers at {admin}; is it running? --admin URL names another, --state FILE needs none")
                });
            }
            Err(_) => return Err(stranger()),
        };
        let status = response.status();
        let text = response.text().await?;
        if status.is_success() {
            return serde_json::from_str(&text).map_err(|_| stranger());
        }
        // Whom the guard stops, it tells what is missing.
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::MISDIRECTED_REQUEST) {
            bail!("{admin} says: {}; --token-file FILE shows a token", text.trim());
        }
        if is_admin(&client, admin).await {
            // Refusals are as a client would get them, JSON; anything else is about the question.
            if serde_json::from_str::<serde_json::Value>(&text).is_err() {
                bail!("{}", text.trim());
            }
            bail!("the gateway would refuse this request ({status}): {}", text.trim());
        }
        Err(stranger())
    })
}

/// Whether the state of a fleet can be had at an address: a refusal alone may come from any server.
async fn is_admin(client: &reqwest::Client, admin: &str) -> bool {
    let url = format!("{}/debug/fleet", admin.trim_end_matches('/'));
    let Ok(response) = client.get(url).send().await else { return false };
    let text = response.text().await.unwrap_or_default();
    serde_json::from_str::<FleetSnapshot>(&text).is_ok()
}

fn from_state(config: Config, args: &Args, body: &[u8], state: &Path) -> anyhow::Result<ExplainAnswer> {
    let text = std::fs::read_to_string(state).with_context(|| format!("cannot read {}", state.display()))?;
    let snapshot: FleetSnapshot =
        serde_json::from_str(&text).with_context(|| format!("{} is not what /debug/fleet answers", state.display()))?;
    let config = Arc::new(config);
    let house = app::still_house(&config);
    let now = clock::now();
    let held = snapshot.restore(&house.fleet, now);
    let policy = Arc::new(ArcSwap::from_pointee(Policy::new(config, &house.fleet)));
    let asked = admin::Asked {
        listener: args.listener.as_deref(),
        path: &args.path,
        objective: args.objective.as_deref(),
        tenant: args.tenant.as_deref(),
        key: None,
        priority: args.priority,
    };
    let answer = admin::explain_request(&house, &policy.load_full(), &asked, body);
    drop(held);
    Ok(answer?)
}

fn rendered(answer: &ExplainAnswer, arm: &str, source: &str, coloured: bool) -> String {
    let Explanation { policy, prompt_tokens, candidates, verdict, refusal, sight, failed_open, .. } = &answer.decision;
    let mut text = format!(
        "route     {} -> pool {}, served as {} (listener {})\n{arm}request   about {prompt_tokens} prompt tokens\n\
         policy    {policy}{}   ({source})\n",
        answer.model,
        answer.pool,
        answer.served_model,
        answer.listener,
        sight.map(|sight| format!(", sight {}", sight.name())).unwrap_or_default(),
    );
    if *failed_open {
        text.push_str("          every pod is out, so it fails open: one of them is tried all the same\n");
    }
    text.push_str(&caller(answer));
    text.push_str(&fullness(answer));
    text.push('\n');
    text.push_str(&candidates_table(candidates, verdict.as_deref()).rendered(coloured));
    match (verdict, refusal) {
        (Some(_), _) if answer.refused.is_some() => text.push_str("\nverdict   none: a limit refuses it\n"),
        (Some(_), _) if answer.shed => text.push_str("\nverdict   none: its pool is full, and it is sheddable\n"),
        (Some(pod), _) => {
            let line =
                answer.waits.as_ref().map(|waits| format!("{}, then likely ", in_line(waits))).unwrap_or_default();
            let (margin, tie) = (margin(candidates, pod), tie(policy, candidates, pod));
            text.push_str(&format!("\nverdict   {line}{pod}{margin}{tie}\n"));
        }
        (None, Some(why)) => text.push_str(&format!("\nverdict   none: {why}\n")),
        (None, None) => {}
    }
    text
}

/// How full the pool is, and what that means for this request.
fn fullness(answer: &ExplainAnswer) -> String {
    let Some((full, wait_ms)) = answer.saturation.zip(answer.wait_ms) else { return String::new() };
    let means = match answer.priority {
        _ if answer.shed => "it is refused with 429",
        ..0 => "sheddable, from 1 on refused",
        _ => "from 1 on it waits in line",
    };
    let priority = answer.priority;
    let waits = answer.waits.as_ref().map(|waits| format!("line      it {}\n", in_line(waits))).unwrap_or_default();
    format!(
        "pool      saturation {full:.2}, a wait of {wait_ms:.0} ms at the best pod; priority {priority}: {means}\n{waits}"
    )
}

/// Who asks, where that was asked, and what its limits say.
fn caller(answer: &ExplainAnswer) -> String {
    let key = answer.key.as_ref().map(|key| format!(", key {key}")).unwrap_or_default();
    let refused = answer.refused.as_ref().map(|why| format!("limits    it is refused with 429: {why}\n"));
    let nobody = key.is_empty() && answer.tenant == Caller::ANONYMOUS;
    let caller = if nobody { String::new() } else { format!("caller    tenant {}{key}\n", answer.tenant) };
    caller + &refused.unwrap_or_default()
}

/// Where it would stand, and for how long.
fn in_line(waits: &Waits) -> String {
    let Waits { waits_for, requests, tokens, expected_ms } = waits;
    let what = if waits_for == "room" { "room" } else { "a pod" };
    let expected =
        expected_ms.map_or_else(|| "for how long is not known yet".to_owned(), |ms| format!("about {:.1} s", ms / 1e3));
    format!("waits for {what} ({requests} before it with {tokens} tokens, {expected})")
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
            candidate.streams.map_or_else(String::new, |streams| format!("{streams:.1}")),
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

/// Why a pod was chosen although another is cheaper.
fn tie(policy: &str, candidates: &[Candidate], pod: &str) -> &'static str {
    let total = candidates.iter().find(|it| it.pod == pod).and_then(|it| it.total);
    let cheaper = |total: f64| candidates.iter().filter_map(|it| it.total).any(|other| other < total);
    // `least-cost` alone takes near-equals for equal; the others never choose against their numbers.
    if policy == "least-cost" && total.is_some_and(cheaper) { " (equal within 2 %: drawn)" } else { "" }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(policy: &str, totals: [f64; 2]) -> ExplainAnswer {
        let candidate = |(pod, total): (&str, f64)| {
            serde_json::json!({"pod": pod, "condition": "closed", "excluded": null, "reading_age_ms": 3,
                "reading_trust": 1.0, "in_flight": 0, "streams": null, "uncached_tokens": 7, "total": total,
                "unit": "ms", "terms": []})
        };
        let candidates: Vec<_> = ["a", "b"].into_iter().zip(totals).map(candidate).collect();
        serde_json::from_value(serde_json::json!({"listener": "l", "model": "m", "pool": "p", "served_model": "m-2",
            "decision": {"policy": policy, "pool": "p", "served_model": "m-2", "prompt_tokens": 7, "sight": "fresh",
                "failed_open": false, "candidates": candidates, "verdict": "a", "refusal": null}}))
        .unwrap()
    }

    fn arms(body: &[u8], sticky: &str) -> Arms {
        let text = format!(
            "listeners: [{{ name: l, address: 127.0.0.1:0 }}]
pools: [{{ name: p, endpoints: [{{ url: \"http://a\" }}] }}]
models: [{{ modelName: m, poolRef: p, sticky: {sticky}, targetModels: [{{ name: m-1, weight: 90 }}, {{ name: m-2, weight: 10 }}] }}]
"
        );
        Arms::of(&crate::config::load("t.yaml", &text).unwrap().0, body)
    }

    #[test]
    fn a_split_tells_its_arm_and_what_keeps_a_request_there() {
        let answer = answer("least-cost", [1.0, 2.0]);
        let named = naming_session(br#"{"user":"u","messages":[ 1,2]}"#, "s").unwrap();
        assert!(String::from_utf8_lossy(&named).contains("[ 1,2]"));
        for (body, sticky, why) in [
            (named.as_slice(), "session", "kept by session `s`"),
            (br#"{"user":"u"}"#, "session", "kept by session `u`"),
            (b"{}", "session", "drawn, as the request names no session"),
            (b"{}", "none", "drawn, as every request is"),
            (b"{}", "conversation", "kept by the conversation's beginning"),
        ] {
            let line = format!("split     m-2 is arm 2 of 2, with weight 10 of 100: {why}\n");
            assert_eq!(arms(body, sticky).told(&answer), line);
        }
    }

    #[test]
    fn who_would_wait_is_told_for_what_and_who_is_refused_has_no_pod() {
        let mut answer = answer("least-cost", [1.0, 2.0]);
        (answer.saturation, answer.wait_ms) = (Some(2.0), Some(2_000.0));
        let waits = |expected_ms| Waits { waits_for: "room".to_owned(), requests: 3, tokens: 90, expected_ms };
        answer.waits = Some(waits(Some(28_800.0)));
        let text = rendered(&answer, "", "test", false);
        assert!(
            text.contains("priority 0: from 1 on it waits in line\nline      it waits for room (3 before it with 90")
        );
        let verdict = "verdict   waits for room (3 before it with 90 tokens, about 28.8 s), then likely a at 1.0 ms";
        assert!(text.contains(verdict), "{text}");
        answer.waits = Some(waits(None));
        assert!(rendered(&answer, "", "test", false).contains("for how long is not known yet), then likely a"));
        (answer.tenant, answer.key) = ("shop".to_owned(), Some("k-1".to_owned()));
        answer.refused = Some("tenant 'shop' may use 6 requests per minute".to_owned());
        let text = rendered(&answer, "", "test", false);
        assert!(text.contains("caller    tenant shop, key k-1\nlimits    it is refused with 429: tenant 'shop' may"));
        assert!(text.contains("verdict   none: a limit refuses it\n"), "{text}");
    }

    #[test]
    fn a_draw_among_near_equals_is_told_and_an_unread_column_is_left_out() {
        let text = |policy, totals| rendered(&answer(policy, totals), "", "test", false);
        assert!(text("least-cost", [1.01, 1.0]).contains("(equal within 2 %: drawn)"));
        assert!(!text("least-cost", [1.0, 1.01]).contains("drawn"));
        assert!(!text("weighted", [1.01, 1.0]).contains("drawn"));
        assert!(!text("round-robin", [1.0, 1.0]).contains("streams"));
    }
}
