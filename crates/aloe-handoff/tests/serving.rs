//! Servers as shells, in a process of their own because they start many: what their files, logs and processes do. Whether a server is up is
//! told by a file that it writes, `PORT.up`.

#![allow(clippy::unwrap_used, reason = "a test binary")]

use aloe_engine::announced::start_of_process;
use aloe_handoff::Result;
use aloe_handoff::serving::{Launch, Servers, Serving, visible_gpus};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

struct Bench {
    dir: tempfile::TempDir,
    serving: Serving,
}

/// `replicas` servers that run `script`, with their port as `$1`, in the folder `work`.
fn bench(script: &str, replicas: u32) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("cd {} || exit; {script}", dir.path().display());
    let command = ["bash", "-c", &script, "server", "{port}", "{model}", "{name}", "{gpus}"];
    let command = command.map(str::to_owned).to_vec();
    Bench { dir, serving: Serving { command, replicas, gpus: 0, ready_s: 20 } }
}

impl Bench {
    fn launch<'a>(&'a self, folder: &'a Path, gpus: &'a [String]) -> Launch<'a> {
        Launch { serving: &self.serving, model: Path::new("/m/x y"), name: "merge", folder, job: "7", gpus }
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("servers")
    }

    fn is_up(&self, base: &str) -> bool {
        let port = base.trim_end_matches("/v1").rsplit(':').next().unwrap();
        self.dir.path().join(format!("{port}.up")).exists()
    }

    /// Starts and announces; the error where that fails.
    fn announced(&self) -> Result<Servers> {
        let (folder, gpus) = (self.folder(), visible_gpus(Some("4,5,6,7"), 0));
        let launch = self.launch(&folder, &gpus);
        let mut servers = Servers::start(&launch)?;
        let try_out = |base: &str| Ok(self.is_up(base).then(|| "m".to_owned()));
        assert!(servers.announce(&launch, "ab", &try_out, &|| true)?);
        Ok(servers)
    }

    fn files(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.folder()).unwrap().flatten().map(|entry| entry.file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }
}

const SERVES: &str = "echo up > $1.up; exec sleep 600";

fn wait_until(mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(30), "it did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn servers_announce_themselves_once_they_are_up_and_leave_neither_file_nor_process() {
    let bench = bench(&format!("echo $2 $3 $CUDA_VISIBLE_DEVICES > $1.said; {SERVES}"), 2);
    let bench = Bench { serving: Serving { gpus: 2, ..bench.serving.clone() }, ..bench };
    std::fs::create_dir_all(bench.folder()).unwrap();
    std::fs::write(bench.folder().join("9.json"), "of an earlier session").unwrap();
    let servers = bench.announced().unwrap();
    assert_eq!(bench.files(), ["1.json", "1.log", "2.json", "2.log"]);
    let announced = aloe_engine::announced::read(&bench.folder(), Some("ab"), Some("7")).unwrap();
    assert_eq!(announced.len(), 2);
    for (one, gpus) in announced.iter().zip(["4,5", "6,7"]) {
        let said = std::fs::read_to_string(bench.dir.path().join(format!("{}.said", one.port))).unwrap();
        assert_eq!(said, format!("/m/x y merge {gpus}\n"));
    }
    drop(servers);
    assert_eq!(bench.files(), ["1.log", "2.log"]);
    assert!(announced.iter().all(|one| start_of_process(one.pid).is_none()));
}

#[test]
fn a_server_that_dies_before_it_is_ready_fails_the_start_with_the_end_of_its_log_and_the_others_end_too() {
    let bench = bench(
        "if mkdir first; then for line in $(seq 30); do echo loading $line; done; echo out of memory >&2; exit 3; fi; echo $$ > other; \
         exec sleep 600",
        2,
    );
    let failed = bench.announced().err().unwrap().to_string();
    assert!(failed.contains("before it was ready") && failed.contains("exit code 3"), "{failed}");
    assert!(failed.contains("loading 30\n  out of memory") && !failed.contains("loading 20\n"), "{failed}");
    let other = std::fs::read_to_string(bench.dir.path().join("other"));
    let other = other.ok().and_then(|text| text.trim().parse().ok());
    assert!(other.is_none_or(|pid: u32| start_of_process(pid).is_none()), "the other server lives");
    assert!(bench.files().iter().all(|name| name.ends_with(".log")));
}

#[test]
fn a_server_that_is_not_ready_in_time_or_is_another_model_fails_the_start() {
    let late = bench("echo still loading; exec sleep 600", 1);
    let late = Bench { serving: Serving { ready_s: 1, ..late.serving.clone() }, ..late };
    let failed = late.announced().err().unwrap().to_string();
    assert!(failed.contains("not ready within 1 s") && failed.contains("still loading"), "{failed}");
    let other = bench(SERVES, 1);
    let folder = other.folder();
    let launch = other.launch(&folder, &[]);
    let mut servers = Servers::start(&launch).unwrap();
    let failed = servers.announce(&launch, "ab", &|_| Err("it serves n".into()), &|| true).unwrap_err().to_string();
    assert!(failed.contains("it serves n"), "{failed}");
    assert!(!servers.announce(&launch, "ab", &|_| Ok(None), &|| false).unwrap(), "told to stop");
    let short = Bench { serving: Serving { gpus: 2, replicas: 3, ..other.serving.clone() }, ..bench(SERVES, 1) };
    let failed = short.announced().err().unwrap().to_string();
    assert!(failed.contains("3 servers with 2 GPUs each need 6, this job sees 4"), "{failed}");
}

#[test]
fn a_server_that_dies_later_is_withdrawn_and_the_others_go_on() {
    let bench = bench("echo up > $1.up; while [ ! -e die-$1 ]; do sleep 0.05; done; echo broken; exit 9", 2);
    let mut servers = bench.announced().unwrap();
    assert_eq!(servers.look(), 2);
    let first = aloe_engine::announced::read(&bench.folder(), None, None).unwrap().remove(0);
    std::fs::write(bench.dir.path().join(format!("die-{}", first.port)), "").unwrap();
    wait_until(|| servers.look() == 1);
    assert_eq!(bench.files(), ["1.log", "2.json", "2.log"]);
    assert_eq!(aloe_engine::announced::read(&bench.folder(), None, None).unwrap().len(), 1);
}

#[test]
fn the_command_beside_the_servers_gives_its_exit_code_and_is_told_once_to_stop() {
    let bench = bench(SERVES, 1);
    let command = |script: &str| ["bash", "-c", script].map(str::to_owned);
    let folder = bench.folder();
    let ask = format!("ls {} | tr '\\n' ' ' > {}; exit 5", folder.display(), bench.dir.path().join("seen").display());
    assert_eq!(bench.announced().unwrap().run(&command(&ask), &[], &|| true).unwrap(), 5);
    assert_eq!(std::fs::read_to_string(bench.dir.path().join("seen")).unwrap(), "1.json 1.log ");
    assert_eq!(bench.files(), ["1.log"]);
    // Told to stop once it has set its trap; a second signal would end it with another code.
    let seen = bench.dir.path().join("trapped");
    let script = format!("trap 'sleep 0.5; exit 143' TERM; touch {}; while :; do sleep 0.05; done", seen.display());
    let goes_on = RefCell::new(0);
    let asked = || {
        *goes_on.borrow_mut() += 1;
        !seen.exists()
    };
    assert_eq!(bench.announced().unwrap().run(&command(&script), &[], &asked).unwrap(), 143);
    assert!(*goes_on.borrow() > 0);
}

#[test]
fn gpus_are_those_of_the_scheduler_or_as_many_as_were_asked_for() {
    assert_eq!(visible_gpus(Some("GPU-a, GPU-b"), 4), ["GPU-a", "GPU-b"]);
    assert_eq!(visible_gpus(None, 2), ["0", "1"]);
    assert_eq!(visible_gpus(Some(""), 1), ["0"]);
    let serving = Serving { command: vec![], replicas: 2, gpus: 2, ready_s: 1 };
    assert_eq!(serving.mistake("eval", 4), None);
    assert!(serving.mistake("eval", 2).unwrap().contains("gpus_per_node = 4"));
}
