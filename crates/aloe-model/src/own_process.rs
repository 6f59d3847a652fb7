//! Runs a test in a process of its own, where the peak of its memory is not that of its neighbours.

/// The variable that tells the child which test it is to run.
const CHILD: &str = "ALOE_MODEL_TEST_CHILD";

/// Runs `body` in a child that runs the test `name` alone, and fails when that fails.
pub(crate) fn within_memory_of_its_own(name: &str, body: impl FnOnce()) {
    if std::env::var(CHILD).is_ok_and(|found| found == name) {
        return body();
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CHILD, name)
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && stdout.contains("1 passed"), "{}: {stdout}{stderr}", child.status);
    println!("{stdout}");
}

/// Starts the peak of touched memory anew.
pub(crate) fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// Peaks of this process so far: of its address space (what was asked for, touched or not) and of its touched memory.
pub(crate) fn peaks_bytes() -> [u64; 2] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    ["VmPeak:", "VmHWM:"].map(|name| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    })
}
