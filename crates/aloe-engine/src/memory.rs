//! How much memory this process may still take: the machine's, or its control group's when that is less.

use std::path::Path;

/// What is assumed where nothing can be read.
const FALLBACK_BYTES: u64 = 8 << 30;

/// A quarter of the memory that is free now.
pub(crate) fn default_kv_budget_bytes() -> usize {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_bytes(&text));
    let group = group_bytes(Path::new("/sys/fs/cgroup"));
    let free = match (machine, group) {
        (Some(machine), Some(group)) => machine.min(group),
        (one, other) => one.or(other).unwrap_or(FALLBACK_BYTES),
    };
    (free / 4) as usize
}

/// `MemAvailable` of /proc/meminfo, given in KiB.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the control group (version 2) leaves; `None` without a limit.
fn group_bytes(folder: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_read_from_the_machine_and_the_control_group() {
        assert_eq!(available_bytes("MemTotal:  100 kB\nMemAvailable:    42 kB\n"), Some(43_008));
        assert_eq!(available_bytes("MemTotal: 100 kB\n"), None);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(group_bytes(folder.path()), None);
        std::fs::write(folder.path().join("memory.current"), "300\n").unwrap();
        std::fs::write(folder.path().join("memory.max"), "1000\n").unwrap();
        assert_eq!(group_bytes(folder.path()), Some(700));
        std::fs::write(folder.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(group_bytes(folder.path()), None);
    }
}
