//! What each step of a stage took: wall time, processor time and the peak of memory at its end, for `record.json`.
//!
//! Times are no part of the manifest, whose bytes the settings and files decide alone.

use serde::Serialize;
use std::time::Instant;

/// One step of the spine, in its order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// `reading`, `questions`, `cleaning`, `duplicates`, `overlaps`, `models`, `mixing`, `rendering`, `writing`.
    pub name: &'static str,
    /// Wall time.
    pub elapsed_s: f64,
    /// Processor time of all threads, in the system's steps of 10 ms; `None` where the system does not tell.
    pub processor_s: Option<f64>,
    /// Peak resident memory of the process from its start to the step's end; 0 where the system does not tell.
    pub peak_rss_bytes: u64,
}

/// Measures steps that follow one another.
pub(crate) struct Steps {
    started: Instant,
    processor_s: Option<f64>,
    done: Vec<Step>,
}

impl Steps {
    pub(crate) fn start() -> Steps {
        Steps { started: Instant::now(), processor_s: processor_s(), done: Vec::new() }
    }

    /// What was done since the step before, or the start, is the step `name`.
    pub(crate) fn end(&mut self, name: &'static str) {
        let (now, processor) = (Instant::now(), processor_s());
        self.done.push(Step {
            name,
            elapsed_s: now.duration_since(self.started).as_secs_f64(),
            processor_s: processor.zip(self.processor_s).map(|(after, before)| after - before),
            peak_rss_bytes: aloe_record::peak_rss_bytes(),
        });
        (self.started, self.processor_s) = (now, processor);
    }

    pub(crate) fn finish(self) -> Vec<Step> {
        self.done
    }
}

/// User and system time of this process so far: fields 14 and 15 of `/proc/self/stat`, in hundredths (`USER_HZ`, fixed by the kernel's
/// interface). The second field, the program's name, may hold blanks and ends with the last `)`.
fn processor_s() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_its_own_wall_and_processor_time_and_the_peak_of_memory_so_far() {
        let mut steps = Steps::start();
        let started = Instant::now();
        let mut sum = 0u64;
        while started.elapsed().as_secs_f64() < 0.4 || processor_s().unwrap() < 0.1 {
            sum = std::hint::black_box(sum.wrapping_mul(3) + 1);
        }
        steps.end("computes");
        let (waits, wakes) = std::sync::mpsc::channel::<()>();
        let _ = wakes.recv_timeout(std::time::Duration::from_millis(300));
        drop(waits);
        steps.end("waits");
        let done = steps.finish();
        assert_eq!(done.iter().map(|step| step.name).collect::<Vec<_>>(), ["computes", "waits"]);
        assert!(done[0].elapsed_s >= 0.4 && done[1].elapsed_s >= 0.3, "{done:?}");
        assert!(done[0].processor_s.unwrap() >= 0.1, "{done:?}");
        assert!(done[0].peak_rss_bytes > 0 && done[1].peak_rss_bytes >= done[0].peak_rss_bytes, "{done:?}");
    }
}
