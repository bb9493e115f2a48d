//! Bearer tokens that live in files and may be rotated under us.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use dashmap::DashMap;
use http::HeaderValue;

use crate::scrape::Token;

/// Tokens by file, read as the scrape reads them. Bounded by the files that the configuration names.
#[derive(Debug, Default)]
pub(super) struct Credentials {
    tokens: DashMap<PathBuf, Arc<Token>>,
}

impl Credentials {
    /// `Bearer <token>` from `file`; `None` if it could never be read.
    pub(super) async fn bearer(&self, file: &Path, now: Instant) -> Option<HeaderValue> {
        let known = self.tokens.get(file).map(|token| Arc::clone(&token));
        let token = known.unwrap_or_else(|| {
            Arc::clone(&self.tokens.entry(file.to_owned()).or_insert_with(|| Arc::new(Token::new(file))))
        });
        token.header(now).await
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[tokio::test]
    async fn a_rotated_token_is_taken_up_and_a_vanished_file_keeps_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let (credentials, t) = (Credentials::default(), crate::clock::now());
        assert_eq!(credentials.bearer(&file, t).await, None);
        fs::write(&file, "one\n").unwrap();
        let minute = Duration::from_secs(60);
        assert_eq!(credentials.bearer(&file, t + minute).await.unwrap(), "Bearer one");
        fs::write(&file, "number two\n").unwrap();
        assert_eq!(credentials.bearer(&file, t + minute * 2).await.unwrap(), "Bearer number two");
        fs::remove_file(&file).unwrap();
        assert_eq!(credentials.bearer(&file, t + minute * 3).await.unwrap(), "Bearer number two");
    }
}
