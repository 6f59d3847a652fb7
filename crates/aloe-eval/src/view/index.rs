//! Files of JSON lines by the segment: some hundred lines, read, lightened and packed for a page by all processors. What came of the
//! segments is kept in an index beside the run, so that a long log opens again without being parsed.
//!
//! Never stale: a segment of the index stands for the bytes whose SHA-256 it names, and those are hashed at every opening. Segments are
//! taken from the start of the file as long as they hold; what follows, because the file grew, was cut, or was changed, is read anew. Where
//! a segment ends depends on its lines alone, so that a log that grew has the segments of one that was read at once. A damaged index, or
//! one of another program, counts as none.

use crate::Result;
use aloe_record::{atomic, digest};
use aloe_report::Texts;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A segment is closed once it holds so many lines or bytes: its texts are unpacked by a browser in some milliseconds.
const SEGMENT_LINES: usize = 512;
const SEGMENT_BYTES: usize = 1 << 20;
/// How much of a file is in memory at once; more where a single line is longer.
const WINDOW_BYTES: usize = 1 << 26;
/// What is kept of a row, and how it is packed. To be counted up with either.
const FORMAT: &str = concat!("aloe view 2, ", env!("CARGO_PKG_VERSION"));

/// What a file's lines are and what is made of them: a `T` with its texts, of which an `L` stays.
pub(super) struct Lines<T, L> {
    /// A line without its line break; `None` where it is no row. The error says what is wrong with it.
    pub(super) parse: fn(&[u8]) -> Result<Option<T>, String>,
    /// The texts of the rows of a segment.
    pub(super) pack: fn(&[T]) -> Vec<u8>,
    /// A row without its texts.
    pub(super) light: fn(T) -> L,
    /// Whether the file may be written meanwhile: an unfinished last line is then left out.
    pub(super) is_growing: bool,
}

/// A file's rows in their order, without their texts, and those.
pub(super) struct Rows<L> {
    pub(super) rows: Vec<L>,
    pub(super) texts: Texts,
}

/// What an index says of a segment of a file. Segments follow each other from the file's start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Segment {
    len_bytes: usize,
    n_lines: usize,
    n_rows: usize,
    sha256: String,
    /// Of the light rows as JSON, and of the packed texts after them.
    rows_bytes: usize,
    texts_bytes: usize,
    kept_sha256: String,
}

/// The first line of an index, after its own digest; what is kept of the segments follows in their order.
#[derive(Default, Serialize, Deserialize)]
struct Header {
    format: String,
    files: BTreeMap<String, Vec<Segment>>,
}

/// Where what is kept of a segment stands: its rows, and its texts after them.
enum Kept {
    /// In the index that was found, from this place on.
    Found(u64),
    New(Vec<u8>),
}

/// The index of a run's files: as it was found, and as it is to be kept.
#[derive(Default)]
pub(super) struct Index {
    found: Header,
    /// The file, and where the segments of each of `found.files` begin in it.
    file: Option<(File, BTreeMap<String, u64>)>,
    files: BTreeMap<String, Vec<(Segment, Kept)>>,
}

impl Index {
    /// The index at `path`; an empty one where there is none that can be used.
    pub(super) fn open(path: &Path) -> Self {
        Self::read(path).unwrap_or_default()
    }

    fn read(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        let mut line = Vec::new();
        BufReader::new(&file).read_until(b'\n', &mut line).ok()?;
        let (sum, json) = line.strip_suffix(b"\n")?.split_at_checked(65)?;
        if sum != format!("{} ", digest::bytes(json)).as_bytes() {
            return None;
        }
        let found: Header = serde_json::from_slice(json).ok()?;
        if found.format != FORMAT {
            return None;
        }
        let mut at = line.len() as u64;
        let mut starts = BTreeMap::new();
        for (name, segments) in &found.files {
            starts.insert(name.clone(), at);
            at += segments.iter().map(|one| (one.rows_bytes + one.texts_bytes) as u64).sum::<u64>();
        }
        if at != file.metadata().ok()?.len() {
            return None;
        }
        Some(Self { found, file: Some((file, starts)), ..Self::default() })
    }

    /// Reads the file at `path`, called `name` in the index.
    pub(super) fn rows<T, L>(&mut self, path: &Path, name: &str, lines: &Lines<T, L>) -> Result<Rows<L>>
    where
        L: Serialize + DeserializeOwned + Send,
    {
        let log = File::open(path).map_err(aloe_record::Error::io("read", path))?;
        let len = log.metadata().map_err(aloe_record::Error::io("read", path))?.len();
        let mut found = self.holding::<L>(&log, len, name);
        // The file may go on within the last segment.
        let end = |found: &[Made<L>]| found.iter().map(|one| one.segment.len_bytes as u64).sum::<u64>();
        if found.last().is_some_and(Made::is_open) && end(&found) < len {
            found.pop();
        }
        let mut from = end(&found);
        let (mut window_bytes, mut bytes) = (WINDOW_BYTES, Vec::new());
        while from < len {
            let n_bytes = (len - from).min(window_bytes as u64);
            bytes.resize(n_bytes as usize, 0);
            log.read_exact_at(&mut bytes, from).map_err(aloe_record::Error::io("read", path))?;
            let is_last = from + n_bytes == len;
            let parts = split(&bytes, is_last, is_last && !lines.is_growing);
            let n_before: usize = found.iter().map(|one| one.segment.n_lines).sum();
            let made = make(&parts, n_before, path, lines)?;
            from += made.iter().map(|one| one.segment.len_bytes as u64).sum::<u64>();
            match (made.is_empty(), is_last) {
                (true, true) => break,
                (true, false) => window_bytes *= 2,
                (false, _) => found.extend(made),
            }
            if is_last {
                break;
            }
        }
        Ok(self.keep(name, found))
    }

    /// The segments of the index that the file still begins with.
    fn holding<L: DeserializeOwned + Send>(&self, log: &File, len: u64, name: &str) -> Vec<Made<L>> {
        let (Some(segments), Some((file, starts))) = (self.found.files.get(name), &self.file) else {
            return Vec::new();
        };
        let mut places = Vec::new();
        let (mut in_log, mut in_index) = (0u64, starts.get(name).copied().unwrap_or_default());
        for segment in segments {
            places.push((in_log, in_index));
            in_log += segment.len_bytes as u64;
            in_index += (segment.rows_bytes + segment.texts_bytes) as u64;
        }
        let held = in_parallel(segments.len(), |at, scratch| {
            let (segment, (in_log, in_index)) = (&segments[at], places[at]);
            if in_log + segment.len_bytes as u64 > len {
                return None;
            }
            scratch.resize(scratch.len().max(segment.len_bytes).max(segment.rows_bytes), 0);
            let bytes = &mut scratch[..segment.len_bytes];
            log.read_exact_at(bytes, in_log).ok()?;
            if digest::bytes(bytes) != segment.sha256 {
                return None;
            }
            let ends_a_line = bytes.ends_with(b"\n");
            let rows = &mut scratch[..segment.rows_bytes];
            file.read_exact_at(rows, in_index).ok()?;
            let mut texts = vec![0; segment.texts_bytes];
            file.read_exact_at(&mut texts, in_index + segment.rows_bytes as u64).ok()?;
            if digest_of(rows, &texts) != segment.kept_sha256 {
                return None;
            }
            let rows = serde_json::from_slice(rows).ok()?;
            Some(Made { segment: segment.clone(), kept: Kept::Found(in_index), texts, rows, ends_a_line })
        });
        held.into_iter().map_while(|one| one).collect()
    }

    fn keep<L>(&mut self, name: &str, made: Vec<Made<L>>) -> Rows<L> {
        let n_rows = made.iter().map(|one| one.rows.len()).sum();
        let mut all = Rows { rows: Vec::with_capacity(n_rows), texts: Texts::default() };
        let mut kept = Vec::with_capacity(made.len());
        for one in made {
            if one.segment.n_rows > 0 {
                all.texts.push_block(one.segment.n_rows, one.texts);
            }
            all.rows.extend(one.rows);
            kept.push((one.segment, one.kept));
        }
        self.files.insert(name.to_owned(), kept);
        all
    }

    /// Bytes of the files that were read.
    pub(super) fn n_bytes(&self) -> usize {
        self.files.values().flatten().map(|(segment, _)| segment.len_bytes).sum()
    }

    /// Writes the index where it is not what was found.
    pub(super) fn write(&self, path: &Path) -> aloe_record::Result<()> {
        let segments = |(name, kept): (&String, &Vec<(Segment, Kept)>)| {
            (name.clone(), kept.iter().map(|(segment, _)| segment.clone()).collect())
        };
        let header = Header { format: FORMAT.to_owned(), files: self.files.iter().map(segments).collect() };
        // What was made anew replaces what was damaged, though it stands for the same bytes.
        let is_found = self.files.values().flatten().all(|(_, kept)| matches!(kept, Kept::Found(_)));
        if is_found && header.files == self.found.files {
            return Ok(());
        }
        let line = serde_json::to_string(&header)
            .map_err(|error| aloe_record::Error::Json { path: path.to_path_buf(), reason: error.to_string() })?;
        atomic::write_with(path, |out| {
            let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(aloe_record::Error::io("write", path));
            put(format!("{} {line}\n", digest::bytes(line.as_bytes())).as_bytes())?;
            self.files.values().flatten().try_for_each(|(segment, kept)| match kept {
                Kept::New(bytes) => put(bytes),
                Kept::Found(at) => {
                    put(&self.found_bytes(segment, *at).map_err(aloe_record::Error::io("read", path))?)
                }
            })
        })
    }

    /// What the index that was found has of a segment. The file stays as it was while another takes its name.
    fn found_bytes(&self, segment: &Segment, at: u64) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; segment.rows_bytes + segment.texts_bytes];
        if let Some((file, _)) = &self.file {
            file.read_exact_at(&mut bytes, at)?;
        }
        Ok(bytes)
    }
}

fn digest_of(rows: &[u8], texts: &[u8]) -> String {
    let mut hasher = digest::Hasher::default();
    hasher.update(rows);
    hasher.update(texts);
    hasher.hex()
}

/// A segment with what is kept of it, its texts and its light rows.
struct Made<L> {
    segment: Segment,
    kept: Kept,
    texts: Vec<u8>,
    rows: Vec<L>,
    ends_a_line: bool,
}

impl<L> Made<L> {
    /// Whether what a file goes on with may belong to it.
    fn is_open(&self) -> bool {
        let is_full = self.segment.n_lines >= SEGMENT_LINES || self.segment.len_bytes >= SEGMENT_BYTES;
        !is_full || !self.ends_a_line
    }
}

/// The segments that `bytes` begin with, each with its lines: full ones alone, but for the last of a file; with a line that lacks its
/// line break where that is wanted.
fn split(bytes: &[u8], with_last: bool, with_unfinished: bool) -> Vec<Vec<&[u8]>> {
    let (mut parts, mut lines, mut n_bytes) = (Vec::new(), Vec::new(), 0);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        if !line.ends_with(b"\n") && !with_unfinished {
            break;
        }
        n_bytes += line.len();
        lines.push(line);
        if lines.len() >= SEGMENT_LINES || n_bytes >= SEGMENT_BYTES {
            parts.push(std::mem::take(&mut lines));
            n_bytes = 0;
        }
    }
    if with_last && !lines.is_empty() {
        parts.push(lines);
    }
    parts
}

/// Reads the lines of each part; `n_before` lines stand before them.
fn make<T, L: Serialize + Send>(
    parts: &[Vec<&[u8]>],
    n_before: usize,
    path: &Path,
    lines: &Lines<T, L>,
) -> Result<Vec<Made<L>>> {
    let mut next = n_before + 1;
    let first_of = |part: &Vec<&[u8]>| {
        next += part.len();
        next - part.len()
    };
    let first: Vec<usize> = parts.iter().map(first_of).collect();
    let made = in_parallel(parts.len(), |at, scratch| {
        let mut rows = Vec::new();
        scratch.clear();
        for (number, &line) in (first[at]..).zip(&parts[at]) {
            scratch.extend_from_slice(line);
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            let row = (lines.parse)(text).map_err(|reason| wrong(path, number, &reason, lines.is_growing))?;
            rows.extend(row);
        }
        let texts = (lines.pack)(&rows);
        let rows: Vec<L> = rows.into_iter().map(lines.light).collect();
        let mut kept = serde_json::to_vec(&rows)
            .map_err(|error| aloe_record::Error::Json { path: path.to_path_buf(), reason: error.to_string() })?;
        let segment = Segment {
            len_bytes: scratch.len(),
            n_lines: parts[at].len(),
            n_rows: rows.len(),
            sha256: digest::bytes(scratch),
            rows_bytes: kept.len(),
            texts_bytes: texts.len(),
            kept_sha256: digest_of(&kept, &texts),
        };
        kept.extend_from_slice(&texts);
        Ok(Made { segment, kept: Kept::New(kept), texts, rows, ends_a_line: scratch.ends_with(b"\n") })
    });
    made.into_iter().collect()
}

fn wrong(path: &Path, line: usize, reason: &str, is_log: bool) -> crate::Error {
    let path = path.to_path_buf();
    match is_log {
        true => aloe_record::Error::Log { path, reason: format!("line {line} {reason}") }.into(),
        false => aloe_record::Error::Json { path, reason: format!("line {line}: {reason}") }.into(),
    }
}

/// `one` of 0 to `n`, on all processors, in their order. Each thread has one buffer for all that it does.
fn in_parallel<R: Send>(n: usize, one: impl Fn(usize, &mut Vec<u8>) -> R + Sync) -> Vec<R> {
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from).min(n);
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(n)));
    std::thread::scope(|scope| {
        for _ in 0..n_threads {
            scope.spawn(|| {
                let mut scratch = Vec::new();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= n {
                        return;
                    }
                    let result = one(at, &mut scratch);
                    found.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests;
