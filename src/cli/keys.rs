//! `tidegate keys`: make keys, hash them, list them. A key is printed once and kept nowhere: the file has its hash.

use std::{
    fs,
    io::{self, BufRead as _, IsTerminal as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};

use super::{OK, PROBLEMS, colour, table::Table};
use crate::{
    clock,
    config::{self, KeyRecord, Money, Quota, moment, parse_keys, shown_moment},
    keys::{ENOUGH, hash_of, mint},
};

const EXIT_CODES: &str = "Exit codes:
  0  done, or printed
  1  the key file or what you gave has problems; the reason is printed
  2  the command line itself is wrong";

const EXAMPLES: &str = "Examples:
  tidegate keys new --file keys.yaml --owner bea --tenant shop     # the key alone on stdout
  tidegate keys new --models 'llama-*' --expires 90d > record.yaml # the record there, the key on your screen
  printf %s \"$KEY\" | tidegate keys hash
  tidegate keys list --file keys.yaml";

const LISTING: &str =
    "This is the check of a key file: where it has problems they are printed with their lines, and the
gateway would not take it over.

Exit codes:
  0  the file is good, and listed
  1  it has problems, or could not be read
  2  the command line itself is wrong";

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Make, hash and list the keys by which clients are known.
///
/// A key file holds hashes, not keys: who reads it can let nobody in. The gateway reads it again when it changes.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXIT_CODES}\n\n{EXAMPLES}"))]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a key and print it, this once
    #[command(after_help = format!("{EXIT_CODES}\n\n{EXAMPLES}"))]
    New(New),
    /// Print the hash of a key that is read from standard input
    #[command(after_help = EXIT_CODES)]
    Hash,
    /// List a file's keys: whose they are, what they may, until when; says what is wrong with the file, as a check would
    #[command(after_help = LISTING)]
    List(List),
}

#[derive(Debug, clap::Args)]
struct New {
    /// Put its record into this file; without it, the record goes to stdout and the key to stderr
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Whose it is, for people
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Whose limits and share count [default: the key is a tenant of its own]
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Which models it may ask for; `*` stands for anything [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = model)]
    models: Option<Vec<String>>,
    /// How much its requests matter: higher comes first, below 0 may be shed
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = whole)]
    priority: Option<i32>,
    /// When it ends: a day (2027-01-31), a moment, or in how long (90d, 12h) [default: never]
    #[arg(long, value_name = "WHEN")]
    expires: Option<String>,
}

#[derive(Debug, clap::Args)]
struct List {
    /// The key file
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// As JSON: a list of objects, `null` for what is not said
    #[arg(long)]
    json: bool,
}

/// A model's name, in which a star may stand.
fn model(text: &str) -> Result<String, String> {
    let name = text.trim();
    if name.is_empty() {
        return Err("this names no model; leave `--models` out for all of them".to_owned());
    }
    Ok(name.to_owned())
}

/// How much something matters.
fn whole(text: &str) -> Result<i32, String> {
    text.parse().map_err(|_| "write a whole number such as 1 or -1: higher comes first, 0 is usual".to_owned())
}

/// Does what was asked for.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::New(args) => new(args),
        Verb::Hash => hash(),
        Verb::List(args) => list(args),
    }
}

fn new(args: &New) -> anyhow::Result<ExitCode> {
    let before = match &args.file {
        Some(file) if file.exists() => read(file)?,
        _ => Vec::new(),
    };
    let minted = loop {
        let minted = mint();
        if before.iter().all(|record| *record.id != *minted.id) {
            break minted;
        }
    };
    let record = record(args, &minted.id, &hash_of(minted.key.as_bytes()).to_string())?;
    // What the gateway would refuse is not written.
    parse_keys("the new key", &record).map_err(|report| anyhow::anyhow!("{report}"))?;
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    if let Some(file) = &args.file {
        append(file, &record, before.is_empty()).with_context(|| format!("{}: cannot be written", file.display()))?;
        writeln!(out, "{}", minted.key)?;
        writeln!(err, "key {} is in {}; the key itself is shown this once", minted.id, file.display())?;
    } else {
        write!(out, "{record}")?;
        out.flush()?;
        writeln!(err, "the key, shown this once: {}", minted.key)?;
    }
    Ok(ExitCode::from(OK))
}

/// A record as key files have it. Text is written as JSON has it, which YAML reads, whatever is in it.
fn record(args: &New, id: &str, hash: &str) -> anyhow::Result<String> {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let mut record = format!("- id: {}\n  hash: \"{hash}\"\n", text(id));
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            record.push_str(&format!("  {name}: {value}\n"));
        }
    };
    line("owner", args.owner.as_deref().map(text));
    line("tenant", args.tenant.as_deref().map(text));
    let models = |models: &Vec<String>| models.iter().map(|name| text(name)).collect::<Vec<_>>().join(", ");
    line("models", args.models.as_ref().map(|names| format!("[{}]", models(names))));
    line("priority", args.priority.map(|it| it.to_string()));
    let expires = args.expires.as_deref().map(|when| end(when, clock::wall())).transpose()?;
    line("expires", expires.map(shown_moment));
    Ok(record)
}

/// When a key ends of which `when` is said `now`.
fn end(when: &str, now: SystemTime) -> anyhow::Result<SystemTime> {
    let days = when.strip_suffix('d').and_then(|days| days.parse::<u32>().ok()).map(|days| DAY * days);
    let pause = || days.or_else(|| config::duration(when).ok());
    let end = moment(when).or_else(|| now.checked_add(pause()?));
    let Some(end) = end else {
        bail!("`{when}` is no moment; write a day such as 2027-01-31, or in how long, such as 90d or 12h");
    };
    if end <= now {
        bail!("`{when}` is over; a key that ends then lets nobody in");
    }
    Ok(end)
}

/// Puts a record behind those that are there, into the file itself, so that it stays whose it is and as readable as it was.
fn append(file: &Path, record: &str, first: bool) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.create(true).mode(0o600);
    if first {
        return options.write(true).truncate(true).open(file)?.write_all(record.as_bytes());
    }
    let ends_in_line = fs::read(file)?.ends_with(b"\n");
    let text = if ends_in_line { record.to_owned() } else { format!("\n{record}") };
    options.append(true).open(file)?.write_all(text.as_bytes())
}

fn read(file: &Path) -> anyhow::Result<Vec<KeyRecord>> {
    let name = file.display().to_string();
    let text = fs::read_to_string(file).with_context(|| format!("{name}: cannot be read"))?;
    // An empty file is what `touch` makes before the first key.
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    parse_keys(&name, &text).map_err(|report| anyhow::anyhow!("the key file has problems\n{report}"))
}

fn hash() -> anyhow::Result<ExitCode> {
    let mut err = io::stderr().lock();
    if io::stdin().is_terminal() {
        writeln!(err, "paste the key, then press Enter:")?;
    }
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("standard input is no text")?;
    let key = line.trim();
    if key.len() < ENOUGH {
        writeln!(err, "tidegate: that is too short for a key: what people make up can be guessed, also from its hash")?;
        writeln!(err, "  = help: give at least {ENOUGH} random characters, or let `tidegate keys new` make one")?;
        return Ok(ExitCode::from(PROBLEMS));
    }
    writeln!(io::stdout().lock(), "{}", hash_of(key.as_bytes()))?;
    Ok(ExitCode::from(OK))
}

fn list(args: &List) -> anyhow::Result<ExitCode> {
    let (records, now) = (read(&args.file)?, clock::wall());
    let mut out = io::stdout().lock();
    if args.json {
        let all: Vec<_> = records.iter().map(|record| in_json(record, now)).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
    } else {
        let coloured = colour(&out);
        write!(out, "{}", listed(&records, now).rendered(coloured))?;
    }
    Ok(ExitCode::from(OK))
}

fn state(record: &KeyRecord, now: SystemTime) -> &'static str {
    match record {
        KeyRecord { disabled: true, .. } => "disabled",
        KeyRecord { expires: Some(end), .. } if *end <= now => "expired",
        _ => "good",
    }
}

/// What a key may use up, by the configuration's words.
fn limits(quota: &Quota) -> Vec<(&'static str, serde_json::Value)> {
    let money = |money: Option<Money>| money.map(|it| it.amount().into());
    let all = [
        ("requests_per_minute", quota.requests_per_minute.map(Into::into)),
        ("tokens_per_minute", quota.tokens_per_minute.map(Into::into)),
        ("input_tokens_per_minute", quota.input_tokens_per_minute.map(Into::into)),
        ("output_tokens_per_minute", quota.output_tokens_per_minute.map(Into::into)),
        ("concurrent_requests", quota.concurrent_requests.map(Into::into)),
        ("budget_per_day", money(quota.budget_per_day)),
        ("budget_per_month", money(quota.budget_per_month)),
        ("enforce", (!quota.enforce).then_some(false.into())),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn in_json(record: &KeyRecord, now: SystemTime) -> serde_json::Value {
    let limits = record.limits.as_ref().map(|quota| {
        let all = limits(quota).into_iter().map(|(name, value)| (name.to_owned(), value));
        all.collect::<serde_json::Map<_, _>>()
    });
    serde_json::json!({
        "id": &*record.id,
        "state": state(record, now),
        "tenant": &*record.tenant,
        "owner": record.owner,
        "models": record.models.as_ref().map(|models| models.names().collect::<Vec<_>>()),
        "priority": record.priority,
        "limits": limits,
        "expires": record.expires.map(shown_moment),
    })
}

fn listed(records: &[KeyRecord], now: SystemTime) -> Table {
    let mut table = Table::new(["id", "state", "tenant", "owner", "models", "priority", "limits", "expires"]);
    // What is not said is shown as that, so that the columns are the same for every file.
    let unsaid = || "-".to_owned();
    for record in records {
        let shown = |quota: &Quota| {
            let all = limits(quota).into_iter().map(|(name, value)| format!("{name}={value}"));
            all.collect::<Vec<_>>().join(",")
        };
        let models = record.models.as_ref().map(|models| models.names().collect::<Vec<_>>().join(","));
        table.push(
            vec![
                record.id.to_string(),
                state(record, now).to_owned(),
                record.tenant.to_string(),
                record.owner.clone().unwrap_or_else(unsaid),
                models.unwrap_or_else(|| "all".to_owned()),
                record.priority.map_or_else(unsaid, |it| it.to_string()),
                record.limits.as_deref().map(shown).filter(|it| !it.is_empty()).unwrap_or_else(unsaid),
                record.expires.map_or_else(|| "never".to_owned(), shown_moment),
            ],
            false,
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn plain(expires: Option<&str>) -> New {
        let text = |text: &str| Some(text.to_owned());
        New {
            file: None,
            owner: text("Bea \"B\": x"),
            tenant: text("shop"),
            models: Some(vec!["llama-*".to_owned(), "m".to_owned()]),
            priority: Some(-1),
            expires: expires.map(ToOwned::to_owned),
        }
    }

    #[test]
    fn a_record_reads_back_as_it_was_meant() {
        let record = record(&plain(Some("2999-01-01")), "id1", &hash_of(b"k").to_string()).unwrap();
        let keys = parse_keys("k", &record).unwrap();
        assert_eq!((&*keys[0].id, keys[0].hash, &*keys[0].tenant), ("id1", hash_of(b"k"), "shop"));
        assert_eq!((keys[0].owner.as_deref(), keys[0].priority), (Some("Bea \"B\": x"), Some(-1)));
        assert_eq!(keys[0].expires, moment("2999-01-01"));
        assert!(keys[0].models.as_ref().unwrap().allows("llama-2"));
    }

    #[test]
    fn ends_are_days_moments_or_so_long_from_now() {
        let now = moment("2026-01-01").unwrap();
        for (when, then) in [
            ("2026-01-02", "2026-01-02T00:00:00Z"),
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
            ("90d", "2026-04-01T00:00:00Z"),
            ("12h", "2026-01-01T12:00:00Z"),
        ] {
            assert_eq!(shown_moment(end(when, now).unwrap()), then);
        }
        for when in ["", "soon", "90", "-1d", "2025-12-31", "2026-01-01", "0d"] {
            assert!(end(when, now).is_err(), "{when}");
        }
    }

    #[test]
    fn records_are_put_behind_each_other_whatever_the_file_ended_with() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.yaml");
        for (number, cut) in [(1, false), (2, true), (3, false)] {
            let first = !file.exists();
            let record = record(&plain(None), &format!("id{number}"), &hash_of(&[number]).to_string()).unwrap();
            append(&file, &record, first).unwrap();
            if cut {
                let text = fs::read_to_string(&file).unwrap();
                fs::write(&file, text.trim_end()).unwrap();
            }
        }
        let keys = read(&file).unwrap();
        assert_eq!(keys.iter().map(|it| &*it.id).collect::<Vec<_>>(), ["id1", "id2", "id3"]);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "nobody else reads it");
    }

    #[test]
    fn a_list_says_who_may_what_until_when_and_no_hash() {
        let hash = |text: &[u8]| hash_of(text).to_string();
        let text = format!(
            "- {{ id: a, hash: {} }}\n- {{ id: b, hash: {}, tenant: shop, models: [m, n], expires: 2026-01-01, \
             limits: {{ tokens_per_minute: 100000, budget_per_day: 12.5 }} }}\n\
             - {{ id: c, hash: {}, disabled: true }}\n",
            hash(b"a"),
            hash(b"b"),
            hash(b"c")
        );
        let (records, now) = (parse_keys("k", &text).unwrap(), moment("2026-01-02").unwrap());
        let shown = listed(&records, now).rendered(false);
        let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        let limits = "tokens_per_minute=100000,budget_per_day=12.5";
        assert_eq!(
            rows,
            [
                ["id", "state", "tenant", "owner", "models", "priority", "limits", "expires"],
                ["a", "good", "a", "-", "all", "-", "-", "never"],
                ["b", "expired", "shop", "-", "m,n", "-", limits, "2026-01-01T00:00:00Z"],
                ["c", "disabled", "c", "-", "all", "-", "-", "never"],
            ]
        );
        let b = in_json(&records[1], now);
        assert_eq!((&b["state"], &b["models"][1], &b["owner"]), (&"expired".into(), &"n".into(), &().into()));
        assert_eq!(b["limits"], serde_json::json!({"tokens_per_minute": 100_000, "budget_per_day": 12.5}));
        assert!(b.get("hash").is_none());
    }

    #[test]
    fn no_model_and_no_number_are_refused_before_a_key_is_made() {
        assert!(model("").is_err() && model(" ").is_err());
        assert_eq!(model("llama-*").as_deref(), Ok("llama-*"));
        assert!(whole("high").unwrap_err().contains("a whole number such as 1 or -1"));
        assert_eq!(whole("-1"), Ok(-1));
    }
}
