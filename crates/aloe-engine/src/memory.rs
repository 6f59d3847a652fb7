//! How much memory this process may still take: the machine's, or its control group's when that is less.

use std::path::Path;

/// What is assumed where nothing can be read.
const FALLBACK_BYTES: u64 = 8 << 30;

/// A quarter of the memory that is free now.
pub(crate) fn default_kv_budget_bytes() -> usize {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_bytes(&text));
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = least_group_bytes(Path::new("/sys/fs/cgroup"), &own);
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

/// The least of what this process's group and the groups around it leave. `own` is /proc/self/cgroup: a line `0::/a/b` in version 2.
fn least_group_bytes(root: &Path, own: &str) -> Option<u64> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
    let innermost = root.join(path);
    innermost.ancestors().take_while(|folder| folder.starts_with(root)).filter_map(group_bytes).min()
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

    #[test]
    fn a_group_around_the_own_one_limits_it_too() {
        let root = tempfile::tempdir().unwrap();
        let (job, step) = (root.path().join("job"), root.path().join("job/step"));
        std::fs::create_dir_all(&step).unwrap();
        let limit = |folder: &Path, max: &str| {
            std::fs::write(folder.join("memory.max"), max).unwrap();
            std::fs::write(folder.join("memory.current"), "100").unwrap();
        };
        limit(&step, "max");
        limit(&job, "1000");
        let own = "12:memory:/x\n0::/job/step\n";
        assert_eq!(least_group_bytes(root.path(), own), Some(900));
        limit(&step, "500");
        assert_eq!(least_group_bytes(root.path(), own), Some(400));
        assert_eq!(least_group_bytes(root.path(), ""), None);
    }
}
