//! A plan as a table for people, with the assumptions behind its figures.

use super::plan::{DPO_FLOPS, GENERATE_FLOPS, GIB, NODE_FLOPS, NODE_GENERATE_FLOPS, Plan, READ_FLOPS, Row, SFT_FLOPS};
use super::sizes;

/// The plan as a table with its assumptions.
pub(crate) fn table(plan: &Plan) -> String {
    let mut text =
        line(["stage", "kind", "rows", "steps", "tokens", "generated", "memory", "2 CPU cores", "4xH100 node"], "");
    for row in &plan.rows {
        let computes = matches!(row.kind, "sft" | "dpo" | "merge-search" | "eval" | "redteam" | "synthesis");
        let count = |number: Option<u64>, expected: bool| match number {
            Some(number) => number.to_string(),
            None if expected => "unknown".to_owned(),
            None => "-".to_owned(),
        };
        let cells = [
            row.stage.as_str(),
            row.kind,
            &count(row.rows, computes || row.kind == "data"),
            &count(row.steps, matches!(row.kind, "sft" | "dpo")),
            &count(row.tokens, computes || row.kind == "data"),
            &row.generated.filter(|&number| number > 0).map_or_else(|| "-".to_owned(), |number| format!("<= {number}")),
            &row.memory_bytes.map_or_else(|| "-".to_owned(), gib),
            &row.local_s.map_or_else(|| "-".to_owned(), duration),
            &row.node_s.map_or_else(|| "-".to_owned(), duration),
        ];
        let note = match (row.is_measured, row.has_output) {
            (true, _) => "  measured",
            (false, true) if row.is_outdated => "  has output, of other settings",
            (false, true) => "  has output",
            (false, false) => "",
        };
        text.push_str(&line(cells, note));
    }
    text.push_str(&total(plan));
    text.push_str(&footnote(plan));
    text
}

fn line(cells: [&str; 9], note: &str) -> String {
    let [stage, kind, rest @ ..] = cells;
    let rest: Vec<String> =
        rest.iter().zip([9, 7, 11, 12, 9, 12, 12]).map(|(cell, width)| format!("{cell:>width$}")).collect();
    format!("{stage:<20} {kind:<12} {}{note}\n", rest.join(" "))
}

/// Sums over the stages that compute; `+` where a size is unknown.
fn total(plan: &Plan) -> String {
    let computing: Vec<&Row> = plan
        .rows
        .iter()
        .filter(|row| matches!(row.kind, "sft" | "dpo" | "merge-search" | "eval" | "redteam" | "synthesis"))
        .collect();
    let more = if computing.iter().any(|row| row.tokens.is_none()) { "+" } else { "" };
    let tokens: u64 = computing.iter().filter_map(|row| row.tokens).sum();
    let made: u64 = computing.iter().filter_map(|row| row.generated).sum();
    let local: f64 = computing.iter().filter_map(|row| row.local_s).sum();
    let node: f64 = computing.iter().filter_map(|row| row.node_s).sum();
    let cells = [
        "total",
        "",
        "",
        "",
        &format!("{tokens}{more}"),
        &format!("<= {made}{more}"),
        &plan.peak_bytes.map_or_else(|| "-".to_owned(), gib),
        &format!("{}{more}", duration(local)),
        &format!("{}{more}", duration(node)),
    ];
    line(cells, "")
}

fn footnote(plan: &Plan) -> String {
    let speed = if plan.measured_speed {
        "as fast as the finished stages of each kind in the output folder were (the others as the reference machine)"
            .to_owned()
    } else {
        format!(
            "as the reference machine (2 cores, bf16): {:.0} GFLOP/s in SFT, {:.0} in DPO, {:.0} in reading, {:.0} in generating",
            SFT_FLOPS / 1e9,
            DPO_FLOPS / 1e9,
            READ_FLOPS / 1e9,
            GENERATE_FLOPS / 1e9
        )
    };
    let tokens = match &plan.tokenizer {
        Some(path) => format!("counted on a sample with the tokenizer of {}", path.display()),
        None => format!("{} characters of text a token", sizes::CHARS_PER_TOKEN),
    };
    format!(
        "\nAll of this is an estimate, not a measurement, but for memory and time of the lines that say measured (--measure runs one step of each training \
         stage, on the stage's own model or on the one it starts from). rows: before cleaning, duplicates and overlaps, after caps and hold-out; of a \
         finished data stage as it wrote them.\ntokens: {tokens}, where the files are at hand; else the recipe's `expect`. All epochs of \
         training; prompts, examples and options of an evaluation. generated: at most, every\nanswer at its full length; of a server's next letter one token.\ntime: {speed};\n6 FLOP \
         a parameter and token for SFT, 8 for DPO (with its reference), each 2 less with LoRA, 2 otherwise. A 4xH100 node: {:.0} TFLOP/s (40 % of peak), {:.0} in \
         generating.\nmemory: of training masters, moments, gradients and copies (18 bytes a parameter, f32 20; with LoRA the updates' and the merged model, 2 or 4), the start weights' file \
         (2, masters 4; none beside a q8 base) and the activations of a micro-batch, by the model's sizes where it is at hand; for evaluation 2 a parameter (f32: 4, q8: 1.1, \
         q4: 0.6, a .gguf its file); merging\ntakes a few tiles, whatever the size of the models. The total line has the largest stage.\n",
        NODE_FLOPS / 1e12,
        NODE_GENERATE_FLOPS / 1e12
    )
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / GIB)
}

/// Seconds in the unit a person would use.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        // The sum of nothing is -0.
        s if s <= 0.0 => "0 s".to_owned(),
        s if s < 1.0 => "< 1 s".to_owned(),
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s if s < 365.0 * 86_400.0 => format!("{:.0} days", s / 86_400.0),
        s => format!("{:.0} years", s / (365.0 * 86_400.0)),
    }
}
