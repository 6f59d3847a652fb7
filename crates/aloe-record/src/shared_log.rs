//! A log of the same lines as [`crate::log`], for many processes at once and for entries that are welcome but not owed: answer caches.
//!
//! A batch of entries is one write at the end of the file, under a lock that is held for that write only. Nothing is ever changed or
//! cut, so places in the file stay true. A line that fails its checksum, the torn end of a killed writer too, is passed over and
//! counted; the next writer begins on a line of its own.

use crate::log::{crc32, whole};
use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// An open log, locked only while it is written.
pub struct SharedLog {
    file: File,
    path: PathBuf,
    /// Up to here the lines were read.
    read_bytes: u64,
    n_damaged: u64,
}

/// Where an entry's JSON stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    offset: u64,
    len_bytes: u32,
    crc: u32,
}

impl SharedLog {
    /// Opens or creates the log at `path`, and the folders above it. Reads nothing yet.
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        let options = OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = options.map_err(Error::io("open", path))?;
        Ok(Self { file, path: path.to_path_buf(), read_bytes: 0, n_damaged: 0 })
    }

    /// Hands over the entries that came since the last call, whoever wrote them, each with its place.
    pub fn read_new(&mut self, mut entry: impl FnMut(Place, &[u8])) -> Result<()> {
        let len = self.file.metadata().map_err(Error::io("read", &self.path))?.len();
        if len < self.read_bytes {
            // Somebody emptied the file; what stands there now is new.
            self.read_bytes = 0;
        }
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.read_bytes)).map_err(Error::io("seek", &self.path))?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let n_bytes = reader.read_until(b'\n', &mut line).map_err(Error::io("read", &self.path))?;
            if line.pop() != Some(b'\n') {
                // Nothing, or a line that is still being written.
                return Ok(());
            }
            match whole(&line) {
                Some((crc, json)) => {
                    let offset = self.read_bytes + (line.len() - json.len()) as u64;
                    entry(Place { offset, len_bytes: json.len() as u32, crc }, json);
                }
                None if line.is_empty() => {}
                None => self.n_damaged += 1,
            }
            self.read_bytes += n_bytes as u64;
        }
    }

    /// The entry at a place; `None` when it is no longer what was found there.
    pub fn read(&self, place: Place) -> Result<Option<Vec<u8>>> {
        let mut json = vec![0; place.len_bytes as usize];
        match self.file.read_exact_at(&mut json, place.offset) {
            Ok(()) => Ok((crc32(&json) == place.crc).then_some(json)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(Error::io("read", &self.path)(error)),
        }
    }

    /// Adds entries, JSON without line breaks, in one write.
    pub fn append(&mut self, entries: &[String]) -> Result<()> {
        let mut text = String::new();
        for json in entries {
            text.push_str(&format!("{:08x} {json}\n", crc32(json.as_bytes())));
        }
        self.file.lock().map_err(Error::io("lock", &self.path))?;
        let written = self.append_locked(&text);
        self.file.unlock().map_err(Error::io("unlock", &self.path))?;
        written
    }

    fn append_locked(&mut self, text: &str) -> Result<()> {
        let len = self.file.metadata().map_err(Error::io("read", &self.path))?.len();
        let mut last = [b'\n'];
        if len > 0 {
            self.file.read_exact_at(&mut last, len - 1).map_err(Error::io("read", &self.path))?;
        }
        let text = if last == [b'\n'] { text.to_owned() } else { format!("\n{text}") };
        self.file.write_all(text.as_bytes()).map_err(Error::io("write", &self.path))
    }

    /// Lines passed over so far.
    pub fn n_damaged(&self) -> u64 {
        self.n_damaged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(log: &mut SharedLog) -> Vec<String> {
        let mut found = Vec::new();
        log.read_new(|_, json| found.push(String::from_utf8(json.to_vec()).unwrap())).unwrap();
        found
    }

    #[test]
    fn two_writers_lose_nothing_and_each_reads_what_the_other_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x/a.log");
        let write = |name: &str| {
            let mut log = SharedLog::open(&path).unwrap();
            for at in 0..200 {
                log.append(&[format!("\"{name} {at}\""), format!("\"{name} {at} again\"")]).unwrap();
            }
        };
        let mut reader = SharedLog::open(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| write("a"));
            scope.spawn(|| write("b"));
        });
        let mut found = entries(&mut reader);
        assert_eq!(entries(&mut reader), [""; 0], "nothing came since");
        write("c");
        found.extend(entries(&mut reader));
        found.sort();
        found.dedup();
        assert_eq!((found.len(), reader.n_damaged()), (3 * 400, 0));
    }

    #[test]
    fn a_log_cut_at_any_byte_keeps_its_whole_lines_and_takes_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        SharedLog::open(&path).unwrap().append(&["10".into(), "[1,2]".into(), "\"x\"".into()]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            SharedLog::open(&path).unwrap().append(&["\"new\"".into()]).unwrap();
            let mut log = SharedLog::open(&path).unwrap();
            let n_lines = whole[..cut].iter().filter(|&&byte| byte == b'\n').count();
            // A line that lacks its line break alone is whole once the next writer has begun a line of its own.
            let lacks_break = whole.get(cut) == Some(&b'\n');
            let mut expected = ["10", "[1,2]", "\"x\""][..n_lines + usize::from(lacks_break)].to_vec();
            expected.push("\"new\"");
            assert_eq!(entries(&mut log), expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_costs_the_entries_of_its_line_and_changes_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let all = ["[1,2,3]", "{\"a\":1}", "\"last\""];
        SharedLog::open(&path).unwrap().append(&all.map(str::to_owned)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut log = SharedLog::open(&path).unwrap();
            let mut places = Vec::new();
            log.read_new(|place, _| places.push(place)).unwrap();
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bytes).unwrap();
            let found = entries(&mut SharedLog::open(&path).unwrap());
            assert!(found.iter().all(|entry| all.contains(&entry.as_str())), "bit {bit}: {found:?}");
            assert!(found.len() >= all.len() - 2, "a line break lost joins two lines, no more: {found:?}");
            // A reader that knew the places before the damage sees it too.
            for (place, entry) in places.into_iter().zip(all) {
                let again = log.read(place).unwrap();
                assert!(again.is_none_or(|json| json == entry.as_bytes()), "bit {bit}");
            }
            std::fs::write(&path, &whole).unwrap();
        }
    }
}
