//! Durations as Slurm writes and reads them: `[DAYS-]HOURS:MINUTES:SECONDS`.

/// Seconds of `[D-]HH:MM:SS`, of the shorter `MM:SS` and `D-HH`, as `man sbatch` lists them under `--time`. `UNLIMITED` and everything
/// else is `None`.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (Some(number(days)?), rest),
        None => (None, text),
    };
    let parts: Vec<u64> = rest.split(':').map(number).collect::<Option<_>>()?;
    let seconds = match (days, parts.as_slice()) {
        (Some(_), [hours]) => hours * 3600,
        (Some(_), [hours, minutes]) => hours * 3600 + minutes * 60,
        (_, [hours, minutes, seconds]) => hours * 3600 + minutes * 60 + seconds,
        (None, [minutes, seconds]) => minutes * 60 + seconds,
        _ => return None,
    };
    Some(days.unwrap_or(0) * 86_400 + seconds)
}

/// The longest form, which every version reads.
pub(crate) fn show(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    format!("{days}-{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.len() <= 6 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The forms that `man sbatch` lists under `--time`.
    #[test]
    fn durations_are_read_as_slurm_reads_them() {
        let cases = [("30:15", 1815), ("1:30:15", 5415), ("2-1", 176_400), ("2-1:30", 178_200), ("2-1:30:15", 178_215)];
        for (text, seconds) in cases {
            assert_eq!(parse(text), Some(seconds), "{text}");
            assert_eq!(parse(&show(seconds)), Some(seconds), "{text}");
        }
        for text in ["UNLIMITED", "", "soon", "1:2:3:4", "-1:00:00", "1.5:00"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(show(129_600), "1-12:00:00");
    }
}
