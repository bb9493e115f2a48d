//! The files of this repository, for tests that read it.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// All files below `folder` whose names end so, sorted.
pub(crate) fn files_in(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let found = entries.flat_map(|path| match path.extension() {
        _ if path.is_dir() => files_in(&path, extension),
        Some(its) if its == extension => vec![path],
        _ => Vec::new(),
    });
    let mut found: Vec<_> = found.collect();
    found.sort();
    found
}
