//! Pods listed in a file that somebody else writes: a `ConfigMap`, a deployment script.
//!
//! The file is read every second and compared by content: a `ConfigMap` changes by swapping a link, an editor by
//! renaming, and neither is told reliably by file events. A broken or missing file keeps the last good list.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::io::Errno;
use tokio::io::AsyncReadExt as _;
use xxhash_rust::xxh3::xxh3_64;

use super::{ParseEndpoints, sources::Slot};

/// How often the file is read: a few KiB from the page cache.
const READ_EVERY: Duration = Duration::from_secs(1);

/// The largest list read: 10,000 endpoints of 100 bytes each.
const MAX_LIST: u64 = 1 << 20;

/// Follows the file for ever.
pub(super) async fn watch(path: PathBuf, parse: ParseEndpoints, slot: Slot) {
    let mut seen = None;
    let mut tick = tokio::time::interval(READ_EVERY);
    loop {
        tick.tick().await;
        let found = read(&path).await;
        if found.as_ref().is_err_and(out_of_files) {
            // It says nothing of the list.
            continue;
        }
        let mark = found.as_ref().map(|text| xxh3_64(text.as_bytes())).map_err(io::Error::kind);
        if seen == Some(mark) {
            continue;
        }
        seen = Some(mark);
        let name = path.display().to_string();
        let list = found.map_err(|error| error.to_string()).and_then(|text| parse(&name, &text));
        match list {
            Ok(targets) => slot.publish(targets),
            Err(problem) => tracing::warn!(file = name, %problem, "list of endpoints not usable, the last one stays"),
        }
    }
}

/// Whether this process, or the whole system, may just now open no further files: that says nothing of the one asked for.
pub fn out_of_files(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE].iter().any(|it| code == Some(it.raw_os_error()))
}

async fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(MAX_LIST + 1).read_to_string(&mut text).await?;
    if text.len() as u64 > MAX_LIST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_no_file_can_be_opened_is_told_from_a_file_that_is_not_there() {
        let told = |code| out_of_files(&io::Error::from_raw_os_error(code));
        assert_eq!([24, 23, 2, 13].map(told), [true, true, false, false], "EMFILE, ENFILE, ENOENT, EACCES");
        assert!(!out_of_files(&io::Error::new(io::ErrorKind::FileTooLarge, "longer")));
    }
}
