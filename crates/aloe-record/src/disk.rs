//! Free disk space. The standard library has no call for it; POSIX `df -Pk` answers on every system we run on, and where it does not, nothing
//! is known.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes that may still be written under `path`, which need not exist yet.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(existing(path)).env("LC_ALL", "C").output().ok()?;
    available(&String::from_utf8(output.stdout).ok()?)
}

/// The folder itself or the nearest one above that exists.
fn existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|path| path.is_dir());
    found.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf()
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
}
