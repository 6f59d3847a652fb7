//! The guard of a server; what servers do together is in `tests/serving.rs`.

use super::*;

fn wait_until(mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(30), "it did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The server passes SIGTERM over, as one that hangs does, and has a child of its own.
#[test]
fn when_the_owner_is_gone_the_guard_ends_the_whole_group_even_of_a_server_that_ignores_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let script =
        format!("cd {}; trap '' TERM; sleep 600 & echo $! > child; echo $$ > server; wait", dir.path().display());
    let command = ["bash", "-c", &script].map(str::to_owned);
    let mut guarded = Guarded::start(&command, &[], None).unwrap();
    let pid = |name: &str| std::fs::read_to_string(dir.path().join(name)).ok()?.trim().parse::<u32>().ok();
    wait_until(|| pid("server").is_some());
    let (server, child) = (pid("server").unwrap(), pid("child").unwrap());
    assert!(start_of_process(server).is_some() && start_of_process(child).is_some());
    // What the kernel does when this process ends.
    drop(guarded.child.stdin.take());
    wait_until(|| start_of_process(server).is_none() && start_of_process(child).is_none());
    wait_until(|| guarded.ended().is_some());
}
