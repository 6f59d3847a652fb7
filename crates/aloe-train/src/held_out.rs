//! Which rows are held out, for both stages, and what must not be asked without any.
//!
//! A share that takes no row out of so few, and evaluations of rows that are not there, are refused: both would do nothing in silence.

use crate::settings::LoopSettings;
use crate::{Error, Result};
use aloe_record::CounterRng;

/// Takes a share of the rows out, rounded down and drawn by `rng`, and keeps the order of both parts. Refuses a share above 0 that is none.
pub(crate) fn take_apart<T>(rows: &mut Vec<T>, share: f64, mut rng: CounterRng, unit: &str) -> Result<Vec<T>> {
    let n = of_share(rows.len(), share);
    if n == 0 && share > 0.0 && !rows.is_empty() {
        let advice = match least_share(rows.len()) {
            Some(least) => format!("set it to {least} or more, or to 0 to hold out none"),
            None => "set it to 0 to hold out none".to_owned(),
        };
        let reason = format!("held_out_share = {share} of {} {unit} is less than one; {advice}", rows.len());
        return Err(Error::Data { what: format!("held-out {unit}"), reason });
    }
    let mut order: Vec<usize> = (0..rows.len()).collect();
    rng.shuffle(&mut order);
    order.truncate(n);
    order.sort_unstable();
    let mut apart: Vec<T> = order.iter().rev().map(|&at| rows.remove(at)).collect();
    apart.reverse();
    Ok(apart)
}

fn of_share(n_rows: usize, share: f64) -> usize {
    (n_rows as f64 * share) as usize
}

/// The least share below 1 that takes a row out of `n_rows`, with a digit more than `n_rows` has.
fn least_share(n_rows: usize) -> Option<f64> {
    let scale = 10f64.powi(n_rows.to_string().len() as i32 + 1);
    let first = (scale / n_rows as f64).ceil() as u64;
    (first..=first + 1).map(|at| at as f64 / scale).find(|&share| share < 1.0 && of_share(n_rows, share) > 0)
}

/// Refuses settings that evaluate held-out rows where there are none.
pub(crate) fn refuse_none(settings: &LoopSettings, n_held_out: usize, unit: &str) -> Result<()> {
    let asked = [
        ("eval_every", settings.eval_every > 0),
        ("patience", settings.patience > 0),
        ("keep_best", settings.keep_best),
    ];
    let asked: Vec<&str> = asked.into_iter().filter(|(_, is_asked)| *is_asked).map(|(name, _)| name).collect();
    if n_held_out > 0 || asked.is_empty() {
        return Ok(());
    }
    let reason = format!(
        "there are none to evaluate for {}; set held_out_share, or hold_out in the data stage",
        asked.join(", ")
    );
    Err(Error::Data { what: format!("held-out {unit}"), reason })
}

/// A line on held-out rows of which none can be evaluated.
pub(crate) fn none_left(n_given: usize, n_kept: usize, unit: &str) -> Option<String> {
    (n_given > 0 && n_kept == 0)
        .then(|| format!("all {n_given} held-out {unit} were dropped: there are no held-out figures"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apart(n_rows: usize, share: f64) -> Result<usize> {
        let mut rows: Vec<usize> = (0..n_rows).collect();
        let found = take_apart(&mut rows, share, CounterRng::new(1, "test", 0), "rows")?;
        let is_ordered = |rows: &[usize]| rows.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(is_ordered(&rows) && is_ordered(&found) && rows.len() + found.len() == n_rows);
        Ok(found.len())
    }

    #[test]
    fn a_share_of_less_than_a_row_is_refused_with_the_least_that_takes_one() {
        assert_eq!(apart(3, 0.0).unwrap(), 0);
        assert_eq!(apart(0, 0.3).unwrap(), 0);
        assert_eq!(apart(10, 0.29).unwrap(), 2);
        let error = apart(3, 0.3).unwrap_err().to_string();
        assert!(
            error.contains("held_out_share = 0.3 of 3 rows") && error.contains("set it to 0.34 or more"),
            "{error}"
        );
        let one = apart(1, 0.9).unwrap_err().to_string();
        assert!(one.contains("set it to 0 to hold out none"), "{one}");
        for n_rows in 2..3000 {
            let least = least_share(n_rows).unwrap();
            assert_eq!(apart(n_rows, least).unwrap(), 1, "{n_rows}: {least}");
            assert!(least <= 1.2 / n_rows as f64, "{n_rows}: {least}");
        }
    }
}
