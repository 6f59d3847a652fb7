//! A file that is read and, where its digest is wanted, hashed as it is read: of a large file a second reading would take as long as half of
//! the parsing.

use crate::{Error, Result};
use aloe_record::digest::Hasher;
use std::cell::RefCell;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What tells that a file is still the one that was opened.
#[derive(Debug, PartialEq, Eq)]
struct State {
    n_bytes: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    device_and_inode: (u64, u64),
}

impl State {
    fn of(found: &Metadata) -> State {
        State {
            n_bytes: found.len(),
            modified: found.modified().ok(),
            #[cfg(unix)]
            device_and_inode: {
                use std::os::unix::fs::MetadataExt as _;
                (found.dev(), found.ino())
            },
        }
    }
}

/// A file with the digest of what was read of it.
pub(crate) struct Source {
    path: PathBuf,
    file: File,
    /// When it was opened.
    state: State,
    /// `None` once nobody wants the digest.
    hasher: RefCell<Option<Hasher>>,
}

impl Source {
    /// To be read alone.
    pub(crate) fn open(path: &Path) -> Result<Source> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let state = State::of(&file.metadata().map_err(Error::io("read", path))?);
        Ok(Source { path: path.to_path_buf(), file, state, hasher: RefCell::default() })
    }

    /// To be read once, from its beginning, and hashed.
    pub(crate) fn hashed(path: &Path) -> Result<Source> {
        Ok(Source { hasher: RefCell::new(Some(Hasher::default())), ..Source::open(path)? })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The first four bytes, zeros where the file is shorter; they are not read yet.
    pub(super) fn magic(&self) -> Result<[u8; 4]> {
        let mut magic = [0u8; 4];
        let mut file = File::open(&self.path).map_err(Error::io("read", &self.path))?;
        let mut n_read = 0;
        while n_read < magic.len() {
            match file.read(&mut magic[n_read..]).map_err(Error::io("read", &self.path))? {
                0 => break,
                n => n_read += n,
            }
        }
        Ok(magic)
    }

    /// Nobody wants the digest any more.
    pub(crate) fn hash_no_more(&self) {
        self.hasher.take();
    }

    /// SHA-256 of the whole file, what no reader asked for included. Refuses a file that was written to or replaced since it was opened: a
    /// digest would stand for bytes that no row was made of.
    pub(crate) fn digest(self) -> Result<Option<String>> {
        if self.hasher.borrow().is_none() {
            return Ok(None);
        }
        io::copy(&mut &self, &mut io::sink()).map_err(Error::io("read", &self.path))?;
        let found = std::fs::metadata(&self.path).map_err(Error::io("read", &self.path))?;
        if State::of(&found) != self.state {
            return Err(Error::Changed { path: self.path });
        }
        Ok(self.hasher.take().map(Hasher::hex))
    }
}

impl Read for &Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n_bytes = (&self.file).read(into)?;
        if let Some(hasher) = &mut *self.hasher.borrow_mut() {
            hasher.update(&into[..n_bytes]);
        }
        Ok(n_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{dispatch, read_on};
    use aloe_record::digest;

    /// The file's own digest, made in one piece, is the oracle, for files of which readers leave bytes unread and for one that its reader opens itself.
    #[test]
    fn a_file_is_hashed_whole_whatever_its_reader_asks_for() {
        let dir = tempfile::tempdir().unwrap();
        let row = "{\"a\": 1}\n".repeat(100_000);
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut packed, row.as_bytes()).unwrap();
        let packed = packed.finish().unwrap();
        let parquet = [b"PAR1".as_slice(), &vec![7; 300_000]].concat();
        for (name, bytes) in
            [("a.jsonl", row.as_bytes()), ("a.jsonl.gz", &packed), ("a.parquet", &parquet), ("b.jsonl", b"{")]
        {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let opened = Source::hashed(&path).unwrap();
            let _ = read_on(&opened, 2, &mut |_| Ok(()), &|_, row| row.is_ok(), &mut |_| Ok(()));
            assert_eq!(opened.digest().unwrap(), Some(digest::file(&path).unwrap()), "{name}");
            // A reader that stops at its first row, and one whose user wants no digest any more.
            let opened = Source::hashed(&path).unwrap();
            let _ = dispatch(&opened, &mut |_| Err(Error::EmptyFile { path: path.clone() }));
            assert_eq!(opened.digest().unwrap(), Some(digest::file(&path).unwrap()), "{name}");
            let opened = Source::hashed(&path).unwrap();
            opened.hash_no_more();
            assert_eq!(opened.digest().unwrap(), None, "{name}");
        }
    }

    /// The last has the length and the name of what was read.
    #[test]
    fn a_file_that_is_written_to_or_replaced_while_it_is_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a.jsonl"), dir.path().join("b.jsonl"));
        let append = |path: &Path| {
            let mut file = File::options().append(true).open(path).unwrap();
            io::Write::write_all(&mut file, b"{\"a\": 2}\n").unwrap();
        };
        let touch = |path: &Path| {
            let file = File::options().append(true).open(path).unwrap();
            file.set_modified(SystemTime::now() + std::time::Duration::from_secs(9)).unwrap();
        };
        let replace = |path: &Path| std::fs::rename(&other, path).unwrap();
        type Change<'a> = (&'a str, &'a dyn Fn(&Path));
        let changes: [Change<'_>; 4] =
            [("nothing", &|_| ()), ("append", &append), ("touch", &touch), ("replace", &replace)];
        for (name, change) in changes {
            std::fs::write(&path, "{\"a\": 1}\n").unwrap();
            std::fs::write(&other, "{\"a\": 3}\n").unwrap();
            let opened = Source::hashed(&path).unwrap();
            read_on(&opened, 2, &mut |_| Ok(()), &|_, row| row.is_ok(), &mut |_| Ok(())).unwrap();
            change(&path);
            match opened.digest() {
                Ok(found) => assert_eq!((name, found), ("nothing", Some(digest::file(&path).unwrap()))),
                Err(error) => assert!(
                    name != "nothing" && error.to_string().contains("changed while it was read"),
                    "{name}: {error}"
                ),
            }
        }
    }
}
