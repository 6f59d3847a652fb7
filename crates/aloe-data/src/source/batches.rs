//! A file's rows on several threads: lines are parsed, and rows made into something else, a batch at a time. What is made is taken in
//! file order, so that the number of threads changes nothing.
//!
//! Only lines of JSON are parsed in parallel; other formats are read row by row and made into something else in parallel. While a batch is
//! made on the other threads this one reads the next; then it helps.

use super::{Found, Source, dispatch, parse_line};
use crate::{Error, Result, RowError};
use aloe_task::rows::Row;
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};

/// A batch is made when it has so many bytes of lines or so many rows: enough that starting threads is cheap, few enough that the memory
/// of a file that is only checked stays that of some rows.
const MAX_BYTES: usize = 4 << 20;
const MAX_ROWS: usize = 8192;
/// Rows of a batch that a thread takes at a time.
const N_PART: usize = 64;
/// Rows of a file that are looked at for its layout.
const MOST_SHOWN: usize = 64;

/// A row that waits.
enum Waiting {
    Row(Result<Row, RowError>),
    /// Number and end of a line in the batch's bytes; it begins where the one before ends.
    Line(usize, std::ops::Range<usize>),
}

impl Waiting {
    fn row(self, path: &Path, bytes: &[u8]) -> Result<Row, RowError> {
        match self {
            Waiting::Row(row) => row,
            Waiting::Line(line, place) => parse_line(path, line, &bytes[place]),
        }
    }
}

/// Rows with their numbers in the file, from 0.
type Part = Vec<(usize, Waiting)>;

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Of rows that came parsed, about.
    n_bytes_of_rows: usize,
    n_rows: usize,
    parts: Vec<Part>,
}

/// Bytes that a row's columns take, about.
pub(crate) fn n_bytes(columns: &Map<String, Value>) -> usize {
    columns.values().map(size).sum()
}

/// Bytes of a value's texts, and some for each value.
fn size(value: &Value) -> usize {
    let of_parts = match value {
        Value::String(text) => text.len(),
        Value::Array(parts) => parts.iter().map(size).sum(),
        Value::Object(parts) => parts.values().map(size).sum(),
        _ => 0,
    };
    of_parts + 32
}

impl Batch {
    fn add(&mut self, number: usize, found: Found<'_>) {
        let waiting = match found {
            Found::Row(row) => {
                self.n_bytes_of_rows += row.as_ref().map_or(0, |row| n_bytes(&row.columns));
                Waiting::Row(row)
            }
            Found::Line(line, bytes) => {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(bytes);
                Waiting::Line(line, start..self.bytes.len())
            }
        };
        self.n_rows += 1;
        match self.parts.last_mut().filter(|part| part.len() < N_PART) {
            Some(part) => part.push((number, waiting)),
            None => {
                let mut part = Vec::with_capacity(N_PART);
                part.push((number, waiting));
                self.parts.push(part);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.bytes.len() + self.n_bytes_of_rows >= MAX_BYTES || self.n_rows >= MAX_ROWS
    }

    /// Parses up to the first row whose layout is known and shows it, so that a row that lacks a column is a broken row wherever it
    /// stands. Gives whether there was one; where the layout of none is known, what is wrong with the first.
    fn show_first(&mut self, path: &Path, first: &mut dyn FnMut(&Row) -> Result<()>) -> Result<bool> {
        let (mut unknown, mut n_shown) = (None, 0);
        for (_, waiting) in self.parts.iter_mut().flatten() {
            if let Waiting::Line(line, place) = waiting {
                *waiting = Waiting::Row(parse_line(path, *line, &self.bytes[place.clone()]));
            }
            let Waiting::Row(Ok(row)) = waiting else { continue };
            match first(row) {
                Ok(()) => return Ok(true),
                Err(error @ Error::UnknownDialect { .. }) => unknown = unknown.or(Some(error)),
                Err(error) => return Err(error),
            }
            n_shown += 1;
            if n_shown == MOST_SHOWN {
                break;
            }
        }
        unknown.map_or(Ok(false), Err)
    }
}

/// Makes something of a row, whose number in the file is given, from 0.
pub(crate) type Make<'a, T> = &'a (dyn Fn(usize, Result<Row, RowError>) -> T + Sync);

/// A batch that is being made: each thread takes the next part that nobody has.
struct Work<'a, T> {
    path: &'a Path,
    make: Make<'a, T>,
    bytes: Vec<u8>,
    left: Mutex<std::iter::Enumerate<std::vec::IntoIter<Part>>>,
    made: Mutex<Vec<(usize, Vec<T>)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Work<'_, T> {
    fn help(&self) {
        loop {
            let Some((number, part)) = lock(&self.left).next() else { return };
            let make = |(row, waiting): (usize, Waiting)| (self.make)(row, waiting.row(self.path, &self.bytes));
            let made = part.into_iter().map(make).collect();
            lock(&self.made).push((number, made));
        }
    }
}

/// A batch at work and the threads that are at it.
struct AtWork<'scope, 'a, T> {
    work: Arc<Work<'a, T>>,
    helpers: Vec<ScopedJoinHandle<'scope, ()>>,
}

impl<'scope, 'a: 'scope, T: Send + 'scope> AtWork<'scope, 'a, T> {
    fn start<'env>(scope: &'scope Scope<'scope, 'env>, n_threads: usize, work: Work<'a, T>) -> Self {
        let work = Arc::new(work);
        let helper = |_| {
            let work = Arc::clone(&work);
            scope.spawn(move || work.help())
        };
        AtWork { helpers: (1..n_threads).map(helper).collect(), work }
    }

    /// What was made, in file order.
    fn finish(self) -> impl Iterator<Item = T> {
        self.work.help();
        for helper in self.helpers {
            helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        let mut made = std::mem::take(&mut *lock(&self.work.made));
        made.sort_unstable_by_key(|(number, _)| *number);
        made.into_iter().flat_map(|(_, made)| made)
    }
}

/// Reads a file on `n_threads` threads. `first` sees the first row that can be read before any row is made, and where its layout is not known
/// those behind it, up to one whose is; `take` gets what is made, in file order. Gives the number of rows, broken ones included.
pub(crate) fn read_on<T: Send>(
    opened: &Source,
    n_threads: usize,
    first: &mut dyn FnMut(&Row) -> Result<()>,
    make: Make<'_, T>,
    take: &mut dyn FnMut(T) -> Result<()>,
) -> Result<usize> {
    let path = opened.path();
    let (mut n_rows, mut is_shown) = (0, false);
    thread::scope(|scope| {
        let (mut batch, mut at_work) = (Batch::default(), None::<AtWork<'_, '_, T>>);
        let mut flush = |batch: &mut Batch| -> Result<()> {
            if !is_shown {
                is_shown = batch.show_first(path, first)?;
            }
            let Batch { bytes, parts, .. } = std::mem::take(batch);
            batch.bytes.reserve(bytes.len());
            // The threads that made the batch before have nothing left to do.
            let before = at_work.take().map(AtWork::finish);
            let (left, made) = (Mutex::new(parts.into_iter().enumerate()), Mutex::default());
            at_work = Some(AtWork::start(scope, n_threads, Work { path, make, bytes, left, made }));
            before.into_iter().flatten().try_for_each(&mut *take)
        };
        dispatch(opened, &mut |found| {
            batch.add(n_rows, found);
            n_rows += 1;
            if batch.is_full() { flush(&mut batch) } else { Ok(()) }
        })?;
        flush(&mut batch)?;
        at_work.take().map(AtWork::finish).into_iter().flatten().try_for_each(&mut *take)
    })?;
    if n_rows == 0 { Err(Error::EmptyFile { path: path.to_path_buf() }) } else { Ok(n_rows) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Rows as `read` gives them, one after the other, are the oracle; the file has several batches, broken lines in the first and the
    /// last of them, blank lines and one that is too long.
    #[test]
    fn rows_on_any_number_of_threads_are_those_of_one_reader_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let mut text = String::from("\u{feff}{\"broken\n\n");
        for number in 0..20_000 {
            text.push_str(&format!("{{\"n\": {number}, \"text\": \"{}\"}}\n", "word ".repeat(number % 90)));
        }
        text.push_str(&format!("{{\"long\": \"{}\"}}\n\r\n[]\n{{\"last\": 1}}", "x".repeat(1 << 20)));
        std::fs::write(&path, text).unwrap();
        let mut expected = Vec::new();
        let n_rows = crate::source::read(&path, &mut |row| {
            expected.push(format!("{} {row:?}", expected.len()));
            Ok(())
        });
        for n_threads in [1, 2, 3] {
            let (mut found, shown, n_made) = (Vec::new(), AtomicUsize::new(0), AtomicUsize::new(0));
            let n_found = read_on(
                &Source::open(&path).unwrap(),
                n_threads,
                &mut |row| {
                    assert_eq!((row.columns["n"].as_u64(), n_made.load(Ordering::SeqCst)), (Some(0), 0));
                    shown.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                },
                &|number, row| {
                    n_made.fetch_add(1, Ordering::SeqCst);
                    format!("{number} {row:?}")
                },
                &mut |made| {
                    found.push(made);
                    Ok(())
                },
            );
            assert_eq!((n_found.unwrap(), shown.into_inner()), (20_004, 1));
            assert!(found == expected, "{n_threads} threads");
        }
        assert_eq!(n_rows.unwrap(), 20_004);
    }

    #[test]
    fn what_stops_the_reading_of_a_file_stops_it_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.csv");
        std::fs::write(&path, "a,b\n".to_owned() + &"1,2\n".repeat(3 * MAX_ROWS)).unwrap();
        let stop = || Error::EmptyFile { path: "stop".into() };
        let mut n_taken = 0;
        let taken = read_on(&Source::open(&path).unwrap(), 2, &mut |_| Ok(()), &|_, row| row.is_ok(), &mut |is_ok| {
            n_taken += usize::from(is_ok);
            if n_taken == 5 { Err(stop()) } else { Ok(()) }
        });
        assert!(taken.is_err() && n_taken == 5);
        let shown = read_on(
            &Source::open(&path).unwrap(),
            2,
            &mut |_| Err(stop()),
            &|_, _| unreachable!("nothing is made"),
            &mut |()| Ok(()),
        );
        assert!(shown.is_err());
    }
}
