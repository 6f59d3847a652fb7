//! Rows of a Parquet file, one row group after the other.
//!
//! A file without a footer, and one packed in a way that is not known, is refused whole: no row of it can be told.
//! A row that cannot be decoded is a broken row with its number. The library cannot step over it, so the rows behind it in its row
//! group are broken too, each named with its own number; the next row group is read again.

use super::Each;
use crate::{Error, Result, RowError};
use ::parquet::basic::Compression;
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use aloe_task::rows::{Row, parquet_reason, parquet_row};
use std::fs::File;
use std::path::Path;

pub(super) fn read(path: &Path, each: Each<'_>) -> Result<()> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let reader = match SerializedFileReader::new(file) {
        Ok(reader) => reader,
        Err(error) => return Err(unreadable(path, format!("not Parquet: {}", parquet_reason(&error)))),
    };
    if let Some(codec) = unknown_codec(&reader) {
        let reason =
            format!("its columns are packed with {codec}, which is not read; write it with zstd, snappy or gzip");
        return Err(unreadable(path, reason));
    }
    let mut first = 1;
    for index in 0..reader.num_row_groups() {
        let n_rows = usize::try_from(reader.metadata().row_group(index).num_rows()).unwrap_or(0);
        read_group(&reader, index, first..first + n_rows, path, each)?;
        first += n_rows;
    }
    Ok(())
}

fn unreadable(path: &Path, reason: String) -> Error {
    Error::Unreadable { path: path.to_path_buf(), reason }
}

/// The first codec of a column that the library has not.
fn unknown_codec(reader: &SerializedFileReader<File>) -> Option<Compression> {
    let groups = reader.metadata().row_groups().iter();
    let mut codecs = groups.flat_map(|group| group.columns().iter().map(|column| column.compression()));
    codecs.find(|codec| *codec == Compression::LZO)
}

fn broken(at: String, error: &ParquetError) -> RowError {
    RowError::new(at, format!("not Parquet: {}", parquet_reason(error)))
}

/// Row group `index`, whose rows have these 1-based numbers.
fn read_group(
    reader: &SerializedFileReader<File>,
    index: usize,
    mut numbers: std::ops::Range<usize>,
    path: &Path,
    each: Each<'_>,
) -> Result<()> {
    let at = |number: usize| format!("{}#{number}", path.display());
    let first_error = match reader.get_row_group(index) {
        Ok(group) => match group.get_row_iter(None) {
            Ok(rows) => {
                let mut failed = None;
                for (row, number) in rows.zip(&mut numbers) {
                    match row {
                        Ok(row) => each(Ok(Row { columns: parquet_row(&row), at: at(number) }))?,
                        Err(error) => {
                            failed = Some((number, error));
                            break;
                        }
                    }
                }
                failed
            }
            Err(error) => numbers.next().map(|number| (number, error)),
        },
        Err(error) => numbers.next().map(|number| (number, error)),
    };
    let Some((number, error)) = first_error else { return Ok(()) };
    each(Err(broken(at(number), &error)))?;
    for behind in numbers {
        let reason = format!("not read: row {number} before it in its row group is broken");
        each(Err(RowError::new(at(behind), reason)))?;
    }
    Ok(())
}
