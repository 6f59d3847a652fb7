//! Deduplication in shards: each signs its share of the rows, on its own machine, and a merge step finds the duplicates of all.
//!
//! A row's share is its number modulo the number of shards, and a signature is a matter of its row alone, so that neither the number of
//! shards nor of threads changes a byte of what the merge writes; `aloe data run` takes that in place of its own search. A shard reads
//! all rows, for only so does it know their numbers, and keeps none of them.

use super::Run;
use crate::dedup::{self, Signature, Signer};
use crate::source::{self, DataFile};
use crate::{DataConfig, Error, Keep, Result, parallel};
use aloe_record::{Cancel, Progress, atomic, digest};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

const FORMAT: &str = "aloe-signatures-5";
/// Rows that are in memory at a time.
pub(super) const N_BLOCK: usize = 1 << 13;

/// Which share of the rows: `index` of `n`, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// From 1.
    pub index: usize,
    /// Number of shards.
    pub n: usize,
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(index, n)| Some((index.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, n)) if 1 <= index && index <= n => Ok(Self { index, n }),
            _ => Err(format!("{text:?} is not a shard; write i/N with i from 1 to N, such as 1/4")),
        }
    }
}

/// `shard.json`: written last, so that a folder without it is unfinished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardReport {
    format: String,
    shard: Shard,
    /// Rows of all shards, behind the rules.
    pub n_rows: usize,
    /// Rows signed here.
    pub n_signed: usize,
    /// Which row of duplicates stays.
    keep: Keep,
    /// Digest of what decides the rows and their signatures.
    settings: String,
    /// Digest of `signatures.bin`.
    signatures: String,
}

/// `dedup.json`: what a merge found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DedupReport {
    /// Rows compared.
    pub n_rows: usize,
    /// Equal but for case and punctuation.
    pub n_exact_duplicates: usize,
    /// By shared MinHash buckets.
    pub n_near_duplicates: usize,
    settings: String,
    /// Digest of `duplicates.jsonl`.
    duplicates: String,
}

const OTHER_ROWS: &str = "it was made of other rows or settings than this stage's; run `aloe data dedup` again";

/// A line of the merge's `duplicates.jsonl`.
#[derive(Serialize, Deserialize)]
struct Line {
    dropped: String,
    kept: String,
    rule: String,
}

fn broken(path: &Path, reason: impl Into<String>) -> Error {
    Error::Shards { path: path.to_path_buf(), reason: reason.into() }
}

/// Digest of the settings and files that decide which rows there are and how they are signed; `digest_of` gives that of a source's file.
fn settings(config: &DataConfig, digest_of: &dyn Fn(usize, &DataFile) -> Result<String>) -> Result<String> {
    let mut hasher = digest::Hasher::default();
    hasher.field(FORMAT.as_bytes());
    for (index, config) in config.sources.iter().enumerate() {
        let source = (
            (&config.name, &config.dialect, &config.columns, &config.system, &config.task),
            (config.rejected_openings, config.rating_gap),
        );
        hasher.field(serde_json::to_string(&source).unwrap_or_default().as_bytes());
        for file in source::files(&config.path)? {
            hasher.field(file.label.as_bytes());
            hasher.field(digest_of(index, &file)?.as_bytes());
        }
        if let Some(path) = &config.safe_answers {
            for file in source::files(path)? {
                hasher.field(digest::file(&file.path)?.as_bytes());
            }
        }
    }
    let rest = (
        (config.output, &config.rules, &config.filters, config.identifiers),
        (&config.dedup, config.stage, config.quarantine.is_on()),
    );
    hasher.field(serde_json::to_string(&rest).unwrap_or_default().as_bytes());
    Ok(hasher.hex())
}

/// Where a shard's signatures go while rows are read.
pub(super) struct Sink<'a> {
    shard: Shard,
    signer: Signer,
    out: &'a mut dyn Write,
    hasher: digest::Hasher,
    n_rows: usize,
    n_signed: usize,
    /// What is told behind broken rows: the first row that is no row of the output.
    other_kind: Option<Error>,
}

/// Signs one share of the rows into `out/signatures.bin` and `out/shard.json`.
pub fn sign(
    config: &DataConfig,
    shard: Shard,
    out: &Path,
    n_threads: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<ShardReport> {
    config.check()?;
    let path = out.join("signatures.bin");
    std::fs::create_dir_all(out).map_err(Error::io("write", out))?;
    let mut report = ShardReport {
        format: FORMAT.into(),
        shard,
        n_rows: 0,
        n_signed: 0,
        keep: config.dedup.keep,
        settings: String::new(),
        signatures: String::new(),
    };
    atomic::write_with(&path, |file| {
        // A shard keeps a block of rows and no more, and of signatures beside a broken row nothing is left.
        let mut run = Run { most_unchecked: usize::MAX, ..Run::new(config, n_threads, cancel) };
        let (signer, hasher) = (Signer::new(&config.dedup), digest::Hasher::default());
        run.sink = Some(Sink { shard, signer, out: file, hasher, n_rows: 0, n_signed: 0, other_kind: None });
        run.read_sources(progress)?;
        if !run.is_kept {
            run.read_held_apart()?;
        }
        run.stop_at_broken_rows()?;
        run.flush()?;
        report.settings = run.settings()?;
        let Some(sink) = run.sink else { return Ok(()) };
        (report.n_rows, report.n_signed, report.signatures) = (sink.n_rows, sink.n_signed, sink.hasher.hex());
        sink.other_kind.map_or(Ok(()), Err)
    })?;
    atomic::write_json(&out.join("shard.json"), &report)?;
    Ok(report)
}

impl Run<'_> {
    /// In a shard, signs and forgets the rows read so far, once there are enough of them.
    pub(super) fn flush_when_full(&mut self) -> Result<()> {
        if self.sink.is_some() && self.items.len() >= N_BLOCK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if let (Err(error), Some(sink)) = (self.check_kinds(), &mut self.sink) {
            sink.other_kind.get_or_insert(error);
            self.items.clear();
        }
        self.take_identifiers()?;
        self.apply_rules()?;
        self.ledger.clear();
        let items = std::mem::take(&mut self.items);
        let Some(sink) = &mut self.sink else { return Ok(()) };
        let first = sink.n_rows;
        sink.n_rows += items.len();
        let own = |row: &usize| row % sink.shard.n == sink.shard.index - 1;
        let own: Vec<usize> = (first..first + items.len()).filter(own).collect();
        let signer = &sink.signer;
        let signed = parallel::map(self.n_threads, &own, |row| {
            let item = &items[row - first];
            record(*row, &item.id, &signer.sign(item))
        });
        for bytes in signed {
            sink.hasher.update(&bytes);
            sink.out.write_all(&bytes).map_err(aloe_record::Error::io("write", Path::new("signatures.bin")))?;
        }
        sink.n_signed += own.len();
        Ok(())
    }
}

/// Row, id, characters, flags, buckets; numbers are little-endian.
fn record(row: usize, id: &str, signature: &Signature) -> Vec<u8> {
    let mut bytes = (row as u64).to_le_bytes().to_vec();
    bytes.extend((id.len() as u32).to_le_bytes());
    bytes.extend(id.as_bytes());
    bytes.extend(signature.n_chars.to_le_bytes());
    let flags = u8::from(signature.exact.is_some()) | (u8::from(signature.is_dialogue) << 1);
    bytes.extend([flags, signature.buckets.len() as u8]);
    signature.exact.iter().for_each(|hash| bytes.extend(hash.to_le_bytes()));
    signature.buckets.iter().for_each(|hash| bytes.extend(hash.to_le_bytes()));
    bytes
}

struct Records<R> {
    source: R,
}

impl<R: Read> Records<R> {
    fn bytes<const N: usize>(&mut self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn next(&mut self) -> std::io::Result<(usize, String, Signature)> {
        let row = u64::from_le_bytes(self.bytes()?) as usize;
        let mut id = vec![0; u32::from_le_bytes(self.bytes()?) as usize];
        self.source.read_exact(&mut id)?;
        let n_chars = u32::from_le_bytes(self.bytes()?);
        let [flags, n_buckets] = self.bytes()?;
        let exact = (flags & 1 == 1).then(|| self.bytes().map(u128::from_le_bytes)).transpose()?;
        let buckets = (0..n_buckets).map(|_| self.bytes().map(u64::from_le_bytes)).collect::<std::io::Result<_>>()?;
        let id = String::from_utf8(id).map_err(std::io::Error::other)?;
        Ok((row, id, Signature { exact, is_dialogue: flags & 2 == 2, n_chars, buckets }))
    }
}

/// Finds the duplicates among the rows of all shards, into `out/duplicates.jsonl` and `out/dedup.json`.
pub fn merge(folders: &[PathBuf], out: &Path) -> Result<DedupReport> {
    let (reports, n_rows) = check_shards(folders)?;
    let mut ids = vec![Box::<str>::default(); n_rows];
    let mut signatures = vec![Signature::default(); n_rows];
    let mut is_there = vec![false; n_rows];
    for (folder, report) in folders.iter().zip(&reports) {
        let path = folder.join("signatures.bin");
        if digest::file(&path)? != report.signatures {
            return Err(broken(&path, "its content is not what the shard wrote; run this shard again"));
        }
        let file = File::open(&path).map_err(Error::io("read", &path))?;
        let mut records = Records { source: BufReader::new(file) };
        for _ in 0..report.n_signed {
            let (row, id, signature) = records.next().map_err(Error::io("read", &path))?;
            if row >= n_rows || std::mem::replace(&mut is_there[row], true) {
                return Err(broken(&path, format!("row {row} is not this shard's")));
            }
            (ids[row], signatures[row]) = (id.into(), signature);
        }
    }
    if let Some(row) = is_there.iter().position(|there| !there) {
        return Err(broken(&folders[0], format!("row {row} is in no shard")));
    }
    let found = dedup::cluster(signatures.into_iter().collect(), reports[0].keep);
    let count = |rule: &str| found.iter().filter(|one| one.2 == rule).count();
    let (n_exact_duplicates, n_near_duplicates) = (count("exact_duplicate"), count("near_duplicate"));
    let lines = found.iter().map(|&(dropped, kept, rule)| Line {
        dropped: ids[dropped].to_string(),
        kept: ids[kept].to_string(),
        rule: rule.to_owned(),
    });
    std::fs::create_dir_all(out).map_err(Error::io("write", out))?;
    let duplicates = super::lines(&out.join("duplicates.jsonl"), lines)?;
    let settings = reports[0].settings.clone();
    let report = DedupReport { n_rows, n_exact_duplicates, n_near_duplicates, settings, duplicates };
    atomic::write_json(&out.join("dedup.json"), &report)?;
    Ok(report)
}

/// The reports of a whole set of shards of one and the same work.
fn check_shards(folders: &[PathBuf]) -> Result<(Vec<ShardReport>, usize)> {
    let mut reports: Vec<ShardReport> = Vec::new();
    for folder in folders {
        let path = folder.join("shard.json");
        let report: ShardReport = atomic::read_json(&path)?;
        let first = reports.first().unwrap_or(&report);
        if report.format != FORMAT {
            return Err(broken(&path, format!("its format is {:?}, not {FORMAT:?}", report.format)));
        }
        if report.settings != first.settings || report.n_rows != first.n_rows || report.shard.n != first.shard.n {
            return Err(broken(&path, "it was made of other rows, settings or shards than the first"));
        }
        if reports.iter().any(|other| other.shard.index == report.shard.index) {
            return Err(broken(&path, format!("shard {} is given twice", report.shard.index)));
        }
        reports.push(report);
    }
    let n_shards = reports.first().map_or(0, |first| first.shard.n);
    match (1..=n_shards.max(1)).find(|index| reports.iter().all(|report| report.shard.index != *index)) {
        Some(missing) => Err(broken(
            folders.first().map_or(Path::new("."), PathBuf::as_path),
            format!("of {n_shards} shards, shard {missing} is missing"),
        )),
        None => {
            let n_rows = reports[0].n_rows;
            Ok((reports, n_rows))
        }
    }
}

impl Run<'_> {
    /// Refuses a merge of other settings or files before any row is read.
    pub(super) fn check_merged(&self) -> Result<()> {
        let Some(folder) = &self.config.duplicates else { return Ok(()) };
        let report: DedupReport = atomic::read_json(&folder.join("dedup.json"))?;
        let found = settings(self.config, &|_, file| Ok(digest::file(&file.path)?))?;
        if report.settings == found { Ok(()) } else { Err(broken(folder, OTHER_ROWS)) }
    }

    /// [`settings`] with the files as they were read.
    fn settings(&self) -> Result<String> {
        settings(self.config, &|source, file| {
            let read = self.report.sources[source].files.get(&file.label).cloned();
            read.ok_or_else(|| broken(&file.path, "it came while the other files were read; run this again"))
        })
    }
}

/// The duplicates that a merge found, for the rows of this run: dropped row, row that stays, rule.
pub(super) fn read_merged(folder: &Path, run: &Run<'_>) -> Result<Vec<(usize, usize, &'static str)>> {
    let report: DedupReport = atomic::read_json(&folder.join("dedup.json"))?;
    let path = folder.join("duplicates.jsonl");
    if report.n_rows != run.items.len() || report.settings != run.settings()? {
        return Err(broken(folder, OTHER_ROWS));
    }
    if digest::file(&path)? != report.duplicates {
        return Err(broken(&path, "its content is not what the merge wrote"));
    }
    let places: std::collections::HashMap<&str, usize> =
        run.items.iter().enumerate().map(|(index, item)| (item.id.as_str(), index)).collect();
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let place =
        |id: &str| places.get(id).copied().ok_or_else(|| broken(&path, format!("{id} is no row of this stage")));
    text.lines()
        .map(|line| {
            let line: Line = serde_json::from_str(line).map_err(|error| broken(&path, error.to_string()))?;
            let rule = if line.rule == "exact_duplicate" { "exact_duplicate" } else { "near_duplicate" };
            Ok((place(&line.dropped)?, place(&line.kept)?, rule))
        })
        .collect()
}
