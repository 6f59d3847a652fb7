//! Recognises pickles by content, under any name, so that they are refused with the reason. Nothing is ever unpickled.

use crate::{Error, Result};
use std::path::Path;

/// Refuses `bytes`, the content of `path`, if it is a Python pickle or a PyTorch zip archive.
pub(crate) fn refuse(path: &Path, bytes: &[u8]) -> Result<()> {
    match kind(bytes) {
        Some(kind) => Err(Error::Pickle { path: path.to_path_buf(), kind }),
        None => Ok(()),
    }
}

/// What kind of pickle `bytes` is, if any. A safetensors file may begin with 0x80 too (its header length), but has `{` at 8.
fn kind(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        return Some("a PyTorch archive (a zip file of pickles, or another zip)");
    }
    if bytes.first() == Some(&0x80)
        && bytes.get(1).is_some_and(|protocol| *protocol <= 5)
        && bytes.get(8) != Some(&b'{')
    {
        return Some("a Python pickle");
    }
    // Protocols 0 and 1 have no marker: an opcode that builds an object, and the final STOP.
    let text_opcode = matches!(bytes.first(), Some(b'(' | b'c' | b'}' | b']'));
    if text_opcode && bytes.ends_with(b".") && bytes.get(8) != Some(&b'{') {
        return Some("a Python pickle of protocol 0");
    }
    // The tar archives of PyTorch before 0.1.10.
    if bytes.get(257..262) == Some(b"ustar") {
        return Some("a tar archive, the oldest PyTorch format");
    }
    None
}

/// The weight files in `dir` that are pickles; for the message when no safetensors file is there.
pub(crate) fn refuse_any_in(dir: &Path) -> Result<()> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("list", dir))?;
    let mut paths: Vec<_> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_file()).collect();
    paths.sort();
    for path in paths {
        let mut head = [0u8; 512];
        let n_read = std::fs::File::open(&path)
            .and_then(|mut file| std::io::Read::read(&mut file, &mut head))
            .map_err(Error::io("read", &path))?;
        refuse(&path, &head[..n_read])?;
    }
    Ok(())
}
