//! The two handles that every long loop is given: how far it is, and whether to stop.

use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Set by Ctrl-C or SIGTERM; loops call [`Cancel::check`] between steps.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Cancel {
    /// Asks every holder to stop at its next check; `signal` is the number that asked (2 for SIGINT, 15 for SIGTERM).
    pub fn request(&self, signal: usize) {
        self.signal.store(signal, Ordering::SeqCst);
        self.flag.store(true, Ordering::SeqCst);
    }

    /// Whether a stop was asked for.
    pub fn is_requested(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }

    /// The signal that asked, 0 if none.
    pub fn signal(&self) -> usize {
        self.signal.load(Ordering::SeqCst)
    }

    /// [`Error::Cancelled`] once a stop was asked for.
    pub fn check(&self) -> Result<()> {
        if self.is_requested() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// A progress bar with rate and time left on a terminal, one line every 10 seconds otherwise, nothing when silent.
#[derive(Clone)]
pub struct Progress {
    bar: ProgressBar,
    plain: Option<Arc<Plain>>,
    /// The style with a second line for the message, until the first message comes.
    with_message: Arc<Mutex<Option<ProgressStyle>>>,
}

struct Plain {
    resumed: AtomicUsize,
    title: String,
    unit: &'static str,
    started: std::time::Instant,
    last_s: AtomicUsize,
}

impl Progress {
    /// A bar of `total` steps called `title`; `unit` is the plural of a step, such as `questions` or `tokens`.
    pub fn new(title: &str, total: u64, unit: &'static str) -> Self {
        use std::io::IsTerminal as _;
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(total);
            let style = |template: &str| {
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
            };
            let line = format!(
                "{{prefix:>10}} {{bar:20}} {{pos}}/{{len}} {unit} {{per_sec}} elapsed {{elapsed}} left {{eta}}"
            );
            bar.set_style(style(&line));
            bar.set_prefix(title.to_owned());
            // On its own line, since together they are wider than a terminal.
            let with_message = style(&format!("{line}\n{{prefix:>10}} {{wide_msg}}"));
            return Self { bar, plain: None, with_message: Arc::new(Mutex::new(Some(with_message))) };
        }
        let bar = ProgressBar::hidden();
        bar.set_length(total);
        let plain = Plain {
            resumed: AtomicUsize::new(0),
            title: title.to_owned(),
            unit,
            started: std::time::Instant::now(),
            last_s: AtomicUsize::new(0),
        };
        Self { bar, plain: Some(Arc::new(plain)), with_message: Arc::default() }
    }

    /// Prints nothing: for tests and inner loops.
    pub fn silent() -> Self {
        Self { bar: ProgressBar::hidden(), plain: None, with_message: Arc::default() }
    }

    /// Adds `n` finished steps.
    pub fn advance(&self, n: u64) {
        self.count(n);
        self.report();
    }

    /// Never more than the total: where that is an estimate (tokens of a part of an epoch), the bar waits at its end.
    /// Counts first, since several threads may advance at once.
    fn count(&self, n: u64) {
        self.bar.inc(n);
        if let Some(total) = self.bar.length().filter(|&total| total > 0 && self.bar.position() > total) {
            self.bar.set_position(total);
        }
    }

    /// Steps done so far, earlier sessions included, and the total.
    pub fn state(&self) -> (u64, u64) {
        (self.bar.position(), self.bar.length().unwrap_or(0))
    }

    /// Counts `n` steps that an earlier, interrupted run has finished: they are done, but tell nothing about the rate.
    pub fn resume(&self, n: u64) {
        self.count(n);
        self.bar.reset_eta();
        if let Some(plain) = &self.plain {
            plain.resumed.fetch_add(n as usize, Ordering::Relaxed);
        }
    }

    /// Adds `n` steps to the total.
    pub fn grow(&self, n: u64) {
        self.bar.inc_length(n);
    }

    /// Sets the total once it is known.
    pub fn set_total(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// A short text under the bar, such as the loss and the speed.
    pub fn message(&self, text: &str) {
        if let Some(style) = self.with_message.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.bar.set_style(style);
        }
        self.bar.set_message(text.to_owned());
        self.report();
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn report(&self) {
        let Some(plain) = &self.plain else { return };
        let elapsed_s = plain.started.elapsed().as_secs_f64();
        let last_s = plain.last_s.load(Ordering::Relaxed);
        if (elapsed_s as usize) < last_s + 10 {
            return;
        }
        plain.last_s.store(elapsed_s as usize, Ordering::Relaxed);
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let done_now = done.saturating_sub(plain.resumed.load(Ordering::Relaxed) as u64);
        let rate = done_now as f64 / elapsed_s;
        let left = if done_now == 0 {
            "time left unknown yet".to_owned()
        } else {
            format!("{:.0} s left", total.saturating_sub(done) as f64 / rate)
        };
        tell(&format!(
            "{}: {done}/{total} {} ({rate:.1}/s), {elapsed_s:.0} s elapsed, {left} {}",
            plain.title,
            plain.unit,
            self.bar.message()
        ));
    }
}

/// One line to a person on standard error. A log on a full disk must not end the work, so an error of writing is dropped.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_bar_never_passes_its_total() {
        let progress = Progress::silent();
        progress.set_total(100);
        progress.resume(90);
        progress.advance(8);
        assert_eq!(progress.state(), (98, 100));
        progress.advance(8);
        assert_eq!(progress.state(), (100, 100));
        progress.grow(20);
        progress.advance(5);
        assert_eq!(progress.state(), (105, 120));
    }

    #[test]
    fn a_bar_without_a_total_counts_on() {
        let progress = Progress::silent();
        progress.advance(7);
        assert_eq!(progress.state().0, 7);
    }
}
