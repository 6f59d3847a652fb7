//! What a person watches while a stage trains: the line behind the progress bar, `timing.jsonl` and TensorBoard's events.
//!
//! Both files hold clock times, so they stand apart from `metrics.jsonl`, whose bytes every run of the same settings repeats, and folder
//! digests leave them out. A resumed run writes each step once: `timing.jsonl` loses the steps after the checkpoint, and the
//! events are written anew from it and the checkpoint's metrics.

use crate::Result;
use crate::metrics::Metrics;
use crate::tensorboard::{EventFile, scalars};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// What one step took.
pub(crate) struct Speed {
    /// Seconds, evaluations and checkpoints not counted.
    pub(crate) step_s: f64,
    /// Tokens passed forward.
    pub(crate) n_tokens: u64,
    /// Floating point operations of its products.
    pub(crate) flops: f64,
}

/// The open files.
pub(crate) struct Sight {
    timing: Metrics,
    events: EventFile,
    peak_flops: Option<f64>,
    held_out: String,
}

impl Sight {
    /// Goes on after `step`, whose run has noted `metrics` so far.
    pub(crate) fn open(out: &Path, metrics: &[u8], step: u64, peak_flops: Option<f64>) -> Result<Self> {
        let path = out.join("timing.jsonl");
        let earlier = std::fs::read(&path).unwrap_or_default();
        let kept = lines_up_to(&earlier, step);
        let timing =
            Metrics::start(&path, kept.iter().flat_map(|(line, _)| [*line, b"\n"]).flatten().copied().collect())?;
        let now = unix_s();
        let mut events = EventFile::start(&out.join("tensorboard"), now)?;
        let times: BTreeMap<u64, &Value> = kept.iter().map(|(_, value)| (step_of(value), value)).collect();
        for line in metrics.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok()) {
            let time = times.get(&step_of(&line));
            let wall_s = time.and_then(|time| time["unix_s"].as_f64()).unwrap_or(now);
            let mut values = scalars(&line);
            // An evaluation's line of the same step has no speed of its own.
            if let (Some(time), true) = (time, line.get("lr").is_some()) {
                values.extend(scalars(&without_clock(time)));
            }
            events.add(wall_s, step_of(&line), &values)?;
        }
        events.replace_older()?;
        Ok(Self { timing, events, peak_flops, held_out: String::new() })
    }

    /// Notes a step; gives the words behind the progress bar.
    pub(crate) fn stepped(&mut self, line: &Value, speed: &Speed) -> Result<String> {
        let tokens_per_s = speed.n_tokens as f64 / speed.step_s;
        let mut time =
            json!({"step": line["step"], "unix_s": unix_s(), "step_s": speed.step_s, "tokens_per_s": tokens_per_s});
        let share = self.peak_flops.map(|peak| speed.flops / speed.step_s / peak);
        if let Some(share) = share {
            time["share_of_limit"] = json!(share);
        }
        self.timing.append(&time)?;
        let values = [scalars(line), scalars(&without_clock(&time))].concat();
        self.events.add(unix_s(), step_of(line), &values)?;
        Ok(live(line, tokens_per_s, share) + &self.held_out)
    }

    /// Notes an evaluation.
    pub(crate) fn evaluated(&mut self, line: &Value) -> Result<()> {
        let first = line.as_object().and_then(|fields| fields.iter().find(|(name, _)| name.starts_with("held_out")));
        if let Some((name, value)) = first.and_then(|(name, value)| Some((name, value.as_f64()?))) {
            self.held_out = format!(", {} {value:.4}", name.replace('_', " "));
        }
        self.events.add(unix_s(), step_of(line), &scalars(line))
    }
}

/// `loss 1.2345, lr 2.00e-5, 812 tokens/s, 61 % of the limit`.
fn live(line: &Value, tokens_per_s: f64, share: Option<f64>) -> String {
    let (loss, lr) = (line["loss"].as_f64().unwrap_or(f64::NAN), line["lr"].as_f64().unwrap_or(f64::NAN));
    let share = share.map_or_else(String::new, |share| format!(", {:.0} % of the limit", 100.0 * share));
    format!("loss {loss:.4}, lr {lr:.2e}, {tokens_per_s:.0} tokens/s{share}")
}

/// Seconds since 1970.
fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

fn step_of(line: &Value) -> u64 {
    line["step"].as_u64().unwrap_or(0)
}

/// A timing line's numbers but the time of day, which an event has anyway.
fn without_clock(time: &Value) -> Value {
    let mut time = time.clone();
    if let Some(fields) = time.as_object_mut() {
        fields.remove("unix_s");
    }
    time
}

/// The whole lines of steps up to `step`. What a kill cut off or a later session will write again is left out.
fn lines_up_to(text: &[u8], step: u64) -> Vec<(&[u8], Value)> {
    let lines = text.split(|&byte| byte == b'\n');
    let read = |line| Some((line, serde_json::from_slice::<Value>(line).ok()?));
    lines.filter_map(read).filter(|(_, value)| (1..=step).contains(&step_of(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensorboard::tests::read_events;

    fn step(sight: &mut Sight, step: u64) {
        let line = json!({"step": step, "loss": 2.0, "lr": 0.5, "by_source": {"a": 1.0}});
        sight.stepped(&line, &Speed { step_s: 0.5, n_tokens: 100, flops: 3.0e9 }).unwrap();
    }

    fn metrics(steps: std::ops::RangeInclusive<u64>) -> Vec<u8> {
        steps.flat_map(|step| format!("{}\n", json!({"step": step, "loss": 2.0, "lr": 0.5})).into_bytes()).collect()
    }

    #[test]
    fn the_line_behind_the_bar_says_loss_rate_speed_and_share_of_the_limit() {
        let line = json!({"loss": 1.23456, "lr": 2e-5});
        assert_eq!(live(&line, 812.4, Some(0.614)), "loss 1.2346, lr 2.00e-5, 812 tokens/s, 61 % of the limit");
        assert_eq!(live(&line, 812.4, None), "loss 1.2346, lr 2.00e-5, 812 tokens/s");
    }

    #[test]
    fn a_resumed_run_holds_every_step_once_in_timing_and_events() {
        let dir = tempfile::tempdir().unwrap();
        let mut sight = Sight::open(dir.path(), b"", 0, Some(1e10)).unwrap();
        (1..=7).for_each(|at| step(&mut sight, at));
        drop(sight);
        // A kill cuts the last line; the checkpoint is of step 4.
        let path = dir.path().join("timing.jsonl");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        let mut sight = Sight::open(dir.path(), &metrics(1..=4), 4, Some(1e10)).unwrap();
        (5..=6).for_each(|at| step(&mut sight, at));
        let times: Vec<Value> =
            std::fs::read_to_string(&path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(times.iter().map(step_of).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        assert_eq!((times[5]["tokens_per_s"].as_f64(), times[5]["share_of_limit"].as_f64()), (Some(200.0), Some(0.6)));
        let files: Vec<_> = std::fs::read_dir(dir.path().join("tensorboard")).unwrap().flatten().collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let events = read_events(&std::fs::read(files[0].path()).unwrap());
        let of = |tag: &str| events.iter().filter(|event| event.tag == tag).map(|event| event.step).collect::<Vec<_>>();
        for tag in ["loss", "lr", "tokens_per_s", "share_of_limit"] {
            assert_eq!(of(tag), [1, 2, 3, 4, 5, 6], "{tag}");
        }
        assert_eq!(of("by_source/a"), [5, 6]);
        assert!(events.windows(2).all(|pair| pair[0].wall_s <= pair[1].wall_s));
    }
}
