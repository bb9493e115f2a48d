//! Inference resources as they were last heard of: from files here, from a cluster in `kubernetes`.
//!
//! Whoever follows them is told of each new world, never of each object. Until all of it was heard once there is none, so
//! that a start does not look like a cluster without pods; and when nothing can be heard any more, the last one stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{io::AsyncReadExt as _, sync::watch};
use xxhash_rust::xxh3::xxh3_64;

use super::sources::Slot;
use crate::{
    config::{
        Config, Endpoint, Kubernetes, Members, Problem, Report, Target,
        resources::{Furnished, Kind, Manifests, Verdict, World, furnish, is_manifest, targets, verdicts},
    },
    tasks::Tasks,
    telemetry::logs::tell_problem,
};

/// How often the files are read: some KiB from the page cache. A change counts once it was seen twice.
const READ_EVERY: Duration = Duration::from_millis(500);

/// The most files of a directory, and the largest of them: 1,000 objects each, as `kubectl get -o yaml` writes them.
const MOST_FILES: usize = 1_000;
const LARGEST_FILE: u64 = 8 << 20;

/// The namespace of objects that name none, where nobody says otherwise; kubectl's.
const HOME: &str = "default";

/// What was heard, and from where.
#[derive(Debug)]
pub(super) enum Heard {
    Files(Manifests),
    Cluster(World),
}

impl Heard {
    fn world(&self) -> &World {
        match self {
            Self::Files(manifests) => &manifests.world,
            Self::Cluster(world) => world,
        }
    }
}

/// How it stands with the watches.
#[derive(Clone, Debug, Default)]
pub(super) struct Outlook {
    /// Why not all was heard yet, or nothing is now.
    pub(super) waits_for: Option<String>,
    /// The kinds that were heard once, and whether they are now.
    pub(super) heard: BTreeMap<Kind, bool>,
}

/// The resources of one gateway.
#[derive(Clone, Debug)]
pub struct Resources {
    heard: watch::Receiver<Arc<Heard>>,
    /// How it stands with hearing it.
    outlook: watch::Receiver<Outlook>,
    /// Whether any pool stands for a service: only then slices are followed.
    slices: Arc<watch::Sender<bool>>,
    /// What pools and models were last made of; `None`: nothing yet.
    handled: Arc<Mutex<Option<Arc<Heard>>>>,
    /// What is to be written into objects.
    verdicts: Arc<watch::Sender<Arc<Vec<Verdict>>>>,
    /// What was said of objects, so that it is not said again.
    told: Arc<Mutex<BTreeSet<String>>>,
}

impl Resources {
    /// Resources that never come.
    pub fn none() -> Self {
        Self::of(watch::channel(Arc::new(Heard::Cluster(World::default()))).1, watch::channel(Outlook::default()).1)
    }

    fn of(heard: watch::Receiver<Arc<Heard>>, outlook: watch::Receiver<Outlook>) -> Self {
        let (slices, verdicts) = (watch::channel(false).0, watch::channel(Arc::default()).0);
        let (slices, verdicts) = (Arc::new(slices), Arc::new(verdicts));
        Self { heard, outlook, slices, handled: Arc::default(), verdicts, told: Arc::default() }
    }

    /// Begins to follow what `kubernetes` says, for as long as `tasks` run. Files are read when this returns; a cluster
    /// has not answered yet.
    ///
    /// # Errors
    /// With every problem of the files.
    pub async fn start(kubernetes: Option<&Kubernetes>, tasks: &Tasks) -> Result<Self, Report> {
        let Some(kubernetes) = kubernetes else { return Ok(Self::none()) };
        let home = kubernetes.home().unwrap_or(HOME).to_owned();
        let Some(path) = kubernetes.manifests.clone() else { return Self::of_cluster(kubernetes, tasks).await };
        let files = read_files(&path).await.map_err(|error| unreadable(&path, &error))?;
        let mark = mark_of(&files);
        let manifests = Manifests::read(files, &home)?;
        tell_read(&manifests);
        let (sender, heard) = watch::channel(Arc::new(Heard::Files(manifests)));
        tasks.spawn_until_stop(follow(Files { path, home, handled: Some(mark) }, sender));
        Ok(Self::of(heard, watch::channel(Outlook::default()).1))
    }

    #[cfg(feature = "kubernetes")]
    async fn of_cluster(kubernetes: &Kubernetes, tasks: &Tasks) -> Result<Self, Report> {
        let (worlds, heard) = watch::channel(Arc::new(Heard::Cluster(World::default())));
        let (outlook, seen) = watch::channel(Outlook::default());
        let resources = Self::of(heard, seen);
        let (slices, verdicts) = (resources.slices.subscribe(), resources.verdicts.subscribe());
        let outlets = super::kubernetes::Outlets { worlds, outlook, slices, verdicts };
        super::kubernetes::start(kubernetes, outlets, tasks).await?;
        Ok(resources)
    }

    #[cfg(not(feature = "kubernetes"))]
    #[expect(clippy::unused_async, reason = "as with the feature")]
    async fn of_cluster(_: &Kubernetes, _: &Tasks) -> Result<Self, Report> {
        let remedy = "build it with `--features kubernetes`, or read files with `--manifests DIR`";
        Err(Report::whole_file("kubernetes", "this binary was built without the means to watch a cluster", remedy))
    }

    /// What is still waited for, in words; `None` once all was heard.
    pub fn waits_for(&self) -> Option<String> {
        self.outlook.borrow().waits_for.clone()
    }

    /// How many objects there are of each kind, and whether its watches are heard; a kind that is read from files has
    /// none.
    pub fn kinds(&self) -> Vec<(Kind, usize, Option<bool>)> {
        let (heard, outlook) = (Arc::clone(&self.heard.borrow()), self.outlook.borrow());
        let kinds: BTreeSet<Kind> = heard.world().kinds.keys().chain(outlook.heard.keys()).copied().collect();
        let of = |kind| heard.world().kinds.get(&kind).map_or(0, |objects| objects.len());
        kinds.into_iter().map(|kind| (kind, of(kind), outlook.heard.get(&kind).copied())).collect()
    }

    /// `config`, as the file has it, with what was heard. What is to be said of objects is logged, once.
    pub fn furnish(&self, config: Config) -> Config {
        let heard = Arc::clone(&self.heard.borrow());
        let service = |it: &Endpoint| matches!(it, Endpoint::Cluster { members: Members::Service { .. }, .. });
        if config.pools.iter().any(|pool| pool.endpoints.iter().any(service)) {
            self.slices.send_replace(true);
        }
        *self.handled() = Some(Arc::clone(&heard));
        let Furnished { config, notes } = furnish(config, heard.world());
        let verdicts = verdicts(heard.world(), &notes);
        self.verdicts.send_if_modified(|last| {
            let differs = **last != verdicts;
            *last = Arc::new(verdicts);
            differs
        });
        // By its text: a problem with where it stands, or a note on an object of a cluster.
        let said: BTreeMap<String, Option<Problem>> = match &*heard {
            Heard::Files(manifests) => {
                let notes = [notes, manifests.without_pods(&config)].concat();
                manifests.problems(&notes).into_iter().map(|it| (it.to_string(), Some(it))).collect()
            }
            Heard::Cluster(_) => notes.iter().map(|note| (note.to_string(), None)).collect(),
        };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for (text, problem) in said.iter().filter(|(text, _)| !told.contains(*text)) {
            if let Some(problem) = problem {
                tell_problem(problem);
            } else {
                tracing::warn!("{text}");
            }
        }
        *told = said.into_keys().collect();
        config
    }

    /// Waits for a world that may mean other pools or models, and not only other pods. `false`: there will be none.
    pub async fn changed(&mut self) -> bool {
        loop {
            let now = Arc::clone(&self.heard.borrow_and_update());
            let before = self.handled().replace(Arc::clone(&now));
            if before.is_some_and(|before| !same_but_pods(before.world(), now.world())) {
                return true;
            }
            if self.heard.changed().await.is_err() {
                return false;
            }
        }
    }

    fn handled(&self) -> MutexGuard<'_, Option<Arc<Heard>>> {
        self.handled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether all that differs is pods, which come and go by the minute. Pods that name their workloads are no mere pods.
fn same_but_pods(one: &World, other: &World) -> bool {
    let same = |kind: &Kind| match (one.kinds.get(kind), other.kinds.get(kind)) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    };
    let matter = |kind: &&Kind| one.by_workload || !matches!(kind, Kind::Pod | Kind::Slice);
    one.complete == other.complete && Kind::ALL.iter().filter(matter).all(same)
}

/// Keeps the pods of `slot` as `members` are in the world, for ever.
pub(super) async fn watch(mut resources: Resources, members: Members, token_file: Option<PathBuf>, slot: Slot) {
    let mut last: Option<Vec<Target>> = None;
    loop {
        let heard = Arc::clone(&resources.heard.borrow_and_update());
        if heard.world().complete {
            let mut found = targets(heard.world(), &members);
            for target in &mut found {
                target.token_file.clone_from(&token_file);
            }
            if last.as_ref() != Some(&found) {
                last = Some(found.clone());
                slot.publish(found);
            }
        }
        if resources.heard.changed().await.is_err() {
            return;
        }
    }
}

/// Reads manifests once, as [`Resources`] would.
///
/// # Errors
/// With every problem of the files.
pub async fn read_manifests(kubernetes: &Kubernetes, path: &Path) -> Result<Manifests, Report> {
    let files = read_files(path).await.map_err(|error| unreadable(path, &error))?;
    Manifests::read(files, kubernetes.home().unwrap_or(HOME))
}

/// A directory of manifests that is followed.
struct Files {
    path: PathBuf,
    home: String,
    /// The mark of what was last looked at; `None`: it could not be read.
    handled: Option<u64>,
}

/// Files are compared by content, as the configuration is, and a half-written one counts no more than there.
async fn follow(mut files: Files, sender: watch::Sender<Arc<Heard>>) {
    let mut last = None;
    let mut tick = tokio::time::interval(READ_EVERY);
    loop {
        tick.tick().await;
        let found = read_files(&files.path).await;
        let mark = found.as_ref().ok().map(|found| mark_of(found));
        let settled = last == Some(mark);
        last = Some(mark);
        if !settled || mark == files.handled {
            continue;
        }
        files.handled = mark;
        let read = found.map_err(|error| unreadable(&files.path, &error));
        match read.and_then(|found| Manifests::read(found, &files.home)) {
            Ok(manifests) => {
                tell_read(&manifests);
                sender.send_replace(Arc::new(Heard::Files(manifests)));
            }
            Err(report) => tell(&report),
        }
    }
}

fn tell_read(manifests: &Manifests) {
    tracing::info!(objects = manifests.objects(), passed_over = manifests.passed_over, "manifests read");
}

fn tell(report: &Report) {
    report.problems.iter().for_each(tell_problem);
    tracing::warn!(problems = report.errors(), "manifests not usable: those before them stay in force");
}

fn unreadable(path: &Path, error: &io::Error) -> Report {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let message = format!("manifests cannot be read from {}: {error}", whole.display());
    let remedy = "name a directory of YAML or JSON files, or one such file, by `kubernetes.manifests` or --manifests; a \
                  path that does not begin with `/` begins where the gateway was started";
    Report::whole_file(&path.display().to_string(), message, remedy)
}

fn mark_of(files: &[(String, String)]) -> u64 {
    let marks = files.iter().flat_map(|(name, text)| [xxh3_64(name.as_bytes()), xxh3_64(text.as_bytes())]);
    xxh3_64(&marks.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())
}

/// The manifests of a directory, or one file, each with its path and its text, by name.
async fn read_files(path: &Path) -> io::Result<Vec<(String, String)>> {
    let mut paths = Vec::new();
    if tokio::fs::metadata(path).await?.is_dir() {
        let mut entries = tokio::fs::read_dir(path).await?;
        while let Some(entry) = entries.next_entry().await? {
            let named = entry.file_name().to_str().is_some_and(is_manifest);
            if named && tokio::fs::metadata(entry.path()).await.is_ok_and(|it| it.is_file()) {
                paths.push(entry.path());
            }
            if paths.len() > MOST_FILES {
                return Err(io::Error::other(format!("more than {MOST_FILES} files")));
            }
        }
    } else {
        paths.push(path.to_owned());
    }
    paths.sort();
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let mut text = String::new();
        let file = tokio::fs::File::open(&path).await?;
        file.take(LARGEST_FILE + 1).read_to_string(&mut text).await?;
        if text.len() as u64 > LARGEST_FILE {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{} is longer than 8 MiB", path.display()),
            ));
        }
        files.push((path.display().to_string(), text));
    }
    Ok(files)
}
