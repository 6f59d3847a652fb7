//! The tar file of a bundle: regular files in the order of their names behind the three that describe them, nothing in a header but name,
//! size and mode. A file whose bytes change while it is packed is an error.

use super::{BUNDLE, Bundle, CLUSTER, Item, Packed, README, SUMS};
use crate::{Error, Result};
use aloe_record::atomic;
use aloe_record::digest::{self, Hasher};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use tar::{Builder, EntryType, Header};

/// Writes the file, whole or not at all.
pub(super) fn tar(bundle: &Bundle, mut items: Vec<Item>, cluster: &str, readme: &str, out: &Path) -> Result<Packed> {
    items.sort_by(|one, other| one.path.cmp(&other.path));
    let mut described = serde_json::to_string_pretty(bundle)
        .map_err(|error| aloe_record::Error::Json { path: BUNDLE.into(), reason: error.to_string() })?;
    described.push('\n');
    let mut sums: Vec<(String, &str)> = items.iter().map(|item| (item.sha256.clone(), item.path.as_str())).collect();
    sums.push((digest::bytes(described.as_bytes()), BUNDLE));
    sums.push((digest::bytes(readme.as_bytes()), README));
    sums.sort_by_key(|(_, path)| *path);
    let sums: String = sums.iter().map(|(digest, path)| format!("{digest}  {path}\n")).collect();
    let n_files = items.len() + 4;
    let mut written = None;
    atomic::write_with(out, |file| -> Result<()> {
        let mut builder = Builder::new(Hashing { file, hasher: Hasher::default(), n_bytes: 0 });
        let texts = [(README, readme), (SUMS, &sums), (BUNDLE, &described), (CLUSTER, cluster)];
        for (path, text) in texts {
            append(&mut builder, &bundle.name, path, text.len() as u64, &mut text.as_bytes(), out)?;
        }
        for item in &items {
            let source = File::open(&item.from).map_err(aloe_record::Error::io("open", &item.from))?;
            let mut source = Hashed { source, hasher: Hasher::default() };
            append(&mut builder, &bundle.name, &item.path, item.n_bytes, &mut source, out)?;
            if source.hasher.hex() != item.sha256 {
                let reason = "changed while it was packed; nothing was written".to_owned();
                return Err(Error::Folder { path: item.from.clone(), reason });
            }
        }
        let Hashing { hasher, n_bytes, .. } = builder.into_inner().map_err(aloe_record::Error::io("write", out))?;
        written = Some((n_bytes, hasher.hex()));
        Ok(())
    })?;
    let (n_bytes, sha256) = written.unwrap_or_default();
    Ok(Packed { name: bundle.name.clone(), n_files, n_bytes, sha256, left_out: bundle.left_out.clone() })
}

fn append(
    builder: &mut Builder<Hashing<'_>>,
    top: &str,
    path: &str,
    n_bytes: u64,
    source: &mut dyn Read,
    out: &Path,
) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_size(n_bytes);
    header.set_mode(if path == "bin/aloe" { 0o755 } else { 0o644 });
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    let written = builder.append_data(&mut header, format!("{top}/{path}"), source.take(n_bytes));
    Ok(written.map_err(aloe_record::Error::io("write", out))?)
}

/// What goes into the file, counted and hashed.
struct Hashing<'a> {
    file: &'a mut BufWriter<File>,
    hasher: Hasher,
    n_bytes: u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n_written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n_written]);
        self.n_bytes += n_written as u64;
        Ok(n_written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// What is read from a packed file.
struct Hashed {
    source: File,
    hasher: Hasher,
}

impl Read for Hashed {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let n_read = self.source.read(bytes)?;
        self.hasher.update(&bytes[..n_read]);
        Ok(n_read)
    }
}
