//! How much memory this process may still take: the machine's, or its control group's when that is less.

use std::path::Path;

/// What is assumed where nothing can be read.
const FALLBACK_BYTES: u64 = 8 << 30;

/// The files of a control group: its limit, its usage, and which lines of `memory.stat` count the file cache in the usage and the
/// shared memory in that cache. The cache of files makes room when asked, shared memory does not.
struct GroupFiles {
    limit: &'static str,
    usage: &'static str,
    cache: &'static str,
    shared: &'static str,
}

const VERSION_1: GroupFiles = GroupFiles {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: "total_cache",
    shared: "total_shmem",
};

const VERSION_2: GroupFiles =
    GroupFiles { limit: "memory.max", usage: "memory.current", cache: "file", shared: "shmem" };

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

/// The least of what this process's group and the groups around it leave. `own` is /proc/self/cgroup: a line `0::/a/b` in version 2,
/// `4:memory:/a/b` (perhaps with other controllers beside) in version 1.
fn least_group_bytes(root: &Path, own: &str) -> Option<u64> {
    let under = |root: &Path, path: &str, files: &GroupFiles| {
        let innermost = root.join(path.trim_start_matches('/'));
        innermost.ancestors().take_while(|folder| folder.starts_with(root)).filter_map(|f| group_bytes(f, files)).min()
    };
    let path_1 = own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == "memory").then_some(path)
    });
    let path_2 = own.lines().find_map(|line| line.strip_prefix("0::"));
    let version_1 = under(&root.join("memory"), path_1.unwrap_or(""), &VERSION_1);
    let version_2 = under(root, path_2.unwrap_or(""), &VERSION_2);
    version_1.into_iter().chain(version_2).min()
}

/// What a control group leaves, the cache of files counted as free; `None` without a limit.
fn group_bytes(folder: &Path, files: &GroupFiles) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let stat = read("memory.stat").unwrap_or_default();
    let counted = |key: &str| {
        let value = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let cache = counted(files.cache).saturating_sub(counted(files.shared));
    Some(number(files.limit)?.saturating_sub(number(files.usage)?.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_read_from_the_machine_and_the_control_group() {
        assert_eq!(available_bytes("MemTotal:  100 kB\nMemAvailable:    42 kB\n"), Some(43_008));
        assert_eq!(available_bytes("MemTotal: 100 kB\n"), None);
        let folder = tempfile::tempdir().unwrap();
        let left = |folder: &Path| group_bytes(folder, &VERSION_2);
        assert_eq!(left(folder.path()), None);
        std::fs::write(folder.path().join("memory.current"), "300\n").unwrap();
        std::fs::write(folder.path().join("memory.max"), "1000\n").unwrap();
        assert_eq!(left(folder.path()), Some(700));
        std::fs::write(folder.path().join("memory.stat"), "anon 50\nfile 240\nfile_mapped 7\nshmem 40\n").unwrap();
        assert_eq!(left(folder.path()), Some(900), "200 bytes of cached files make room");
        std::fs::write(folder.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(left(folder.path()), None);
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
    #[test]
    fn the_first_version_of_control_groups_is_read_too() {
        let root = tempfile::tempdir().unwrap();
        let job = root.path().join("memory/slurm/job_7");
        std::fs::create_dir_all(&job).unwrap();
        std::fs::write(job.join("memory.limit_in_bytes"), "1000\n").unwrap();
        std::fs::write(job.join("memory.usage_in_bytes"), "700\n").unwrap();
        std::fs::write(job.join("memory.stat"), "cache 1\ntotal_cache 500\ntotal_shmem 100\n").unwrap();
        let own = "9:cpu,cpuacct:/other\n4:hugetlb,memory:/slurm/job_7\n0::/\n";
        assert_eq!(least_group_bytes(root.path(), own), Some(700));
        assert_eq!(least_group_bytes(root.path(), "4:cpu:/slurm/job_7\n0::/\n"), None);
    }
}
