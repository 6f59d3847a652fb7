//! prompt_engine's retry rule, for comparison with it: samples that name no option are asked again, hotter and longer each time
//! (`utils/model.py`, `medprompt/execute.py`). The score is then that of the best of several tries, and the results say so.

use super::TaskRun;
use super::generate::{self, Asked, Voted, Votes};
use crate::Result;
use aloe_engine::{GenerateRequest, Sampling};
use aloe_record::Progress;

/// Passes over questions under evaluation, the first one included.
pub(crate) const TEST_PASSES: usize = 10;
/// Passes over the questions of an example pool.
pub(crate) const POOL_PASSES: usize = 3;

/// How pass `pass` samples, from 0: the temperature raised by 0.05 for each, to 1 at most, and 100 tokens more for each.
fn sampling_of(first: &Sampling, pass: usize) -> Sampling {
    let temperature = (first.temperature + 0.05 * pass as f32).min(1.0);
    Sampling { temperature, max_new_tokens: first.max_new_tokens + 100 * pass, ..first.clone() }
}

/// As [`generate::collect`], with up to `n_passes` in all for each sample.
pub(crate) fn collect(
    run: &TaskRun,
    asked: &[Asked],
    n_passes: usize,
    take: &mut dyn FnMut(usize, Voted) -> Result<()>,
) -> Result<()> {
    let mut found: Vec<Option<Voted>> = asked.iter().map(|_| None).collect();
    generate::collect(run, asked, &mut |at, voted| {
        // What is read at once is handed on at once, so that an interruption does not cost it.
        if unread(at, Some(&voted)).is_empty() {
            return take(at, voted);
        }
        found[at] = Some(voted);
        Ok(())
    })?;
    for pass in 1..n_passes {
        let missing: Vec<(usize, usize)> = (0..found.len()).flat_map(|at| unread(at, found[at].as_ref())).collect();
        if missing.is_empty() {
            break;
        }
        ask_again(run, asked, &missing, pass, &mut found)?;
        for (at, one) in found.iter_mut().enumerate() {
            if let Some(voted) = one.take_if(|voted| unread(at, Some(voted)).is_empty()) {
                take(at, voted)?;
            }
        }
    }
    found.into_iter().enumerate().try_for_each(|(at, voted)| voted.map_or(Ok(()), |voted| take(at, voted)))
}

/// Question and sample of what named no option.
fn unread(at: usize, voted: Option<&Voted>) -> Vec<(usize, usize)> {
    let Some(Ok((votes, _))) = voted else { return Vec::new() };
    votes.iter().enumerate().filter(|(_, vote)| vote.answer.is_none()).map(|(sample, _)| (at, sample)).collect()
}

fn ask_again(
    run: &TaskRun,
    asked: &[Asked],
    missing: &[(usize, usize)],
    pass: usize,
    found: &mut [Option<Voted>],
) -> Result<()> {
    let request = |&(at, sample): &(usize, usize)| {
        let one = &asked[at];
        let first = &one.requests[sample.min(one.requests.len() - 1)];
        let id = format!("{}/{sample}/retry{pass}", first.id);
        GenerateRequest { id, prompt: first.prompt.clone(), n: 1, sampling: sampling_of(&first.sampling, pass) }
    };
    let requests: Vec<GenerateRequest> = missing.iter().map(request).collect();
    super::handed(
        |take| run.engine.generate_into(&requests, &Progress::silent(), run.cancel, take),
        |request, answered| {
            let (at, sample) = missing[request];
            let Some(Ok((votes, _))): Option<&mut std::result::Result<Votes, String>> = found[at].as_mut() else {
                return Ok(());
            };
            // A refusal leaves the sample as it was.
            if let Some(completion) = answered.ok().and_then(|result| result.completions.into_iter().next()) {
                let prompt_ids = std::mem::take(&mut votes[sample].prompt_ids);
                let vote = generate::vote(run, completion, &asked[at], &asked[at].orders[sample], prompt_ids);
                votes[sample] = crate::Vote { n_retries: pass, ..vote };
            }
            Ok(())
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand from prompt_engine's `model.generate`: temperature += 0.05 * retry, at most 1; max_tokens += 100 * retry.
    #[test]
    fn each_pass_is_hotter_and_longer_and_the_temperature_ends_at_one() {
        let first = Sampling { temperature: 0.7, max_new_tokens: 500, ..Sampling::default() };
        let found: Vec<(f32, usize)> = [0, 1, 6, 9]
            .map(|pass| sampling_of(&first, pass))
            .map(|one| ((one.temperature * 100.0).round() / 100.0, one.max_new_tokens))
            .to_vec();
        assert_eq!(found, [(0.7, 500), (0.75, 600), (1.0, 1100), (1.0, 1400)]);
    }
}
