//! The line that a finished training stage says of itself: what was trained, and the held-out figures with their errors.

use aloe_train::{DpoReport, Estimate, LoraReport, SftReport};

/// Of a supervised stage.
pub(super) fn sft(report: &SftReport) -> String {
    let held_out = match (report.held_out_nll_before, report.held_out_nll_after) {
        (Some(before), Some(after)) => {
            format!(", held-out NLL {before:.3} -> {after:.3}{}", change(report.held_out_nll_change))
        }
        _ => String::new(),
    };
    format!(
        "{} rows, {} steps, loss {:.3} -> {:.3}{held_out}{}",
        report.n_rows,
        report.n_steps,
        report.loss_first_tenth,
        report.loss_last_tenth,
        lora_summary(report.lora.as_ref())
    )
}

/// Of a preference stage.
pub(super) fn dpo(report: &DpoReport) -> String {
    let accuracy = report.held_out_reward_accuracy_after.map(|after| {
        let interval = report.held_out_reward_accuracy_interval_after;
        let interval =
            interval.map_or_else(String::new, |[low, high]| format!(" (95 % interval {low:.2} to {high:.2})"));
        format!(", held-out reward accuracy {after:.2}{interval}")
    });
    let logp_accuracy = report.held_out_logp_accuracy_before.zip(report.held_out_logp_accuracy_after);
    let more_probable = logp_accuracy.map(|(before, after)| {
        let p =
            report.held_out_logp_accuracy_change_p.map_or_else(String::new, |p| format!(" (exact McNemar p {p:.3})"));
        format!(", chosen more probable {before:.2} -> {after:.2}{p}")
    });
    let margin = report.held_out_margin_after.zip(report.held_out_margin_interval_after).map(|(mean, [low, high])| {
        format!(", margin {mean:.3} (95 % interval {low:.3} to {high:.3}, {} pairs)", report.n_held_out)
    });
    let nll = report
        .held_out_nll_before
        .zip(report.held_out_nll_after)
        .map(|(before, after)| format!(", chosen NLL {before:.3} -> {after:.3}{}", change(report.held_out_nll_change)));
    let held_out: String = [accuracy, margin, more_probable, nll].into_iter().flatten().collect();
    format!(
        "{} pairs, {} steps, loss {:.3} -> {:.3}{held_out}{}",
        report.n_pairs,
        report.n_steps,
        report.loss_first_tenth,
        report.loss_last_tenth,
        lora_summary(report.lora.as_ref())
    )
}

/// A paired difference with its interval, for a stage's line.
fn change(estimate: Option<Estimate>) -> String {
    let interval = |found: Estimate| Some((found.mean, found.interval?));
    estimate
        .and_then(interval)
        .map_or_else(String::new, |(mean, [low, high])| format!(" ({mean:+.3}, 95 % interval {low:+.3} to {high:+.3})"))
}

/// How much LoRA trained and what merging changed, for a stage's line.
fn lora_summary(report: Option<&LoraReport>) -> String {
    report.map_or_else(String::new, |lora| {
        format!(
            ", LoRA {:.2} M of {:.1} M weights on {}, merged logits {:.4} off (mean; max {:.3})",
            lora.n_trained as f64 / 1e6,
            lora.n_model as f64 / 1e6,
            lora.base,
            lora.logit_difference_mean,
            lora.logit_difference_max
        )
    })
}
