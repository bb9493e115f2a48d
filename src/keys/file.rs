//! A file that somebody else writes and that says who may come: followed by what it says, not by events, because a mounted
//! Secret changes by swapping a link and an editor by renaming.
//!
//! It is looked at four times a second, and read only if it may have changed: what is taken back must be of no use within
//! a second. A change counts once it was read twice alike, because half a list of keys may well be sound.

use std::{
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::io::Errno;
use tokio::{io::AsyncReadExt as _, time::Interval};
use xxhash_rust::xxh3::xxh3_128;

use crate::clock;

/// How often it is looked at. Two looks, and the reading of it, are well within the second.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A file that was written so recently may be written again without its times showing it: clocks of file systems tick in
/// hundredths of a second, of some in two seconds.
const STILL_WARM: Duration = Duration::from_secs(3);

/// A file that is followed.
pub(super) struct Followed {
    path: PathBuf,
    most: u64,
    /// What it said when somebody was last told of it, when it was last read, and what it looked like then.
    told: Option<u128>,
    read: Option<u128>,
    looked: Option<State>,
    tick: Interval,
}

impl Followed {
    /// The file at `path`, of which at most `most` bytes are read, and which said what has this `mark`: see [`mark_of`].
    pub(super) fn new(path: PathBuf, most: u64, mark: Option<u128>) -> Self {
        let tick = tokio::time::interval(LOOK_EVERY);
        Self { path, most, told: mark, read: mark, looked: None, tick }
    }

    /// What it says, once that is not what it said before; an error when it cannot be read any more.
    pub(super) async fn changed(&mut self) -> io::Result<Vec<u8>> {
        loop {
            self.tick.tick().await;
            let state = tokio::fs::metadata(&self.path).await.map(|it| State::of(&it)).ok();
            let same = state.is_some() && self.looked == state && !state.is_some_and(State::is_warm);
            if same && self.read == self.told {
                continue;
            }
            let found = read(&self.path, self.most).await;
            if found.as_ref().is_err_and(out_of_files) {
                // It says nothing of the file.
                continue;
            }
            self.looked = state;
            let mark = found.as_deref().ok().map(mark_of);
            let settled = self.read == mark;
            self.read = mark;
            if settled && mark != self.told {
                self.told = mark;
                return found;
            }
        }
    }
}

/// What tells one content from another.
pub(super) fn mark_of(content: &[u8]) -> u128 {
    xxh3_128(content)
}

/// What a file is, as far as that tells whether it was written.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    node: (u64, u64),
    length: u64,
    modified: Option<SystemTime>,
    /// Nobody can put it back, as times of content can be.
    changed: (i64, i64),
}

impl State {
    fn of(file: &Metadata) -> Self {
        Self {
            node: (file.dev(), file.ino()),
            length: file.len(),
            modified: file.modified().ok(),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    fn is_warm(self) -> bool {
        let since = self.modified.and_then(|it| clock::wall().duration_since(it).ok());
        since.is_none_or(|since| since < STILL_WARM)
    }
}

/// Whether no file at all can be opened just now.
fn out_of_files(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|it| error.raw_os_error() == Some(it.raw_os_error()))
}

async fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    is_file(&tokio::fs::metadata(path).await?)?;
    tokio::fs::File::open(path).await?.take(most + 1).read_to_end(&mut bytes).await?;
    bounded(bytes, most)
}

/// The same at once, for the start.
pub(super) fn read_now(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    is_file(&std::fs::metadata(path)?)?;
    io::Read::read_to_end(&mut io::Read::take(std::fs::File::open(path)?, most + 1), &mut bytes)?;
    bounded(bytes, most)
}

/// Opening a pipe would wait for somebody to write into it, and no change would be heard of from then on.
fn is_file(it: &Metadata) -> io::Result<()> {
    if it.is_file() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")) }
}

fn bounded(bytes: Vec<u8>, most: u64) -> io::Result<Vec<u8>> {
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {most} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_written_is_heard_of_within_a_second_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        fs::write(&path, "one").unwrap();
        let mut file = Followed::new(path.clone(), 100, Some(mark_of(b"one")));
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, file.changed()).await.is_err(), "nothing changed");
        for text in ["two", "six", "seven"] {
            fs::write(&path, text).unwrap();
            let began = clock::now();
            assert_eq!(file.changed().await.unwrap(), text.as_bytes());
            assert!(clock::now() - began <= Duration::from_secs(1), "{text}");
        }
        assert!(tokio::time::timeout(hour, file.changed()).await.is_err());
        fs::remove_file(&path).unwrap();
        assert_eq!(file.changed().await.unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "seven").unwrap();
        assert_eq!(file.changed().await.unwrap(), b"seven", "it is back");
        fs::write(&path, "x".repeat(101)).unwrap();
        assert_eq!(file.changed().await.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_written_in_place_with_its_time_put_back_is_heard_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        let long_ago = clock::wall() - Duration::from_secs(86_400);
        let write = |text: &str| {
            fs::write(&path, text).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        };
        write("one");
        let mut file = Followed::new(path.clone(), 100, Some(mark_of(b"one")));
        assert!(tokio::time::timeout(Duration::from_secs(60), file.changed()).await.is_err(), "nothing changed");
        write("two");
        let heard = tokio::time::timeout(Duration::from_secs(60), file.changed()).await;
        assert_eq!(heard.expect("nobody heard of it").unwrap(), b"two");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipe_in_its_place_is_an_error_and_not_the_last_that_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        assert!(read_now(&path, 100).is_err());
        let mut file = Followed::new(path.clone(), 100, Some(mark_of(b"one")));
        assert_eq!(file.changed().await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "two").unwrap();
        assert_eq!(file.changed().await.unwrap(), b"two");
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_leads_elsewhere_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["one", "two"] {
            fs::write(at(name), name).unwrap();
        }
        symlink("one", at("link")).unwrap();
        let mut file = Followed::new(at("link"), 100, Some(mark_of(b"one")));
        symlink("two", at("new")).unwrap();
        fs::rename(at("new"), at("link")).unwrap();
        assert_eq!(file.changed().await.unwrap(), b"two");
    }
}
