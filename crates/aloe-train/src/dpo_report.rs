//! What a preference stage tells: counts, and the figures of its steps and of its held-out pairs, whole and by source.

use crate::dpo_data::DpoData;
use crate::export::ExportReport;
use crate::finished;
use crate::lora::LoraReport;
use crate::run::Run;
use crate::statistics::{Estimate, interval};
use serde::{Deserialize, Serialize};

/// What a preference stage found: the content of its record's results. Rewards of training steps are told against the loss's reference, held-out
/// figures (rewards, margins, losses) against the stage's start model, also where each chunk has a reference of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DpoReport {
    /// Pairs trained on.
    pub n_pairs: usize,
    /// Pairs held out.
    pub n_held_out: usize,
    /// Pairs dropped because prompt and answer are longer than `max_len` (training and held-out).
    pub n_too_long: usize,
    /// Those of them whose prompt alone leaves no room for an answer.
    pub n_prompt_too_long: usize,
    /// Pairs kept after whole oldest turns were taken out of their prompts.
    pub n_shortened: usize,
    /// The turns taken out of them.
    pub n_turns_removed: usize,
    /// Pairs dropped because both answers are the same tokens.
    pub n_equal: usize,
    /// Where those stand, the first 100.
    pub equal: Vec<String>,
    /// Sources of dropped pairs, the first 100.
    pub dropped: Vec<String>,
    /// Tokens of prompts (once) and answers of the training pairs.
    pub n_tokens: u64,
    /// Tokens of the answers.
    pub n_targets: u64,
    /// Optimizer steps.
    pub n_steps: u64,
    /// Optimizer steps of each chunk.
    pub steps_per_chunk: Vec<u64>,
    /// Mean loss over the first tenth of the steps.
    pub loss_first_tenth: f64,
    /// Mean loss over the last tenth of the steps.
    pub loss_last_tenth: f64,
    /// Share of training pairs with the higher reward on the chosen answer, over the last tenth of the steps.
    pub accuracy_last_tenth: f64,
    /// Mean reward margin over the last tenth of the steps.
    pub margin_last_tenth: f64,
    /// Share of held-out pairs whose chosen answer has the higher log-probability, before training.
    pub held_out_logp_accuracy_before: Option<f64>,
    /// The same after training.
    pub held_out_logp_accuracy_after: Option<f64>,
    /// Standard errors of both.
    pub held_out_logp_accuracy_se_before: Option<f64>,
    /// See before.
    pub held_out_logp_accuracy_se_after: Option<f64>,
    /// After minus before, over the same pairs.
    pub held_out_logp_accuracy_change: Option<Estimate>,
    /// Two-sided exact McNemar test of it.
    pub held_out_logp_accuracy_change_p: Option<f64>,
    /// Share of held-out pairs with the higher reward on the chosen answer, after training (before it, all rewards are 0).
    pub held_out_reward_accuracy_after: Option<f64>,
    /// Its standard error.
    pub held_out_reward_accuracy_se_after: Option<f64>,
    /// Its 95 % interval by Wilson.
    pub held_out_reward_accuracy_interval_after: Option<[f64; 2]>,
    /// Two-sided exact test of it against one half, pairs with equal rewards left out.
    pub held_out_reward_accuracy_p_after: Option<f64>,
    /// Mean held-out reward margin after training; before it, it is 0.
    pub held_out_margin_after: Option<f64>,
    /// Its standard error.
    pub held_out_margin_se_after: Option<f64>,
    /// Its 95 % interval by Student's t: wholly above 0 when the stage has raised the margin. Pairs count as independent.
    pub held_out_margin_interval_after: Option<[f64; 2]>,
    /// Mean held-out loss before training.
    pub held_out_loss_before: Option<f64>,
    /// Mean held-out loss after training.
    pub held_out_loss_after: Option<f64>,
    /// Mean held-out negative log-probability of a chosen token before training.
    pub held_out_nll_before: Option<f64>,
    /// The same after training.
    pub held_out_nll_after: Option<f64>,
    /// Standard errors of both, each pair a cluster of tokens.
    pub held_out_nll_se_before: Option<f64>,
    /// See before.
    pub held_out_nll_se_after: Option<f64>,
    /// After minus before, over the same pairs.
    pub held_out_nll_change: Option<Estimate>,
    /// The same figures by source of the pairs.
    pub by_source: Vec<PairSourceReport>,
    /// Pairs whose reference log-probabilities another run had left in `reference_cache`.
    pub n_references_reused: usize,
    /// The step whose weights are written: the last one, or with `keep_best` that of the best evaluation. What is said to hold after
    /// training holds for these.
    pub exported_step: u64,
    /// Whether `patience` ended the training before its last step.
    pub stopped_early: bool,
    /// Steps skipped as non-finite.
    pub n_non_finite: u64,
    /// Steps judged as spikes.
    pub n_spikes: u64,
    /// The update and what the bf16 export keeps of it.
    pub export: ExportReport,
    /// What LoRA trained and what merging changed; none when all weights were trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraReport>,
    /// SHA-256 of the start weights.
    pub start_digest: String,
    /// The step this process resumed from.
    pub resumed_from_step: u64,
    /// Pairs per second of this process's steps, reference and evaluations included.
    pub pairs_per_s: f64,
    /// What the user must be told.
    pub notices: Vec<String>,
}

/// One source's share of a [`DpoReport`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairSourceReport {
    /// The source's name.
    pub source: String,
    /// Its pairs trained on.
    pub n_pairs: usize,
    /// Its pairs held out.
    pub n_held_out: usize,
    /// Share of its training pairs with the higher reward on the chosen answer, over the last tenth of the steps with any.
    pub accuracy_last_tenth: f64,
    /// Mean reward margin over the last tenth of those steps.
    pub margin_last_tenth: f64,
    /// The held-out figures; none where no pair of it is held out.
    pub held_out: Option<PairSourceHeldOut>,
}

/// Held-out figures of one source; log-probabilities are sums over an answer, means over pairs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairSourceHeldOut {
    /// Share whose chosen answer has the higher log-probability, before training.
    pub logp_accuracy_before: f64,
    /// The same after training.
    pub logp_accuracy_after: f64,
    /// After minus before, over the same pairs.
    pub logp_accuracy_change: Option<Estimate>,
    /// Two-sided exact McNemar test of it.
    pub logp_accuracy_change_p: Option<f64>,
    /// Share with the higher reward on the chosen answer, after training.
    pub reward_accuracy_after: f64,
    /// Its 95 % interval by Wilson.
    pub reward_accuracy_interval_after: Option<[f64; 2]>,
    /// Negative log-probability of a chosen token before training.
    pub nll_before: Option<f64>,
    /// The same after training.
    pub nll_after: Option<f64>,
    /// After minus before, over the same pairs.
    pub nll_change: Option<Estimate>,
    /// Mean reward of the chosen answers after training.
    pub reward_chosen_after: f64,
    /// Mean reward of the rejected answers after training.
    pub reward_rejected_after: f64,
    /// Mean reward margin after training.
    pub margin_after: f64,
    /// Its standard error; none of a single pair.
    pub margin_se_after: Option<f64>,
    /// Its 95 % interval.
    pub margin_interval_after: Option<[f64; 2]>,
    /// Log-probability of the chosen answers before training.
    pub logps_chosen_before: f64,
    /// The same after training.
    pub logps_chosen_after: f64,
    /// Log-probability of the rejected answers before training.
    pub logps_rejected_before: f64,
    /// The same after training.
    pub logps_rejected_after: f64,
}

impl DpoReport {
    /// The 95 % interval of a mean margin of `n` pairs by Student's t, from its standard error.
    pub fn margin_interval(mean: f64, standard_error: f64, n: usize) -> [f64; 2] {
        interval(mean, standard_error, n)
    }

    /// What the metrics and the guard know at the end.
    pub(crate) fn fill(&mut self, run: &Run<'_>, data: &DpoData) {
        let numbers = |field: &str| run.metrics.numbers(field);
        let first = |field: &str| numbers(field).first().copied();
        let last = |field: &str| run.held_out_after(field);
        self.n_steps = run.cursor.step;
        self.steps_per_chunk = data.steps_per_chunk();
        (self.loss_first_tenth, self.loss_last_tenth) = finished::tenths(&numbers("loss"));
        self.accuracy_last_tenth = finished::tenths(&numbers("rewards/accuracies")).1;
        self.margin_last_tenth = finished::tenths(&numbers("rewards/margins")).1;
        self.held_out_logp_accuracy_before = first("held_out_logp_accuracy");
        self.held_out_logp_accuracy_after = last("held_out_logp_accuracy");
        self.held_out_logp_accuracy_se_before = first("held_out_logp_accuracy_se");
        self.held_out_logp_accuracy_se_after = last("held_out_logp_accuracy_se");
        self.held_out_logp_accuracy_change = Estimate::read("held_out_logp_accuracy_change", last);
        self.held_out_logp_accuracy_change_p = last("held_out_logp_accuracy_change_p");
        self.held_out_reward_accuracy_after = last("held_out_reward_accuracy");
        self.held_out_reward_accuracy_se_after = last("held_out_reward_accuracy_se");
        self.held_out_reward_accuracy_interval_after =
            Estimate::read("held_out_reward_accuracy", last).and_then(|found| found.interval);
        self.held_out_reward_accuracy_p_after = last("held_out_reward_accuracy_p");
        self.held_out_margin_after = last("held_out_margin");
        self.held_out_margin_se_after = last("held_out_margin_se");
        self.held_out_margin_interval_after = self
            .held_out_margin_after
            .zip(self.held_out_margin_se_after)
            .map(|(margin, se)| interval(margin, se, self.n_held_out));
        self.held_out_loss_before = first("held_out_loss");
        self.held_out_loss_after = last("held_out_loss");
        self.held_out_nll_before = first("held_out_nll_loss");
        self.held_out_nll_after = last("held_out_nll_loss");
        self.held_out_nll_se_before = first("held_out_nll_loss_se");
        self.held_out_nll_se_after = last("held_out_nll_loss_se");
        self.held_out_nll_change = Estimate::read("held_out_nll_loss_change", last);
        self.by_source = data.sets().into_iter().map(|(set, counts)| source_report(run, set, counts, data)).collect();
        self.n_references_reused = data.n_references_reused;
        self.exported_step = run.exported_step();
        self.stopped_early = run.cursor.held_out.has_stopped;
        self.notices.extend(finished::held_out_notice(run, None));
        self.n_non_finite = run.cursor.guard.n_non_finite;
        self.n_spikes = run.cursor.guard.n_spikes;
        self.resumed_from_step = run.resumed_from;
        self.notices.extend(run.notices.iter().chain(&data.notices).cloned());
    }
}

fn source_report(run: &Run<'_>, set: &str, (n_pairs, n_held_out): (usize, usize), data: &DpoData) -> PairSourceReport {
    // With one source the lines have no names of sources: its figures are those of all pairs.
    let suffix = if data.is_by_set() { format!("/{set}") } else { String::new() };
    let numbers = |field: &str| run.metrics.numbers(&format!("{field}{suffix}"));
    let first = |field: &str| numbers(field).first().copied().unwrap_or_default();
    let after = |field: &str| run.held_out_after(&format!("{field}{suffix}"));
    let last = |field: &str| after(field).unwrap_or_default();
    let margin_se_after = after("held_out_margin_se");
    let margin_after = last("held_out_margin");
    let held_out = PairSourceHeldOut {
        logp_accuracy_change: Estimate::read("held_out_logp_accuracy_change", after),
        logp_accuracy_change_p: after("held_out_logp_accuracy_change_p"),
        reward_accuracy_interval_after: Estimate::read("held_out_reward_accuracy", after)
            .and_then(|found| found.interval),
        nll_before: numbers("held_out_nll_loss").first().copied(),
        nll_after: after("held_out_nll_loss"),
        nll_change: Estimate::read("held_out_nll_loss_change", after),
        logp_accuracy_before: first("held_out_logp_accuracy"),
        logp_accuracy_after: last("held_out_logp_accuracy"),
        reward_accuracy_after: last("held_out_reward_accuracy"),
        reward_chosen_after: last("held_out_reward_chosen"),
        reward_rejected_after: last("held_out_reward_rejected"),
        margin_after,
        margin_se_after,
        margin_interval_after: margin_se_after.map(|se| interval(margin_after, se, n_held_out)),
        logps_chosen_before: first("held_out_logps_chosen"),
        logps_chosen_after: last("held_out_logps_chosen"),
        logps_rejected_before: first("held_out_logps_rejected"),
        logps_rejected_after: last("held_out_logps_rejected"),
    };
    PairSourceReport {
        source: set.to_owned(),
        n_pairs,
        n_held_out,
        accuracy_last_tenth: finished::tenths(&numbers("rewards/accuracies")).1,
        margin_last_tenth: finished::tenths(&numbers("rewards/margins")).1,
        held_out: (n_held_out > 0).then_some(held_out),
    }
}
