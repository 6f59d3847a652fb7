//! Free disk space, asked before work begins. The standard library has no call for it; POSIX `df -Pk` answers on every system we run on, and
//! where it does not, nothing is refused.

use crate::plan::{MergeOptions, MergePlan};
use crate::{Error, Result};
use aloe_record::atomic;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Card, report, figures and configuration of a result, beside what grows with it.
const PAGES: u64 = 256 << 10;
/// What `merge.json` and the card say of a tensor, per model, and of its place in a file's header and the index.
const PER_TENSOR: u64 = 512;

impl MergePlan {
    /// Bytes that will stand on the disk together, those of earlier documents among them: weights, the files beside them, and an allowance
    /// for the card, the report and `merge.json`.
    pub fn disk_bytes(&self, options: &MergeOptions) -> u64 {
        let earlier: u64 = self.earlier.iter().map(|plan| plan.model_bytes() + plan.beside_bytes()).sum();
        let (masters, copies) = if options.write_master { (4 * self.n_parameters(), 2) } else { (0, 1) };
        earlier + self.model_bytes() + masters + copies * self.beside_bytes()
    }

    fn beside_bytes(&self) -> u64 {
        let files: u64 = self.files.iter().map(|(_, content)| content.len() as u64).sum();
        files + PAGES + PER_TENSOR * (1 + self.models.len() as u64) * self.tensors.len() as u64
    }

    /// Refuses a result, with those of earlier documents, that does not fit on the disk of `out`.
    pub fn check_disk(&self, out: &Path, options: &MergeOptions) -> Result<()> {
        check(out, self.disk_bytes(options))
    }
}

/// Refuses to start where `needed` bytes will not fit under `out`.
pub(crate) fn check(out: &Path, needed: u64) -> Result<()> {
    let path = existing(out);
    match free_bytes(&path) {
        Some(free) if free < needed => Err(Error::Disk { path: atomic::target(out), needed, free }),
        _ => Ok(()),
    }
}

/// The folder itself or the nearest one above that exists.
fn existing(out: &Path) -> PathBuf {
    let found = out.ancestors().find(|path| path.is_dir());
    found.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf()
}

fn free_bytes(path: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(path).env("LC_ALL", "C").output().ok()?;
    available(&String::from_utf8(output.stdout).ok()?)
}

/// The fourth column of the last line, in kilobytes.
fn available(table: &str) -> Option<u64> {
    let columns: Vec<&str> = table.lines().last()?.split_whitespace().collect();
    columns.get(3)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_posix_table_is_read() {
        let table = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda1 102400 2400 100000 3% /\n";
        assert_eq!(available(table), Some(102_400_000));
        assert_eq!(available(""), None);
        assert_eq!(available("df: no such file\n"), None);
    }

    #[test]
    fn more_than_any_disk_holds_is_refused_and_nothing_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("not/yet/there");
        check(&out, 0).unwrap();
        if free_bytes(dir.path()).is_some() {
            let error = check(&atomic::sibling(&out), u64::MAX).unwrap_err().to_string();
            assert!(error.contains("needs 18446744073.7 GB") && error.contains("free"), "{error}");
            assert!(error.contains("not/yet/there has") && !error.contains(".partial"), "{error}");
        }
    }
}
