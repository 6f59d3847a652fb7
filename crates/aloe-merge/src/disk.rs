//! Free disk space, asked before work begins. Where it is not known, nothing is refused.

use crate::plan::{MergeOptions, MergePlan};
use crate::{Error, Result};
use aloe_record::{atomic, disk};
use std::path::Path;

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
    match disk::free_bytes(out) {
        Some(free) if free < needed => Err(Error::Disk { path: atomic::target(out), needed, free }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_any_disk_holds_is_refused_and_nothing_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("not/yet/there");
        check(&out, 0).unwrap();
        if disk::free_bytes(dir.path()).is_some() {
            let error = check(&atomic::sibling(&out), u64::MAX).unwrap_err().to_string();
            assert!(error.contains("needs 18446744073.7 GB") && error.contains("free"), "{error}");
            assert!(error.contains("not/yet/there has") && !error.contains(".partial"), "{error}");
        }
    }
}
