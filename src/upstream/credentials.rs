//! Bearer tokens that live in files and may be rotated under us.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use dashmap::DashMap;
use http::HeaderValue;

/// A token is read again after this time: rotations take minutes, and a mounted Secret lags by a minute anyway.
const FRESH: Duration = Duration::from_secs(5);

/// Tokens by file. Bounded by the files that the configuration names.
#[derive(Debug, Default)]
pub(super) struct Credentials {
    tokens: DashMap<PathBuf, (HeaderValue, Instant)>,
}

impl Credentials {
    /// `Bearer <token>` from `file`. The file is tiny and in memory-backed storage as a rule, so reading it now and
    /// then here is cheaper than a task that watches it. If it cannot be read, the last good token serves on.
    pub(super) fn bearer(&self, file: &Path, now: Instant) -> io::Result<HeaderValue> {
        let known = self.tokens.get(file).map(|entry| entry.clone());
        if let Some((value, read)) = &known
            && now.saturating_duration_since(*read) < FRESH
        {
            return Ok(value.clone());
        }
        match (read(file), known) {
            (Ok(value), _) => {
                self.tokens.insert(file.to_owned(), (value.clone(), now));
                Ok(value)
            }
            (Err(_), Some((value, _))) => Ok(value),
            (Err(error), None) => Err(error),
        }
    }
}

fn read(file: &Path) -> io::Result<HeaderValue> {
    let text = fs::read_to_string(file)?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", text.trim())).map_err(io::Error::other)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_token_is_taken_up_and_a_vanished_file_keeps_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let (credentials, t) = (Credentials::default(), crate::clock::now());
        assert!(credentials.bearer(&file, t).is_err());
        fs::write(&file, "one\n").unwrap();
        assert_eq!(credentials.bearer(&file, t).unwrap(), "Bearer one");
        fs::write(&file, "two\n").unwrap();
        assert_eq!(credentials.bearer(&file, t + Duration::from_secs(1)).unwrap(), "Bearer one");
        assert_eq!(credentials.bearer(&file, t + FRESH).unwrap(), "Bearer two");
        fs::remove_file(&file).unwrap();
        assert_eq!(credentials.bearer(&file, t + FRESH * 3).unwrap(), "Bearer two");
    }
}
