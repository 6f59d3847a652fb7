//! The files beside a model's weights: in its folder, or as an earlier document of the same file will leave them. First thing the
//! tokenizer's code reads; never writes.

use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;

/// Where they are.
#[derive(Clone, Debug)]
pub(crate) enum Beside {
    /// On disk.
    Folder(PathBuf),
    /// Not written yet: names and contents.
    Planned(Arc<Vec<(String, Vec<u8>)>>),
}

impl Beside {
    /// A file's content; none where there is no such file.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                match path.is_file() {
                    true => std::fs::read(&path).map(Some).map_err(Error::io("read", &path)),
                    false => Ok(None),
                }
            }
            Self::Planned(files) => {
                Ok(files.iter().find(|(known, _)| known == name).map(|(_, content)| content.clone()))
            }
        }
    }

    /// A JSON file, parsed.
    pub(crate) fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(content) = self.read(name)? else { return Ok(None) };
        let path = match self {
            Self::Folder(folder) => folder.join(name),
            Self::Planned(_) => name.into(),
        };
        match serde_json::from_slice(&content) {
            Ok(parsed) => Ok(Some(parsed)),
            Err(error) => Err(Error::Record(aloe_record::Error::Json { path, reason: error.to_string() })),
        }
    }

    /// Bytes of a file; 0 where there is none.
    pub(crate) fn size_bytes(&self, name: &str) -> u64 {
        match self {
            Self::Folder(folder) => folder.join(name).metadata().map_or(0, |found| found.len()),
            Self::Planned(files) => {
                files.iter().find(|(known, _)| known == name).map_or(0, |(_, content)| content.len() as u64)
            }
        }
    }
}
