//! `tidegate demo`: inference-aware routing against round robin, live, without a config and without a GPU.
//!
//! Nothing is staged: the gateway is the real one, started from a configuration as an operator writes it; the pods are
//! `sim`'s, reached over sockets; both listeners get the same requests at the same moments; and the verdict is read off
//! what the users felt, from the first request on, with cold caches and pods it knows nothing of.

mod line;
mod panel;
mod report;
mod scene;
mod screen;
mod view;

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::time::{MissedTickBehavior, interval};

use self::{
    line::Line,
    report::Outcome,
    scene::{MODEL, SIDES, Scene},
    screen::Screen,
    view::{Frame, Watched},
};
use super::{
    OK, PROBLEMS,
    serve::{SignalKindSeen, Signals},
};
use crate::{
    bench::{Client, Plan, Player, Tally},
    clock,
    tasks::Tasks,
};

/// How long answers may take after the last arrival, so that 25 s of arrivals end within 40 s whatever happens.
const LAST_ANSWERS: Duration = Duration::from_secs(12);

/// How long the gateway waits for requests that are open when it is stopped: someone pressed Ctrl-C.
const GRACE: Duration = Duration::from_millis(300);

/// A picture to start with, before the first request is due.
const CURTAIN: Duration = Duration::from_millis(500);

const AFTER: &str = "Exit codes:
  0  inference-aware routing had the sooner p90 time to first token
  1  it had not, or the show was stopped before the verdict, or a port is busy; it is said which
  2  the command line itself is wrong

Examples:
  tidegate demo                    the show, then it goes on serving
  tidegate demo --once --seed 7    the show with other arrivals, then the exit code
  tidegate demo --port 0           on any free ports";

/// Watch inference-aware routing beat round robin: no config, no GPU, 40 seconds.
///
/// Starts two equal sets of four simulated pods, one of each at half speed, and one gateway with two listeners: 8080
/// goes round robin over the first set, 8081 inference-aware over the second. Plays the same bursty mix of short,
/// medium and long prompts and returning conversations into both at once (a follow-up waits for its conversation's last
/// answer, so the slower side can have been sent fewer), shows what users feel, and says who won.
/// Then it goes on serving until Ctrl-C.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER)]
pub(super) struct Args {
    /// End after the verdict; the exit code tells it
    #[arg(long)]
    once: bool,
    /// What draws the arrivals: the same seed, the same requests at the same moments
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// How long requests arrive; the last answers take some seconds more
    #[arg(long, default_value_t = 25, value_name = "N", value_parser = clap::value_parser!(u64).range(5..=600))]
    seconds: u64,
    /// Three ports in a row from here on, instead of 8080, 8081 and 9090; 0: any free ones
    #[arg(long, value_name = "BASE", value_parser = clap::value_parser!(u16).range(..=65533))]
    port: Option<u16>,
    /// Port of the round-robin listener [default: 8080]
    #[arg(long, value_name = "PORT")]
    port_classic: Option<u16>,
    /// Port of the inference-aware listener [default: 8081]
    #[arg(long, value_name = "PORT")]
    port_openai: Option<u16>,
    /// Port of the admin listener: metrics, state [default: 9090]
    #[arg(long, value_name = "PORT")]
    port_admin: Option<u16>,
    /// Write the gateway's log there, JSON lines; without it there is none
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

impl Args {
    /// Round robin's, the inference-aware and the admin's port.
    fn ports(&self) -> [u16; 3] {
        let [classic, openai, admin] = match self.port {
            None => [8080, 8081, 9090],
            Some(0) => [0; 3],
            Some(base) => [base, base + 1, base + 2],
        };
        [self.port_classic.unwrap_or(classic), self.port_openai.unwrap_or(openai), self.port_admin.unwrap_or(admin)]
    }

    fn length(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.log {
        log_to(path)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(perform(args))
}

/// On the terminal, log lines would tear the picture; they go to a file or nowhere.
fn log_to(path: &Path) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("cannot write the log to {}", path.display()))?;
    let lines = tracing_subscriber::fmt().json().flatten_event(true);
    // Only a process that already logs refuses, and then there is a log.
    lines.with_writer(Mutex::new(file)).try_init().ok();
    Ok(())
}

async fn perform(args: &Args) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let scene = Scene::start(args).await?;
    let mut screen = Screen::new();
    let shown = tokio::select! {
        outcome = show(args, &scene, &mut screen) => Some(outcome?),
        _ = signals.next() => None,
    };
    let code = match shown {
        None => {
            screen.print(&[Line::new(), Line::new().plain("Stopped before the verdict.")])?;
            PROBLEMS
        }
        Some(outcome) => {
            screen.say(&outcome.lines())?;
            if !args.once {
                let [classic, openai] = addresses(&scene);
                screen.print(&report::to_paste(classic, openai, scene.gateway.admin))?;
                while signals.next().await == SignalKindSeen::Hangup {}
            }
            if outcome.is_better() { OK } else { PROBLEMS }
        }
    };
    scene.stop(GRACE).await;
    Ok(ExitCode::from(code))
}

fn addresses(scene: &Scene) -> [SocketAddr; 2] {
    SIDES.map(|name| {
        let mut listeners = scene.gateway.listeners.iter();
        let found = listeners.find(|(it, _)| **it == *name);
        found.map_or(scene.gateway.admin, |(_, address)| *address)
    })
}

/// Plays the plan into both sides and draws until all is answered or time is over.
async fn show(args: &Args, scene: &Scene, screen: &mut Screen) -> anyhow::Result<Outcome> {
    let plan = Arc::new(Plan::draw(args.seed, &scene::shape(args.length())));
    let (playing, connections) = (Tasks::new(), Tasks::new());
    let tallies = [Arc::<Tally>::default(), Arc::<Tally>::default()];
    let start = clock::now() + CURTAIN;
    for (address, tally) in addresses(scene).into_iter().zip(&tallies) {
        let player = Player {
            client: Arc::new(Client::new(address, connections.clone())),
            model: MODEL.into(),
            tally: Arc::clone(tally),
        };
        player.play(&plan, start, &playing);
    }
    let mut stage = Stage::new(args, scene, &tallies, start, plan.requests());
    let all = args.length() + CURTAIN + LAST_ANSWERS;
    tokio::select! {
        over = tokio::time::timeout(all, playing.wait()) => drop(over),
        broken = stage.draw_forever(screen) => broken?,
    }
    playing.stop();
    playing.wait().await;
    connections.stop();
    scene.quiet().await;
    stage.draw(screen)?;
    Ok(Outcome {
        figures: tallies.map(|tally| tally.figures()),
        start,
        planned: plan.requests(),
        limit: args.length() + LAST_ANSWERS,
    })
}

/// What is looked at during the show.
struct Stage<'a> {
    args: &'a Args,
    scene: &'a Scene,
    watched: [Watched; 2],
    start: Instant,
    planned: usize,
}

impl<'a> Stage<'a> {
    fn new(args: &'a Args, scene: &'a Scene, tallies: &[Arc<Tally>; 2], start: Instant, planned: usize) -> Self {
        let [classic, openai] = addresses(scene).map(|address| address.to_string());
        let [left, right] = tallies.clone();
        let [old, new] = SIDES;
        Self {
            args,
            scene,
            watched: [
                Watched::new("round-robin", classic, old, left),
                Watched::new("inference-aware", openai, new, right),
            ],
            start,
            planned,
        }
    }

    /// Ends only when nothing can be shown any more.
    async fn draw_forever(&mut self, screen: &mut Screen) -> anyhow::Result<()> {
        let mut ticks = interval(screen.every());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            self.draw(screen)?;
        }
    }

    fn draw(&mut self, screen: &mut Screen) -> anyhow::Result<()> {
        let now = clock::now();
        let fleet = &self.scene.gateway.house.fleet;
        let frame = Frame {
            elapsed: now.saturating_duration_since(self.start),
            length: self.args.length(),
            seed: self.args.seed,
            planned: self.planned,
            sides: self.watched.each_mut().map(|side| side.side(fleet, now)),
        };
        screen.show(&frame).context("cannot write to standard output")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    pub(super) fn args(flags: &[&str]) -> Args {
        Line::parse_from(["demo"].iter().chain(flags)).args
    }

    #[test]
    fn a_base_moves_all_three_ports_and_a_single_flag_one() {
        assert_eq!(args(&[]).ports(), [8080, 8081, 9090]);
        assert_eq!(args(&["--port", "7000"]).ports(), [7000, 7001, 7002]);
        assert_eq!(args(&["--port", "0"]).ports(), [0, 0, 0]);
        assert_eq!(args(&["--port-classic", "1", "--port-admin", "2"]).ports(), [1, 8081, 2]);
    }

    #[test]
    fn by_default_it_is_over_within_forty_seconds() {
        let start_up = Duration::from_secs(2);
        assert!(args(&[]).length() + CURTAIN + LAST_ANSWERS + scene::QUIET + start_up < Duration::from_secs(40));
    }
}
