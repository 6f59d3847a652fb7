//! Scoring given continuations with a local model: each request becomes one shared-prefix tree (its prompt once, its
//! continuations as branches), trees are packed into batches, and only the rows that predict a scored token meet the
//! vocabulary.

use crate::local::PACK_TOKENS;
use crate::sample::{argmax, logp_of};
use crate::{Local, Result, ScoreRequest, ScoreResult, Scored};
use aloe_model::{Branches, PackedBatch};
use aloe_record::{Cancel, Progress};

/// Rows of logits held at once; `[LOGIT_ROWS, V]` f32.
const LOGIT_ROWS: usize = 64;

/// A request's ids, and what of it is scored.
struct Plan {
    prompt_ids: Vec<u32>,
    continuations: Vec<Vec<u32>>,
    scores_prompt: bool,
}

impl Plan {
    /// Tokens that go through the decoder: a continuation's last token predicts nothing and stays out.
    fn n_tokens(&self) -> usize {
        self.prompt_ids.len() + self.continuations.iter().map(|ids| ids.len() - 1).sum::<usize>()
    }

    fn branches(&self) -> Branches<'_> {
        Branches {
            prefix: &self.prompt_ids,
            continuations: self.continuations.iter().map(|ids| &ids[..ids.len() - 1]).collect(),
        }
    }
}

impl Local {
    /// See [`crate::Engine::score`].
    pub(crate) fn score(
        &self,
        requests: &[ScoreRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<ScoreResult>> {
        let mut results = Vec::with_capacity(requests.len());
        let mut waiting: Vec<(String, Plan)> = Vec::new();
        let mut n_waiting = 0;
        for request in requests {
            cancel.check()?;
            let plan = self.plan(request)?;
            if n_waiting + plan.n_tokens() > PACK_TOKENS && !waiting.is_empty() {
                self.score_packed(&mut waiting, &mut results, progress)?;
                n_waiting = 0;
            }
            n_waiting += plan.n_tokens();
            waiting.push((request.id.clone(), plan));
        }
        self.score_packed(&mut waiting, &mut results, progress)?;
        Ok(results)
    }

    fn plan(&self, request: &ScoreRequest) -> Result<Plan> {
        let scores_prompt = request.continuations.is_empty();
        let (prompt_ids, continuations) = self.score_ids(request)?;
        Ok(Plan { prompt_ids, continuations, scores_prompt })
    }

    fn score_packed(
        &self,
        waiting: &mut Vec<(String, Plan)>,
        results: &mut Vec<ScoreResult>,
        progress: &Progress,
    ) -> Result<()> {
        if waiting.is_empty() {
            return Ok(());
        }
        let groups: Vec<Branches<'_>> = waiting.iter().map(|(_, plan)| plan.branches()).collect();
        let batch = PackedBatch::from_branches(&groups);
        let targets = targets_of(waiting);
        let hidden = self.decoder.hidden(&batch)?;
        let mut scored = Vec::with_capacity(targets.len());
        for chunk in targets.chunks(LOGIT_ROWS) {
            let rows: Vec<usize> = chunk.iter().map(|&(row, _)| row).collect();
            let logits = self.decoder.logits(&hidden.gather_rows(&rows));
            let vocab_size = self.decoder.config.vocab_size;
            for (values, &(_, target)) in logits.as_f32().chunks(vocab_size).zip(chunk) {
                scored.push((logp_of(values, target), argmax(values) == target));
            }
        }
        let mut scored = scored.into_iter();
        for (id, plan) in waiting.drain(..) {
            results.push(collect(id, plan, &mut scored));
            progress.advance(1);
        }
        Ok(())
    }
}

/// (row, target id) for every scored token, in request order. Rows of a tree: prefix first, then its branches.
fn targets_of(waiting: &[(String, Plan)]) -> Vec<(usize, u32)> {
    let mut targets = Vec::new();
    let mut start = 0;
    for (_, plan) in waiting {
        let prefix_len = plan.prompt_ids.len();
        if plan.scores_prompt {
            targets.extend(plan.prompt_ids[1..].iter().enumerate().map(|(at, &target)| (start + at, target)));
        }
        let mut branch = start + prefix_len;
        for ids in &plan.continuations {
            for (at, &target) in ids.iter().enumerate() {
                let row = if at == 0 { start + prefix_len - 1 } else { branch + at - 1 };
                targets.push((row, target));
            }
            branch += ids.len() - 1;
        }
        start += plan.n_tokens();
    }
    targets
}

fn collect(id: String, plan: Plan, scored: &mut impl Iterator<Item = (f64, bool)>) -> ScoreResult {
    let pieces = if plan.scores_prompt { vec![plan.prompt_ids[1..].to_vec()] } else { plan.continuations };
    let continuations = pieces
        .into_iter()
        .map(|ids| {
            let (logps, greedy): (Vec<f64>, Vec<bool>) = scored.by_ref().take(ids.len()).unzip();
            Scored { ids, logps, is_greedy: greedy.iter().all(|&is| is) }
        })
        .collect();
    ScoreResult { id, prompt_ids: plan.prompt_ids, continuations }
}
