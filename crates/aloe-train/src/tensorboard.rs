//! TensorBoard's event file, written by hand: TFRecords (length, masked CRC-32C of the length, data, masked CRC-32C of the data, all
//! little-endian) of protobuf messages `Event { wall_time, step, file_version | summary }` with scalar summaries.
//!
//! Formats: tensorflow/core/lib/io/record_writer.h and tensorflow/core/util/event.proto. `oracles/tensorboard_events.py` reads what is
//! written here with TensorBoard's own reader.

use crate::Result;
use aloe_record::{Error, atomic};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// An event file that grows.
pub(crate) struct EventFile {
    path: PathBuf,
    file: Option<File>,
    /// What is gathered before the file is there.
    head: Vec<u8>,
}

impl EventFile {
    /// A file for a session that began at `now_s` (seconds since 1970). Its name sorts after those of earlier sessions, so that a
    /// TensorBoard that is open turns to it.
    pub(crate) fn start(folder: &Path, now_s: f64) -> Result<Self> {
        let path = folder.join(format!("events.out.tfevents.{:010}.aloe", now_s as u64));
        let head = record(&event(now_s, 0, &field(FILE_VERSION, b"brain.Event:2")));
        Ok(Self { path, file: None, head })
    }

    /// Ends the history: the file appears whole, and those of earlier sessions, whose events it holds, go.
    pub(crate) fn replace_older(&mut self) -> Result<()> {
        atomic::write(&self.path, &self.head)?;
        self.head = Vec::new();
        let folder = self.path.parent().unwrap_or(Path::new(""));
        for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))?.flatten() {
            if entry.path() != self.path {
                std::fs::remove_file(entry.path()).map_err(Error::io("remove", &entry.path()))?;
            }
        }
        let file = OpenOptions::new().append(true).open(&self.path).map_err(Error::io("open", &self.path))?;
        self.file = Some(file);
        Ok(())
    }

    /// Adds the values of a step.
    pub(crate) fn add(&mut self, wall_s: f64, step: u64, values: &[(String, f64)]) -> Result<()> {
        let summary: Vec<u8> = values.iter().flat_map(|(tag, value)| scalar(tag, *value)).collect();
        let bytes = record(&event(wall_s, step, &field(SUMMARY, &summary)));
        match &mut self.file {
            Some(file) => Ok(file.write_all(&bytes).map_err(Error::io("write", &self.path))?),
            None => {
                self.head.extend(bytes);
                Ok(())
            }
        }
    }
}

/// The numbers of a line but its step; those of an inner object as `key/inner`.
pub(crate) fn scalars(line: &Value) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    for (key, value) in line.as_object().into_iter().flatten().filter(|(key, _)| *key != "step") {
        match value {
            Value::Number(number) => found.extend(number.as_f64().map(|number| (key.clone(), number))),
            Value::Object(inner) => {
                let numbers = inner.iter().filter_map(|(name, value)| Some((format!("{key}/{name}"), value.as_f64()?)));
                found.extend(numbers);
            }
            _ => {}
        }
    }
    found
}

/// Tags of length-delimited fields: number << 3 | 2.
const FILE_VERSION: u8 = 3 << 3 | 2;
const SUMMARY: u8 = 5 << 3 | 2;
const FIRST: u8 = 1 << 3 | 2;

fn event(wall_s: f64, step: u64, what: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1 << 3 | 1];
    bytes.extend(wall_s.to_le_bytes());
    // As all writers of proto3 do, a zero is left out.
    if step > 0 {
        bytes.push(2 << 3);
        varint(step, &mut bytes);
    }
    bytes.extend(what);
    bytes
}

/// `Summary.value` with its tag and `simple_value`, an f32.
fn scalar(tag: &str, value: f64) -> Vec<u8> {
    let mut bytes = field(FIRST, tag.as_bytes());
    bytes.push(2 << 3 | 5);
    bytes.extend((value as f32).to_le_bytes());
    field(FIRST, &bytes)
}

fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

fn varint(mut value: u64, bytes: &mut Vec<u8>) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn record(data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u64).to_le_bytes();
    [&len[..], &masked_crc(&len).to_le_bytes(), data, &masked_crc(data).to_le_bytes()].concat()
}

/// CRC-32C rotated and shifted by a constant, so that the sum of data that holds sums is none of them.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), bit by bit: a step's event is a few hundred bytes.
fn crc32c(data: &[u8]) -> u32 {
    let by_bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !data.iter().fold(!0u32, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), by_bit))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One scalar of an event file.
    pub(crate) struct Scalar {
        pub(crate) tag: String,
        pub(crate) step: u64,
        pub(crate) wall_s: f64,
        pub(crate) value: f32,
    }

    /// Reads an event file back; every checksum must hold.
    pub(crate) fn read_events(mut bytes: &[u8]) -> Vec<Scalar> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let crc = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let data = &bytes[12..12 + len];
            assert_eq!((crc(8), crc(12 + len)), (masked_crc(&bytes[..8]), masked_crc(data)));
            read_event(data, &mut found);
            bytes = &bytes[16 + len..];
        }
        found
    }

    fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
        let (head, tail) = bytes.split_at(n);
        *bytes = tail;
        head
    }

    fn take_varint(bytes: &mut &[u8]) -> u64 {
        let n = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        take(bytes, n).iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
    }

    fn read_event(mut data: &[u8], found: &mut Vec<Scalar>) {
        assert_eq!(take(&mut data, 1), [0x09]);
        let wall_s = f64::from_le_bytes(take(&mut data, 8).try_into().unwrap());
        let mut step = 0;
        if data[0] == 0x10 {
            take(&mut data, 1);
            step = take_varint(&mut data);
        }
        let kind = take(&mut data, 1)[0];
        let len = take_varint(&mut data) as usize;
        let mut summary = take(&mut data, len);
        while kind == SUMMARY && !summary.is_empty() {
            assert_eq!(take(&mut summary, 1), [FIRST]);
            let _ = take_varint(&mut summary);
            assert_eq!(take(&mut summary, 1), [FIRST]);
            let len = take_varint(&mut summary) as usize;
            let tag = String::from_utf8(take(&mut summary, len).to_vec()).unwrap();
            assert_eq!(take(&mut summary, 1), [0x15]);
            let value = f32::from_le_bytes(take(&mut summary, 4).try_into().unwrap());
            found.push(Scalar { tag, step, wall_s, value });
        }
    }

    /// RFC 3720, appendix B.4.
    #[test]
    fn crc32c_meets_the_known_answers_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    /// `tests/golden/events.out.tfevents` is written by TensorBoard's own `EventFileWriter` in `oracles/tensorboard_events.py`.
    #[test]
    fn events_have_the_bytes_that_tensorboards_own_writer_gives_them() {
        let golden = include_bytes!("../tests/golden/events.out.tfevents");
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::start(dir.path(), 1_700_000_000.25).unwrap();
        file.add(1_700_000_001.5, 1, &[("loss".into(), 2.5), ("lr".into(), 2e-5)]).unwrap();
        file.replace_older().unwrap();
        file.add(1_700_000_002.5, 300, &[("loss_by_source/a".into(), -1.25)]).unwrap();
        let written = std::fs::read(&file.path).unwrap();
        assert_eq!(written, golden);
        let values: Vec<(u64, f32)> = read_events(golden).iter().map(|event| (event.step, event.value)).collect();
        assert_eq!(values, [(1, 2.5), (1, 2e-5), (300, -1.25)]);
    }

    #[test]
    fn numbers_of_a_line_and_of_its_inner_objects_become_scalars() {
        let line = serde_json::json!({"step": 3, "loss": 1.5, "skipped": true, "by": {"a": 1, "b": "x"}, "note": "n"});
        assert_eq!(scalars(&line), [("loss".into(), 1.5), ("by/a".into(), 1.0)]);
    }
}
