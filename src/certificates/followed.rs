//! Something made of files, and made again when they change.

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use xxhash_rust::xxh3::xxh3_64;

/// The largest file read: a bundle of a few hundred authorities has a quarter of that.
const LARGEST: u64 = 1 << 20;

type Make<T> = Box<dyn Fn(&[Vec<u8>]) -> io::Result<T> + Send + Sync>;

/// Whether what is in use may give way to what was made.
type Judge<T> = fn(&T, &T) -> io::Result<()>;

/// Something made of files. It stays what it was while they cannot be used.
pub struct Followed<T> {
    paths: Box<[PathBuf]>,
    make: Make<T>,
    judge: Judge<T>,
    made: ArcSwap<T>,
    seen: Mutex<Seen>,
}

/// Marks of what the files held.
#[derive(Default)]
struct Seen {
    used: u64,
    /// What could not be used, and whether that was told. Several files are not swapped in one moment, so that a
    /// certificate may be seen beside the key of another: it counts as broken when it is seen again.
    doubted: Option<(u64, bool)>,
}

impl<T> fmt::Debug for Followed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followed").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl<T> Followed<T> {
    /// Reads the files at `paths` and makes it of what they hold.
    ///
    /// # Errors
    /// If one cannot be read, or it cannot be made.
    pub fn open(
        paths: impl Into<Box<[PathBuf]>>,
        make: impl Fn(&[Vec<u8>]) -> io::Result<T> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (paths, make) = (paths.into(), Box::new(make));
        let files = read(&paths)?;
        let first = make(&files).map_err(|error| named(&paths, &error))?;
        let seen = Seen { used: mark(&files), doubted: None };
        Ok(Self { paths, make, judge: |_, _| Ok(()), made: ArcSwap::from_pointee(first), seen: Mutex::new(seen) })
    }

    /// From now on, what is in use (the first) gives way to another only if `judge` says so.
    #[must_use]
    pub fn judged_by(self, judge: Judge<T>) -> Self {
        Self { judge, ..self }
    }

    /// As it is now.
    pub fn now(&self) -> Arc<T> {
        self.made.load_full()
    }

    /// The file that it is known by.
    pub fn path(&self) -> &Path {
        self.paths.first().map_or(Path::new(""), PathBuf::as_path)
    }

    /// Looks at the files again: whether it is another from now on.
    ///
    /// # Errors
    /// If they changed and cannot be used; told once for the same files.
    pub fn look(&self) -> io::Result<bool> {
        let found = read(&self.paths).and_then(|files| {
            let mark = mark(&files);
            let used = self.seen().used;
            if mark == used {
                return Ok(None);
            }
            let made = (self.make)(&files).and_then(|made| (self.judge)(&self.now(), &made).map(|()| made));
            made.map(|made| Some((made, mark)))
                .map_err(|error| named(&self.paths, &error))
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, Broken(mark, error)))
        });
        let mut seen = self.seen();
        match found {
            Ok(None) => {
                seen.doubted = None;
                Ok(false)
            }
            Ok(Some((made, mark))) => {
                *seen = Seen { used: mark, doubted: None };
                drop(seen);
                self.made.store(Arc::new(made));
                Ok(true)
            }
            Err(error) => seen.doubt(error),
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn doubt(&mut self, error: io::Error) -> io::Result<bool> {
        let mark = match error.get_ref().and_then(|error| error.downcast_ref::<Broken>()) {
            Some(Broken(mark, _)) => *mark,
            None => xxh3_64(error.to_string().as_bytes()),
        };
        let (told, result) = match self.doubted {
            Some((last, told)) if last == mark => (true, if told { Ok(false) } else { Err(error) }),
            _ => (false, Ok(false)),
        };
        self.doubted = Some((mark, told));
        result
    }
}

/// What was read could not be used; by the mark of what was read.
#[derive(Debug)]
struct Broken(u64, io::Error);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.fmt(f)
    }
}

impl std::error::Error for Broken {}

fn read(paths: &[PathBuf]) -> io::Result<Vec<Vec<u8>>> {
    paths.iter().map(|path| read_one(path).map_err(|error| named(std::slice::from_ref(path), &error))).collect()
}

fn read_one(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1 MiB"));
    }
    Ok(bytes)
}

fn named(paths: &[PathBuf], error: &io::Error) -> io::Error {
    let paths = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    io::Error::new(error.kind(), format!("{paths}: {error}"))
}

fn mark(files: &[Vec<u8>]) -> u64 {
    let marks: Vec<u8> = files.iter().flat_map(|file| xxh3_64(file).to_le_bytes()).collect();
    xxh3_64(&marks)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number that stands in both files.
    fn number(files: &[Vec<u8>]) -> io::Result<u32> {
        let [one, two] = files else { return Err(io::ErrorKind::InvalidData.into()) };
        let text = String::from_utf8(one.clone()).ok().filter(|_| one == two);
        text.and_then(|it| it.parse().ok()).ok_or_else(|| io::Error::other("not the same number"))
    }

    #[test]
    fn what_is_sound_counts_at_once_and_what_is_broken_when_it_stays_so() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        let open = || Followed::open([one.clone(), two.clone()], number);
        assert!(open().unwrap_err().to_string().contains("one"), "nothing is there");
        for file in [&one, &two] {
            fs::write(file, "1").unwrap();
        }
        let followed = open().unwrap();
        assert!(!followed.look().unwrap());

        fs::write(&one, "2").unwrap();
        assert!(!followed.look().unwrap(), "half of a swap");
        fs::write(&two, "2").unwrap();
        assert!(followed.look().unwrap());
        assert_eq!(*followed.now(), 2);

        fs::write(&two, "3").unwrap();
        assert!(!followed.look().unwrap());
        assert!(followed.look().unwrap_err().to_string().contains("not the same number"));
        assert!(!followed.look().unwrap(), "told once");
        fs::remove_file(&two).unwrap();
        assert!(!followed.look().unwrap());
        followed.look().unwrap_err();
        assert_eq!(*followed.now(), 2);
        fs::write(&two, "2").unwrap();
        assert!(!followed.look().unwrap(), "as it was");
        fs::write(&one, vec![b'1'; 1 + (1 << 20)]).unwrap();
        assert!(!followed.look().unwrap());
        assert!(followed.look().unwrap_err().to_string().contains("longer"));
    }
}
