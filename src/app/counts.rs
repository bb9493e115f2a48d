//! Counts that outlive the process: read from their file when the gateway starts, written to it while it runs and when it
//! stops.
//!
//! A file that cannot be read is told and left where it is, under another name, and counting begins anew: who would rather
//! not start would be down for the sake of a minute's counts, and who overwrote it would have lost a month's budgets.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::sleep;

use crate::{
    admission::{Counts, Moment, Saved},
    gateway::{House, moment},
    tasks::Tasks,
};

/// How often counts are written: a crash forgets as much, which is less than one minute's limits.
const EVERY: Duration = Duration::from_secs(10);

/// Larger files are not ours: a hundred thousand scopes take 30 MB.
const LARGEST: u64 = 256 << 20;

/// The counts of `file`, if there are any.
pub(super) fn load(file: Option<&Path>) -> Counts {
    let Some(file) = file else { return Counts::default() };
    match read(file, &moment()) {
        Ok(Some(counts)) => {
            tracing::info!(file = %file.display(), scopes = counts.len(), "counts of limits go on where they were");
            counts
        }
        Ok(None) => Counts::default(),
        Err(error) => {
            let aside = beside(file, "unreadable");
            let kept = fs::rename(file, &aside).is_ok();
            tracing::warn!(
                file = %file.display(),
                %error,
                kept_as = kept.then(|| aside.display().to_string()),
                "the counts of limits cannot be read; all limits and budgets begin anew"
            );
            Counts::default()
        }
    }
}

fn read(file: &Path, now: &Moment) -> Result<Option<Counts>, io::Error> {
    let size = match fs::metadata(file) {
        Ok(it) => it.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if size > LARGEST {
        return Err(io::Error::other("it is larger than any such file"));
    }
    let saved: Saved = serde_json::from_slice(&fs::read(file)?)?;
    Counts::restored(saved, now).map(Some).map_err(io::Error::other)
}

/// Writes the counts to `file`: whole or not at all.
pub(super) fn save(house: &House, file: &Path) {
    let now = moment();
    house.counts.sweep(&now);
    let written = write(file, &house.counts.saved(&now));
    if let Err(error) = written {
        tracing::warn!(file = %file.display(), %error, "the counts of limits cannot be written; a restart begins anew");
    }
}

fn write(file: &Path, saved: &Saved) -> io::Result<()> {
    let aside = beside(file, "new");
    let mut out = io::BufWriter::new(fs::File::create(&aside)?);
    serde_json::to_writer(&mut out, saved)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&aside, file)
}

/// A file of another name in the same folder, so that renaming is one step.
fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(ending);
    file.with_file_name(name)
}

/// Writes them again and again, until the gateway stops.
pub(super) fn keep(house: &Arc<House>, file: Option<PathBuf>, tasks: &Tasks) {
    let Some(file) = file else { return };
    let (house, every) = (Arc::clone(house), EVERY);
    tasks.spawn_until_stop(async move {
        loop {
            sleep(every).await;
            let (house, file) = (Arc::clone(&house), file.clone());
            // A disk may take its time.
            tokio::task::spawn_blocking(move || save(&house, &file)).await.ok();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_is_kept_beside_and_counting_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("quotas.json");
        assert!(load(Some(&file)).is_empty(), "none was there");
        fs::write(&file, "{\"version\": 1, \"at_ms\"").unwrap();
        assert!(load(Some(&file)).is_empty());
        assert!(!file.exists());
        assert!(fs::read_to_string(folder.path().join("quotas.json.unreadable")).unwrap().starts_with("{\"version\""));
    }

    #[test]
    fn what_is_written_is_read_again_and_nothing_half_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("quotas.json");
        write(&file, &Counts::default().saved(&moment())).unwrap();
        assert!(read(&file, &moment()).unwrap().is_some());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
