//! A pod's bearer token, read from its file and read again when the file changes.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use reqwest::header::HeaderValue;

/// How often the file is looked at: a rotated token may be a second late, a scrape need not touch the disk each time.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One pod's token.
#[derive(Debug)]
pub struct Token {
    file: PathBuf,
    /// What is shorter is none.
    least: usize,
    known: Mutex<Known>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    header: Option<HeaderValue>,
    modified: Option<SystemTime>,
    looked: Option<Instant>,
}

impl Token {
    /// The token in `file`; nothing is read yet.
    pub fn new(file: &Path) -> Self {
        Self::of_at_least(1, file)
    }

    /// The same, of at least so many characters: what is shorter is not taken over.
    pub fn of_at_least(least: usize, file: &Path) -> Self {
        Self { file: file.into(), least, known: Mutex::default() }
    }

    /// `Bearer ...`; the last good token if the file cannot be read now, `None` if it never could.
    pub async fn header(&self, now: Instant) -> Option<HeaderValue> {
        let known = self.known().clone();
        if known.looked.is_some_and(|at| now.saturating_duration_since(at) < LOOK_EVERY) {
            return known.header;
        }
        let modified = tokio::fs::metadata(&self.file).await.and_then(|it| it.modified()).ok();
        let mut next = Known { looked: Some(now), ..known };
        if modified.is_none() || modified != next.modified {
            // Only what could be read is done with; half a file is looked at again.
            if let Some(header) = read(&self.file, self.least).await {
                next.header = Some(header);
                next.modified = modified;
            }
        }
        let header = next.header.clone();
        *self.known() = next;
        header
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read(file: &Path, least: usize) -> Option<HeaderValue> {
    let text = tokio::fs::read_to_string(file).await.ok()?;
    let token = text.trim();
    let mut header = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    (token.len() >= least).then_some(header)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    async fn shown(token: &Token, now: Instant) -> Option<String> {
        let header = token.header(now).await?;
        assert!(header.is_sensitive());
        Some(header.to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn a_rotated_token_is_taken_over_and_a_vanished_one_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let now = crate::clock::now();
        let token = Token::new(&file);
        assert_eq!(shown(&token, now).await, None);
        fs::write(&file, "one\n").unwrap();
        assert_eq!(shown(&token, now + LOOK_EVERY).await.as_deref(), Some("Bearer one"));
        fs::write(&file, " two ").unwrap();
        let later = SystemTime::now() + Duration::from_secs(9);
        fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
        assert_eq!(shown(&token, now + LOOK_EVERY).await.as_deref(), Some("Bearer one"));
        assert_eq!(shown(&token, now + LOOK_EVERY * 2).await.as_deref(), Some("Bearer two"));
        fs::remove_file(&file).unwrap();
        assert_eq!(shown(&token, now + LOOK_EVERY * 3).await.as_deref(), Some("Bearer two"));
    }

    #[tokio::test]
    async fn a_token_that_became_too_short_is_not_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let now = crate::clock::now();
        let token = Token::of_at_least(4, &file);
        for (turn, text, expected) in [(0, "long", "Bearer long"), (1, "x", "Bearer long"), (2, "", "Bearer long")] {
            fs::write(&file, text).unwrap();
            let then = SystemTime::now() + Duration::from_secs(9 * u64::from(turn));
            fs::File::options().write(true).open(&file).unwrap().set_modified(then).unwrap();
            assert_eq!(shown(&token, now + LOOK_EVERY * turn).await.as_deref(), Some(expected));
        }
    }
}
