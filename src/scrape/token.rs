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
        Self {
            file: file.into(),
            known: Mutex::default(),
        }
    }

    /// `Bearer ...`; the last good token if the file cannot be read now, `None` if it never could.
    pub async fn header(&self, now: Instant) -> Option<HeaderValue> {
        let known = self.known().clone();
        if known
            .looked
            .is_some_and(|at| now.saturating_duration_since(at) < LOOK_EVERY)
        {
            return known.header;
        }
        let modified = tokio::fs::metadata(&self.file).await.and_then(|it| it.modified()).ok();
        let header = if modified.is_some() && modified == known.modified {
            known.header
        } else {
            read(&self.file).await.or(known.header)
        };
        let looked = Some(now);
        *self.known() = Known {
            header: header.clone(),
            modified,
            looked,
        };
        header
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read(file: &Path) -> Option<HeaderValue> {
    let text = tokio::fs::read_to_string(file).await.ok()?;
    let token = text.trim();
    let mut header = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    (!token.is_empty()).then_some(header)
}
