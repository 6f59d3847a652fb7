//! What an index gives is what its file gives, whatever happened to either; and a file that did not change is not parsed again.

use super::*;
use aloe_report::pack_rows;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

/// A log and its index, read as they are and without the index.
struct Case {
    dir: tempfile::TempDir,
    lines: Lines<Row, Row>,
}

/// A row: its number and its text, which is light without.
type Row = (usize, String);

/// Lines parsed by the only test that counts them.
static N_PARSED: AtomicUsize = AtomicUsize::new(0);

fn parse(line: &[u8]) -> Result<Option<Row>, String> {
    let row: Row = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    // Some lines of a log are no rows.
    Ok((row.0 % 7 != 3).then_some(row))
}

fn counted(line: &[u8]) -> Result<Option<Row>, String> {
    N_PARSED.fetch_add(1, Ordering::Relaxed);
    parse(line)
}

fn pack(rows: &[Row]) -> Vec<u8> {
    pack_rows(rows)
}

fn light(row: Row) -> Row {
    (row.0, String::new())
}

/// Lines `from..to`; every hundredth is long, so that segments end by bytes too.
fn lines(from: usize, to: usize) -> Vec<u8> {
    let text = |at: usize| "x".repeat(if at % 100 == 99 { 400_000 } else { at % 13 });
    (from..to).flat_map(|at| format!("[{at},\"{}\"]\n", text(at)).into_bytes()).collect()
}

impl Case {
    fn new(is_growing: bool, parse: fn(&[u8]) -> Result<Option<Row>, String>) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), lines: Lines { parse, pack, light, is_growing } }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn index(&self) -> PathBuf {
        self.dir.path().join("index")
    }

    fn read(&self, index: &Path) -> Result<Rows<Row>> {
        let mut kept = Index::open(index);
        let found = kept.rows(&self.log(), "log", &self.lines)?;
        kept.write(index)?;
        Ok(found)
    }

    /// Reads with the index, which is then that of a file read at once, and compares with what such a reading gives.
    fn check(&self, what: &str) -> Vec<Row> {
        let found = self.read(&self.index()).unwrap();
        let afresh_at = self.dir.path().join("afresh");
        let afresh = self.read(&afresh_at).unwrap();
        assert_eq!(found.rows, afresh.rows, "{what}");
        assert!(found.texts == afresh.texts, "{what}: texts");
        assert_eq!(found.texts.n_rows(), found.rows.len(), "{what}");
        assert!(std::fs::read(self.index()).unwrap() == std::fs::read(&afresh_at).unwrap(), "{what}: index");
        std::fs::remove_file(afresh_at).unwrap();
        found.rows
    }

    fn put(&self, bytes: &[u8]) {
        std::fs::write(self.log(), bytes).unwrap();
    }
}

#[test]
fn a_log_that_grew_was_cut_or_was_changed_reads_as_without_an_index() {
    let case = Case::new(true, parse);
    let whole = lines(0, 1000);
    let n_rows = |bytes: &[u8]| {
        let n_lines = bytes.iter().filter(|&&byte| byte == b'\n').count();
        (0..n_lines).filter(|at| at % 7 != 3).count()
    };
    let lens = [0, 1, 40, whole.len() / 3, whole.len() / 2, whole.len() / 2 + 7, whole.len() - 1, whole.len()];
    for (at, &len) in lens.iter().chain(lens.iter().rev()).chain(&[lens[4], lens[7], lens[3], lens[6]]).enumerate() {
        case.put(&whole[..len]);
        assert_eq!(case.check(&format!("length {at}: {len}")).len(), n_rows(&whole[..len]));
    }
    case.put(&whole);
    case.check("whole");
    // The same length and other bytes, in each segment: a number's digit, whose row it then is.
    for line in [1usize, 400, 700, 998] {
        let mut changed = whole.clone();
        let at = whole.split_inclusive(|&byte| byte == b'\n').take(line).map(<[u8]>::len).sum::<usize>() + 1;
        changed[at] = if changed[at] == b'9' { b'8' } else { changed[at] + 1 };
        case.put(&changed);
        assert_ne!(case.check(&format!("changed line {line}")).get(..5), None);
        case.put(&whole);
        case.check("changed back");
    }
    let mut later = lines(1000, 1100);
    later.extend_from_slice(&whole);
    case.put(&later);
    assert_eq!(case.check("other lines before")[0].0, 1000);
}

#[test]
fn a_last_line_without_its_break_is_a_row_of_a_finished_file_and_goes_on_when_the_file_does() {
    let case = Case::new(false, parse);
    // Three hundred lines are a full segment.
    for n in [5, 300] {
        let whole = lines(0, n);
        let (cut, after) = (whole.len() - 1, lines(n, n + 2));
        case.put(&whole[..cut]);
        let n_before = case.check("without its break").len();
        case.put(&[&whole[..], &after].concat());
        assert!(case.check("and on").len() > n_before, "{n}");
    }
    case.put(&lines(0, 3)[..9]);
    let error = case.read(&case.index()).err().unwrap().to_string();
    assert!(error.contains("line 2: "), "{error}");
}

#[test]
fn a_damaged_index_counts_as_none() {
    let case = Case::new(true, parse);
    case.put(&lines(0, 350));
    let expected = case.check("whole");
    let index = std::fs::read(case.index()).unwrap();
    let header = index.iter().position(|&byte| byte == b'\n').unwrap();
    let places = (0..header + 200).step_by(23).chain((header..index.len()).step_by(index.len() / 40));
    for at in places {
        let mut damaged = index.clone();
        damaged[at] ^= 4;
        std::fs::write(case.index(), &damaged).unwrap();
        assert_eq!(case.read(&case.index()).unwrap().rows, expected, "byte {at}");
        std::fs::write(case.index(), &damaged[..at]).unwrap();
        assert_eq!(case.read(&case.index()).unwrap().rows, expected, "cut at {at}");
    }
    let other = String::from_utf8_lossy(&index[65..header]).replace(FORMAT, "aloe view 0, 0.0.1");
    let other = format!("{} {other}", digest::bytes(other.as_bytes()));
    std::fs::write(case.index(), [other.as_bytes(), &index[header..]].concat()).unwrap();
    assert_eq!(case.check("of another program"), expected);
}

/// Segments end at 512 lines, or with a line that brings them to a mebibyte; of what is left unchanged the last, open one alone is parsed
/// again when the file goes on.
#[test]
fn what_did_not_change_is_not_parsed_again() {
    let case = Case::new(true, counted);
    let parsed = |what: &str| {
        N_PARSED.store(0, Ordering::Relaxed);
        case.read(&case.index()).unwrap();
        (N_PARSED.load(Ordering::Relaxed), what.to_owned())
    };
    case.put(&lines(0, 60));
    assert_eq!(parsed("new"), (60, "new".to_owned()));
    assert_eq!(parsed("as it was"), (0, "as it was".to_owned()));
    // The lines 99, 199 and 299 are long: the first segment ends with the third of them.
    case.put(&lines(0, 350));
    assert_eq!(parsed("grown"), (350, "grown".to_owned()));
    case.put(&lines(0, 360));
    assert_eq!(parsed("grown by ten"), (60, "grown by ten".to_owned()));
    let stamp = case.index().metadata().unwrap().modified().unwrap();
    assert_eq!(parsed("as it was"), (0, "as it was".to_owned()));
    assert_eq!(case.index().metadata().unwrap().modified().unwrap(), stamp, "nothing to write");
    case.put(&lines(0, 300));
    assert_eq!(parsed("cut at a segment"), (0, "cut at a segment".to_owned()));
    case.put(&lines(0, 299));
    assert_eq!(parsed("cut within it"), (299, "cut within it".to_owned()));
}
