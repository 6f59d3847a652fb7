//! An append-only log of JSON lines that survives a kill at any byte: samples, journals and answer caches use it.
//!
//! Each line is `CRC32 SPACE JSON NEWLINE` (the checksum as 8 hexadecimal digits over the JSON bytes). Opening takes a
//! lock, drops an unfinished last line, and refuses a damaged line anywhere else.

use crate::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What is wrong with a line that is whole and not as it was written.
pub const DAMAGED: &str = "fails its checksum; the file was damaged after writing";

/// An open log, locked for this process.
pub struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Opens or creates the log at `path`, locks it and returns its entries in order.
    pub fn open<T: DeserializeOwned>(path: &Path) -> Result<(Self, Vec<T>)> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io("open", path))?;
        lock(&file, path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        let (entries, valid_len) = parse(&bytes, path)?;
        file.set_len(valid_len as u64).map_err(Error::io("truncate", path))?;
        file.seek(SeekFrom::End(0)).map_err(Error::io("seek", path))?;
        Ok((Self { file, path: path.to_path_buf() }, entries))
    }

    /// Appends one entry in a single write.
    pub fn append<T: Serialize>(&mut self, entry: &T) -> Result<()> {
        let json = serde_json::to_string(entry)
            .map_err(|error| Error::Json { path: self.path.clone(), reason: error.to_string() })?;
        let line = format!("{:08x} {json}\n", crc32(json.as_bytes()));
        self.file.write_all(line.as_bytes()).map_err(Error::io("write", &self.path))
    }

    /// Drops all entries.
    pub fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(Error::io("truncate", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(Error::io("seek", &self.path))?;
        Ok(())
    }

    /// Forces what was appended to the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("sync", &self.path))
    }
}

/// The entries of a log that another process may be writing: takes no lock, changes nothing, leaves out an unfinished last line.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    Ok(parse(&bytes, path)?.0)
}

fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Error::Log {
            path: path.to_path_buf(),
            reason: "another process is writing this log; wait for it or choose another output folder".into(),
        }),
        Err(TryLockError::Error(source)) => Err(Error::io("lock", path)(source)),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<(Vec<T>, usize)> {
    let mut entries = Vec::new();
    let mut start = 0;
    while let Some(len) = bytes[start..].iter().position(|&byte| byte == b'\n') {
        let line = &bytes[start..start + len];
        let found = entry(line).ok_or_else(|| Error::Log {
            path: path.to_path_buf(),
            reason: format!("line {} {DAMAGED}", entries.len() + 1),
        })?;
        entries.push(found);
        start += len + 1;
    }
    Ok((entries, start))
}

/// The entry on a line, without its line break, of a log that a caller reads by the line; `None` for a damaged one ([`DAMAGED`]).
pub fn entry<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    serde_json::from_slice(whole(line)?.1).ok()
}

/// Checksum and JSON of a line (without its line break) whose checksum is right, and written as this module writes it: a digit in
/// upper case is a flipped bit too.
pub(crate) fn whole(line: &[u8]) -> Option<(u32, &[u8])> {
    let (sum, json) = line.split_at_checked(9)?;
    let crc = crc32(json);
    (sum == format!("{crc:08x} ").as_bytes()).then_some((crc, json))
}

/// CRC-32 (IEEE 802.3, reflected, polynomial 0xEDB88320), bit by bit over a small table.
pub fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !bytes.iter().fold(!0u32, |crc, &byte| TABLE[((crc ^ u32::from(byte)) & 0xFF) as usize] ^ (crc >> 8))
}

const fn table() -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { 0xEDB8_8320 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_meets_the_check_value_of_the_standard() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn a_checksum_is_read_as_it_is_written_alone() {
        // Four of the eight digits are letters: cbf43926 by the standard's check value.
        assert_eq!(whole(b"cbf43926 123456789"), Some((0xCBF4_3926, &b"123456789"[..])));
        for line in ["CBF43926 123456789", "cbF43926 123456789", "+bf43926 123456789", "cbf43926\t123456789", "cbf4392"]
        {
            assert_eq!(whole(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn a_log_cut_at_any_byte_reopens_with_the_entries_that_were_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let (mut log, _) = Log::open::<u32>(&path).unwrap();
        for entry in 0..5u32 {
            log.append(&entry).unwrap();
        }
        drop(log);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (_log, entries) = Log::open::<u32>(&path).unwrap();
            let complete = whole[..cut].iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(entries, (0..complete as u32).collect::<Vec<_>>(), "cut at {cut}");
        }
    }

    #[test]
    fn a_log_that_is_being_written_can_be_read_beside_its_writer_up_to_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let (mut log, _) = Log::open::<u32>(&path).unwrap();
        log.append(&7u32).unwrap();
        let mut cut = std::fs::read(&path).unwrap();
        log.append(&8u32).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), [7, 8], "the writer still holds its lock");
        cut.extend(b"01234567 9");
        std::fs::write(&path, &cut).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), [7]);
        assert_eq!(std::fs::read(&path).unwrap(), cut, "nothing was cut off");
    }

    #[test]
    fn a_flipped_bit_in_a_complete_line_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let (mut log, _) = Log::open::<u32>(&path).unwrap();
        log.append(&7u32).unwrap();
        log.append(&8u32).unwrap();
        drop(log);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[9] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(Log::open::<u32>(&path).is_err());
    }
}
