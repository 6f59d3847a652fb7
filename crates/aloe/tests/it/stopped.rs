//! Trainings that end too early as a user meets it: by a signal, on a disk that fills, with a damaged checkpoint. What a message says of the next
//! try is what the next try does.

use crate::aloe;
use crate::faults::{run_limited, weights_bytes};
use crate::road::digests;
use crate::training::{Bench, some_rows};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A training that can be watched: what it tells goes into a file.
struct Watched {
    child: Child,
    told: std::path::PathBuf,
}

impl Watched {
    fn start(bench: &Bench, args: &[String]) -> Self {
        let told = bench.at("told.txt");
        let file = std::fs::File::create(&told).unwrap();
        Self { child: aloe().args(args).stdout(Stdio::null()).stderr(file).spawn().unwrap(), told }
    }

    fn told(&self) -> String {
        std::fs::read_to_string(&self.told).unwrap()
    }

    /// Waits without a fixed pause; gives up after a minute.
    fn wait_until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let started = std::time::Instant::now();
        while !holds(self) {
            assert!(self.child.try_wait().unwrap().is_none(), "{what}: it ended before: {}", self.told());
            assert!(started.elapsed().as_secs() < 60, "{what} does not come: {}", self.told());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// Sends Ctrl-C; what the last line says.
    fn interrupt(mut self) -> String {
        assert!(Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap().success());
        assert_eq!(self.child.wait().unwrap().code(), Some(130), "{}", self.told());
        self.told().lines().last().unwrap_or_default().to_owned()
    }
}

fn n_lines(path: &Path) -> usize {
    std::fs::read(path).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count()
}

/// The step that an interruption's last line names.
fn step_of(said: &str) -> u64 {
    let step = said.strip_prefix("interrupted; the same command goes on after step ");
    step.and_then(|step| step.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_damaged_checkpoint_is_told_at_once_and_the_checkpoints_after_it_are_gone_on_from() {
    let Some(bench) = Bench::new(&some_rows()) else { return };
    let settings = ["max_steps=500", "checkpoint_every=0", "keep_last=1"];
    let args = bench.args("sft", &settings);
    let (metrics, state) = (bench.at(".sft.partial/metrics.jsonl"), bench.at(".sft.partial/state"));
    let mut first = Watched::start(&bench, &args);
    first.wait_until("step 150", |_| n_lines(&metrics) >= 150);
    let damaged = step_of(&first.interrupt());
    let weights = state.join(format!("step-{damaged:010}/weights.f32"));
    let mut bytes = std::fs::read(&weights).unwrap();
    bytes[4099] ^= 16;
    std::fs::write(&weights, bytes).unwrap();

    let mut second = Watched::start(&bench, &args);
    let told = "weights.f32: fails its checksum; there is no other one: the training starts over";
    second.wait_until("the note", |run| run.told().contains(told));
    second.wait_until("step 3", |_| (3..150).contains(&n_lines(&metrics)));
    let step = step_of(&second.interrupt());
    assert!(step >= 3 && step < damaged, "{step} {damaged}");
    assert_eq!(names(&state), [format!("step-{step:010}")]);

    let (stdout, stderr, code) = bench.sft("sft", &settings);
    assert_eq!(code, 0, "{stderr}");
    assert!(!stderr.contains("checkpoint not used"), "{stderr}");
    let results: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(results["sft"]["resumed_from_step"].as_u64(), Some(step));
}

#[test]
fn a_model_that_the_disk_does_not_take_costs_no_step_and_the_message_says_so() {
    let Some(bench) = Bench::new(&some_rows()) else { return };
    let array = weights_bytes(&bench.model);
    let limited = |out: &str, blocks: u64| {
        let args = bench.args(out, &[]);
        run_limited(blocks, &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    // An array fits, and the same with its header does not.
    let (code, stderr) = limited("a/sft", array / 512 + 4);
    assert_eq!(code, 4, "{stderr}");
    let last = stderr.lines().last().unwrap();
    let expected = format!("{} was not written; the same command goes on after step 6: ", bench.at("a/sft").display());
    assert!(last.contains(&expected) && last.contains("File too large"), "{stderr}");
    let left = names(&bench.at("a/.sft.partial"));
    assert!(!left.iter().any(|name| name.contains("model") || name.contains("master")), "{left:?}");
    for out in ["a/sft", "b/sft"] {
        let (stdout, stderr, code) = bench.sft(out, &[]);
        assert_eq!(code, 0, "{stderr}");
        let results: Value = serde_json::from_str(&stdout).unwrap();
        let resumed_from = if out == "a/sft" { 6 } else { 0 };
        assert_eq!(results["sft"]["resumed_from_step"].as_u64(), Some(resumed_from));
    }
    assert_eq!(digests(&bench.at("a")), digests(&bench.at("b")));
    // Neither fits: no work is left, nor anything that fills the disk.
    let (code, stderr) = limited("c/sft", array / 1024);
    assert_eq!(code, 4, "{stderr}");
    assert!(stderr.contains("note: no checkpoint of step 6 was made before the model is written: "), "{stderr}");
    assert!(stderr.lines().last().unwrap().contains("; the same command starts this stage over: "), "{stderr}");
    let left = names(&bench.at("c/.sft.partial"));
    assert!(!left.iter().any(|name| name.contains("model") || name.contains("master")), "{left:?}");
    assert_eq!(names(&bench.at("c/.sft.partial/state")), [""; 0]);
}

/// 260,032 weights: the model takes 1.6 MB, its checkpoint 3.1 MB more.
#[test]
fn a_disk_with_room_for_the_model_alone_gets_the_model() {
    let Some(bench) = Bench::new(&some_rows()) else { return };
    let disk = bench.at("disk");
    std::fs::create_dir(&disk).unwrap();
    let script = "mount -t tmpfs -o size=3500k none \"$1\" || exit 99; shift; \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script, "sh", disk.to_str().unwrap()])
        .arg(env!("CARGO_BIN_EXE_aloe"))
        .args(bench.args("disk/sft", &[]))
        .output();
    let is_refused = |stderr: &[u8], code| matches!(code, Some(99 | 1)) && stderr.starts_with(b"unshare");
    let Some(output) = output.ok().filter(|output| !is_refused(&output.stderr, output.status.code())) else {
        assert!(
            std::env::var("ALOE_REQUIRE").is_err(),
            "no disk can be mounted here: unshare needs root or user namespaces"
        );
        println!("not run: no disk can be mounted here");
        return;
    };
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("which is room for the model alone"), "{stderr}");
}

fn dpo_args(bench: &Bench, settings: &[&str]) -> Vec<String> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut args =
        vec!["dpo".into(), "--model".into(), text(&bench.model), "--data".into(), text(&bench.at("pairs.jsonl"))];
    args.extend(["--out".into(), text(&bench.at("dpo")), "--dtype".into(), "f32".into(), "--json".into()]);
    for setting in ["chat_template=alpaca"].iter().chain(settings) {
        args.extend(["--set".to_owned(), (*setting).to_owned()]);
    }
    args
}

/// Pairs of about 200 tokens: a pass over the reference takes some twenty of them at once.
fn write_pairs(bench: &Bench, n: usize) {
    let message = |role: &str, content: String| serde_json::json!([{"role": role, "content": content}]);
    let pair = |at: usize| {
        let prompt = message("user", format!("Tell me of {at}. {}", "Once there was a little girl. ".repeat(8)));
        let chosen = message("assistant", format!("It is one more than {}.", at - 1));
        let rejected = message("assistant", format!("No idea about {at}."));
        format!("{}\n", serde_json::json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}))
    };
    std::fs::write(bench.at("pairs.jsonl"), (1..=n).map(pair).collect::<String>()).unwrap();
}

#[test]
fn a_reference_that_was_interrupted_is_gone_on_with_and_serves_another_learning_rate_too() {
    let Some(bench) = Bench::new("") else { return };
    write_pairs(&bench, 600);
    let log = bench.at(".dpo.partial/state/reference.log");
    let n_pairs = |said: &str| {
        let n = said.strip_prefix("interrupted; the same command goes on from the reference of ");
        n.and_then(|n| n.strip_suffix(" pairs")).unwrap_or_else(|| panic!("{said}")).parse::<usize>().unwrap()
    };
    let mut first = Watched::start(&bench, &dpo_args(&bench, &["lr=1e-6"]));
    first.wait_until("the reference", |_| n_lines(&log) > 30);
    let first = n_pairs(&first.interrupt());
    let begun = std::fs::read(&log).unwrap();
    assert_eq!(n_lines(&log), first + 1);

    let mut second = Watched::start(&bench, &dpo_args(&bench, &["lr=2e-6"]));
    second.wait_until("more of the reference", |_| n_lines(&log) > first + 1);
    assert!(second.told().contains("starting over, with those of its reference log-probabilities that fit"));
    let second = n_pairs(&second.interrupt());
    assert!(second > first && std::fs::read(&log).unwrap().starts_with(&begun), "{second} {first}");

    // Other pairs: the log says so itself, and is computed anew.
    write_pairs(&bench, 20);
    let (stdout, stderr, code) =
        crate::run(&dpo_args(&bench, &["lr=2e-6"]).iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("reference log-probabilities of another model or data, recomputed"), "{stderr}");
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["dpo"]["n_pairs"], 20);
}

#[test]
fn an_interruption_while_a_later_chunks_reference_is_computed_keeps_the_steps_before_it() {
    let Some(bench) = Bench::new("") else { return };
    write_pairs(&bench, 160);
    let settings = ["batch_size=20", "chunks=2", "reference=chunk_start", "max_len=512"];
    let mut run = Watched::start(&bench, &dpo_args(&bench, &settings));
    let log = bench.at(".dpo.partial/state/reference-chunk-1.log");
    run.wait_until("the second chunk's reference", |_| log.exists());
    assert_eq!(step_of(&run.interrupt()), 4);
    assert_eq!(n_lines(&bench.at(".dpo.partial/metrics.jsonl")), 4);
}
