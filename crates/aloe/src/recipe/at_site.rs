//! What a recipe's stages cost on a site's GPUs: memory of one GPU, hours, energy and carbon, beside the limits that `cluster.toml` states.
//!
//! Memory is that of a server's weights for stages that ask a model, whatever asks them. An estimate on paper; ARCHITECTURE.md ("Real size, on paper") has the formulas and `oracles/scale_on_paper.py` computes the same table for two
//! shapes. Training speed is what the Beta paper's own hours amount to, not a share of the peak that nobody measured.

use super::plan::Row;
use super::plan_table::duration;
use crate::failure::Failure;
use aloe_handoff::Resources;
use aloe_handoff::cluster::Cluster;
use aloe_model::ModelSource;
use serde::Serialize;
use std::path::Path;

/// Dense bf16 peak of an H100, FLOP/s.
const PEAK: f64 = 989e12;
/// Share of it in training: 7.2 G tokens in 32 x 15.30 GPU-hours (8B) and in 64 x 79.12 (70B), arXiv 2505.04388, table 5, at
/// length 16,384.
const MFU_8B: f64 = 0.25;
const MFU_70B: f64 = 0.19;
/// Share of it in reading prompts and in generating with many answers at a time: our assumptions.
const MFU_READING: f64 = 0.4;
const MFU_GENERATING: f64 = 0.1;
/// Processors of a node, in watts at their tenth (arXiv 2505.04388, appendix D), and kg CO2 a kWh there.
const HOST_W: f64 = 35.0;
pub(crate) const KG_PER_KWH: f64 = 0.158;
/// Power of a GPU where the site states none: an H100's.
const GPU_W: f64 = 700.0;
/// Rows of logits that the loss of the hand-off's trainers holds at once.
const LOSS_ROWS: f64 = 2048.0;
/// Share of a GPU's memory that a trainer can use.
const USABLE: f64 = 0.92;

/// Sizes that decide what is not divided among GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Shape {
    pub(crate) layers: f64,
    pub(crate) hidden: f64,
    pub(crate) feed_forward: f64,
    pub(crate) vocabulary: f64,
}

impl Shape {
    /// The shape of the two Llama 3 models that are known by their number of parameters alone.
    pub(crate) fn known(n_parameters: u64) -> Option<Self> {
        let shape = |layers, hidden, feed_forward| Self { layers, hidden, feed_forward, vocabulary: 128_256.0 };
        match n_parameters {
            8_030_261_248 => Some(shape(32.0, 4096.0, 14_336.0)),
            70_553_706_496 => Some(shape(80.0, 8192.0, 28_672.0)),
            _ => None,
        }
    }

    /// The shape of a checkpoint at hand.
    pub(crate) fn of_checkpoint(path: &Path) -> Option<Self> {
        let source = ModelSource::open(path).ok()?;
        let config = source.config();
        Some(Self {
            layers: config.num_hidden_layers as f64,
            hidden: config.hidden_size as f64,
            feed_forward: config.intermediate_size as f64,
            vocabulary: config.vocab_size as f64,
        })
    }

    /// Bytes of one GPU that do not shrink with their number, for `n_tokens` at once: two gathered layers, a chunk of logits, and of
    /// activations each layer's input and one layer at work (Korthikanti et al. 2022, without the attention matrix); where they are not
    /// recomputed, every layer's.
    fn undivided_bytes(&self, n_tokens: f64, recompute: bool) -> f64 {
        let layer = 4.0 * self.hidden * self.hidden + 3.0 * self.hidden * self.feed_forward;
        let gathered = 4.0 * layer.max(self.vocabulary * self.hidden);
        let working = 34.0 * n_tokens * self.hidden + 6.0 * n_tokens * self.feed_forward;
        let activations = match recompute {
            true => 2.0 * n_tokens * self.hidden * self.layers + working,
            false => working * self.layers,
        };
        gathered + activations + 12.0 * LOSS_ROWS * self.vocabulary
    }

    /// FLOP a token of training: `6 P`, and causal attention over rows of `n_tokens`.
    fn attention_flops(&self, n_tokens: f64) -> f64 {
        6.0 * self.layers * self.hidden * n_tokens
    }
}

/// A stage at a site.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct AtSite {
    pub(crate) stage: String,
    pub(crate) n_nodes: u32,
    pub(crate) n_gpus: u32,
    /// Weights, gradients, masters and moments of one GPU at 16 and at 18 bytes a parameter; for inference the weights at 2.
    pub(crate) state_bytes: [f64; 2],
    /// What is not divided; absent where nobody knows the model's shape.
    pub(crate) rest_bytes: Option<f64>,
    /// Memory of one machine while a trainer loads, before anything is divided: f32 weights in the first process of each, and the reference's
    /// beside the policy's.
    pub(crate) node_bytes: Option<f64>,
    pub(crate) seconds: Option<f64>,
    pub(crate) kwh: Option<f64>,
    pub(crate) kg: Option<f64>,
    /// What the site does not allow.
    pub(crate) warnings: Vec<String>,
}

/// The limits of a site that matter here.
pub(crate) struct Site {
    pub(crate) gpu_bytes: Option<f64>,
    pub(crate) node_bytes: Option<f64>,
    pub(crate) gpu_watts: Option<f64>,
    /// GPUs of one server of a model, where servers are started.
    pub(crate) gpus_of_server: Option<u32>,
}

impl Site {
    /// What `cluster.toml` states.
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self {
            gpu_bytes: cluster.node.gpu_memory_gb.map(|gb| gb * 1e9),
            node_bytes: cluster.node.memory_gb.map(|gb| gb * 1e9),
            gpu_watts: cluster.node.gpu_watts,
            gpus_of_server: cluster.serving.as_ref().map(|serving| serving.gpus),
        }
    }
}

/// Every stage that uses GPUs there.
pub(crate) fn stages(rows: &[Row], cluster: &Cluster) -> anyhow::Result<Vec<AtSite>> {
    let site = Site::of(cluster);
    let is_job = |row: &&Row| !matches!(row.kind, "pull" | "data");
    let mut found = Vec::new();
    for row in rows.iter().filter(is_job) {
        let asked = cluster.resources(row.kind, &row.stage).map_err(Failure::usage)?;
        found.extend(estimate(row, asked, &site));
    }
    Ok(found)
}

/// How the warning about memory begins.
const TOO_LARGE: &str = "needs";

impl AtSite {
    /// What does not fit the GPUs or the machine, where that is so.
    pub(crate) fn too_large(&self) -> impl Iterator<Item = &str> {
        self.warnings.iter().map(String::as_str).filter(|warning| warning.starts_with(TOO_LARGE))
    }
}

/// `row` on what the site gives it; `None` for stages that use no GPU.
pub(crate) fn estimate(row: &Row, asked: Resources, site: &Site) -> Option<AtSite> {
    let n_gpus = asked.n_nodes * asked.gpus_per_node;
    let parameters = row.n_parameters? as f64;
    let is_training = matches!(row.kind, "sft" | "dpo");
    if n_gpus == 0 || !(is_training || matches!(row.kind, "eval" | "redteam" | "synthesis")) {
        return None;
    }
    let gpus = f64::from(n_gpus);
    let shape = row.shape.or_else(|| Shape::known(row.n_parameters?));
    let (state_bytes, rest_bytes) = if is_training {
        let divided = |bytes: f64| bytes * parameters / gpus;
        let at_once = row.tokens_at_once.or(row.max_len).map(|n_tokens| n_tokens as f64);
        let rest = shape.zip(at_once).map(|(shape, n_tokens)| shape.undivided_bytes(n_tokens, row.recompute));
        // Weights that LoRA freezes are held as f32 and have nothing beside them.
        let state = |bytes: f64| match row.n_updates {
            Some(n_updates) => divided(4.0) + bytes * n_updates as f64 / gpus,
            None => divided(bytes),
        };
        ([state(16.0), state(18.0)], rest)
    } else {
        // Each server is split over its GPUs, or where the site says nothing over those of one node.
        let gpus = site.gpus_of_server.filter(|gpus| *gpus > 0).unwrap_or(asked.gpus_per_node);
        let weights = 2.0 * parameters / f64::from(gpus);
        ([weights, weights], None)
    };
    let seconds = row.tokens.map(|tokens| {
        let letters = row.letters_if_served.filter(|_| site.gpus_of_server.is_some());
        let made = row.generated.max(letters).unwrap_or(0) as f64;
        let tokens = tokens as f64;
        if !is_training {
            let flops = 2.0 * parameters;
            return (tokens * flops / MFU_READING + made * flops / MFU_GENERATING) / (PEAK * gpus);
        }
        let mfu = if parameters > 4e10 { MFU_70B } else { MFU_8B };
        let attention = shape.zip(row.max_len).map_or(0.0, |(shape, len)| shape.attention_flops(len as f64));
        // The reference's forward pass of preference training is a third of a training step.
        let factor = if row.kind == "dpo" { 4.0 / 3.0 } else { 1.0 };
        // Frozen weights have no gradient of their own.
        let frozen = if row.n_updates.is_some() { 2.0 * parameters } else { 0.0 };
        tokens * (factor * (6.0 * parameters + attention) - frozen) / (PEAK * mfu * gpus)
    });
    let node_w = f64::from(asked.gpus_per_node) * site.gpu_watts.unwrap_or(GPU_W) + HOST_W;
    let kwh = seconds.map(|seconds| f64::from(asked.n_nodes) * node_w * seconds / 3.6e6);
    let mut warnings = Vec::new();
    if let Some(limit) = site.gpu_bytes {
        let needed = state_bytes[0] + rest_bytes.unwrap_or(0.0);
        if needed > USABLE * limit {
            let way_out = match (is_training, row.recompute) {
                (true, false) => "write recompute = true in the recipe, or ask for more nodes",
                (true, true) => "ask for more nodes",
                (false, _) => "give each server more GPUs",
            };
            let (needed, limit) = (needed / 1e9, limit / 1e9);
            warnings.push(format!("{TOO_LARGE} {needed:.0} GB of each GPU, which has {limit:.0}; {way_out}"));
        }
    }
    // The reference of LoRA is the policy without its updates.
    let has_reference = row.kind == "dpo" && row.n_updates.is_none();
    let copies = if has_reference { 2.0 } else { 1.0 };
    let node_bytes = is_training.then_some(4.0 * copies * parameters);
    if let Some((needed, limit)) = node_bytes.zip(site.node_bytes).filter(|(needed, limit)| needed > limit) {
        let (needed, limit) = (needed / 1e9, limit / 1e9);
        let what = if has_reference { "policy and reference" } else { "the model" };
        warnings.push(format!(
            "{TOO_LARGE} {needed:.0} GB of each node's own memory, which has {limit:.0}: the first process of a node loads {what} in f32, 4 \
             bytes a parameter, before they are divided; ask for nodes with more"
        ));
    }
    if let Some(seconds) = seconds.filter(|&seconds| seconds > asked.time_limit_s as f64) {
        let (needs, limit) = (duration(seconds), duration(asked.time_limit_s as f64));
        warnings.push(format!("takes {needs} or so, over its limit of {limit}; it will be requeued and go on"));
    }
    let stage = row.stage.clone();
    let kg = kwh.map(|kwh| kwh * KG_PER_KWH);
    Some(AtSite {
        stage,
        n_nodes: asked.n_nodes,
        n_gpus,
        state_bytes,
        rest_bytes,
        node_bytes,
        seconds,
        kwh,
        kg,
        warnings,
    })
}

/// The stages as a table with its assumptions.
pub(crate) fn table(name: &str, stages: &[AtSite]) -> String {
    let mut text = format!(
        "\nAt {name}, on paper:\n{:<20} {:>5} {:>5} {:>16} {:>8} {:>8} {:>9} {:>9} {:>8}\n",
        "stage", "nodes", "GPUs", "state, GB a GPU", "rest, GB", "node, GB", "time", "kWh", "kg CO2"
    );
    let or_unknown = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
    for stage in stages {
        let [low, high] = stage.state_bytes.map(|bytes| bytes / 1e9);
        let state = if low == high { format!("{low:.0}") } else { format!("{low:.0} to {high:.0}") };
        let rest = match (stage.rest_bytes, low == high) {
            (Some(bytes), _) => format!("{:.0}", bytes / 1e9),
            (None, true) => "cache".to_owned(),
            (None, false) => "unknown".to_owned(),
        };
        text.push_str(&format!(
            "{:<20} {:>5} {:>5} {state:>16} {rest:>8} {:>8} {:>9} {:>9} {:>8}\n",
            stage.stage,
            stage.n_nodes,
            stage.n_gpus,
            stage.node_bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{:.0}", bytes / 1e9)),
            or_unknown(stage.seconds.map(duration)),
            or_unknown(stage.kwh.map(|kwh| format!("{kwh:.1}"))),
            or_unknown(stage.kg.map(|kg| format!("{kg:.2}"))),
        ));
    }
    for stage in stages {
        for warning in &stage.warnings {
            text.push_str(&format!("{}: {warning}\n", stage.stage));
        }
    }
    text.push_str(&format!(
        "state: 16 to 18 bytes a parameter over all GPUs (training), 2 over a server's (inference). rest: micro_batch_size rows (pairs: both answers) of max_len tokens a \
         GPU; formulas in ARCHITECTURE.md. node: memory of a machine while a trainer loads.\ntime: {:.0} % of {:.0} TFLOP/s in training ({:.0} % from 40B on), as the Beta paper's hours (arXiv 2505.04388), {:.0} % in reading, {:.0} % in \
         generating; queues and start-up come on top.\nkWh: the GPUs' stated power ({GPU_W:.0} W where none is) and {HOST_W:.0} W a node; kg CO2 at {KG_PER_KWH} a kWh (Spain 2023, as the Beta paper).\n",
        100.0 * MFU_8B,
        PEAK / 1e12,
        100.0 * MFU_70B,
        100.0 * MFU_READING,
        100.0 * MFU_GENERATING,
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: &'static str, n_parameters: u64, tokens: u64) -> Row {
        let (n_parameters, tokens, max_len) = (Some(n_parameters), Some(tokens), Some(16_384));
        Row { stage: "s".into(), kind, n_parameters, tokens, max_len, recompute: true, ..Row::default() }
    }

    fn asked(n_nodes: u32) -> Resources {
        Resources { n_nodes, gpus_per_node: 4, cpus_per_node: 80, time_limit_s: 72 * 3600 }
    }

    const SITE: Site = Site { gpu_bytes: Some(64e9), node_bytes: None, gpu_watts: Some(700.0), gpus_of_server: None };

    /// The Beta paper's SFT: 4 epochs of 1.8 G tokens. Its table 5: 8B on 32 GPUs in 15.30 h, 70B on 64 in 79.12 h and 567.04 kg. The shares of
    /// the peak stand in the code rounded to whole percents, hence the 3 %.
    #[test]
    fn the_beta_papers_hours_and_carbon_come_out() {
        let eight = estimate(&row("sft", 8_030_261_248, 7_200_000_000), asked(8), &SITE).unwrap();
        assert!((eight.seconds.unwrap() / 3600.0 / 15.30 - 1.0).abs() < 0.03, "{eight:?}");
        let seventy = estimate(&row("sft", 70_553_706_496, 7_200_000_000), asked(16), &SITE).unwrap();
        assert!((seventy.seconds.unwrap() / 3600.0 / 79.12 - 1.0).abs() < 0.03, "{seventy:?}");
        assert!((seventy.kg.unwrap() / 567.04 - 1.0).abs() < 0.03, "{seventy:?}");
    }

    /// 18 x 70.55e9 / 64 = 19.8 GB; the rest as `oracles/scale_on_paper.py` prints it: 36 GB. On 8 nodes 35 + 36 GB exceed 92 % of 64.
    #[test]
    fn seventy_billion_fit_sixteen_nodes_and_not_eight() {
        let sixteen = estimate(&row("sft", 70_553_706_496, 1), asked(16), &SITE).unwrap();
        assert_eq!(format!("{:.1} {:.0}", sixteen.state_bytes[1] / 1e9, sixteen.rest_bytes.unwrap() / 1e9), "19.8 36");
        assert_eq!(sixteen.warnings, Vec::<String>::new());
        let eight = estimate(&row("sft", 70_553_706_496, 1), asked(8), &SITE).unwrap();
        assert_eq!(eight.warnings, ["needs 71 GB of each GPU, which has 64; ask for more nodes"]);
    }

    /// 32 layers at work of 34 x 8192 x 4096 + 6 x 8192 x 14336 bytes are 59 GB, where one and 32 inputs of 2 x 8192 x 4096 are 4.0.
    /// A pair is two rows.
    #[test]
    fn activations_that_are_not_recomputed_count_in_every_layer_and_do_not_fit() {
        let of = |recompute, tokens_at_once| {
            let row = Row { recompute, tokens_at_once: Some(tokens_at_once), ..row("sft", 8_030_261_248, 1) };
            estimate(&row, asked(8), &SITE).unwrap()
        };
        let [kept, recomputed, pair] = [of(false, 8192), of(true, 8192), of(true, 16_384)];
        let gb = |found: &AtSite| found.rest_bytes.unwrap() / 1e9;
        assert!((gb(&kept) - gb(&recomputed) - (59.05 - 3.99)).abs() < 0.01, "{kept:?} {recomputed:?}");
        assert!((gb(&pair) - gb(&recomputed) - 3.99).abs() < 0.01, "{pair:?}");
        let said = kept.too_large().next().unwrap();
        assert!(said.ends_with("write recompute = true in the recipe, or ask for more nodes"), "{said}");
        assert_eq!(recomputed.too_large().next(), None);
    }

    /// 4 x 8.03e9 / 4 = 8.03 GB a GPU, and 18 x 40e6 / 4 = 0.18; 4 of 6 FLOP a weight and token, for pairs 6 of 8; the reference is the policy.
    #[test]
    fn what_lora_freezes_costs_four_bytes_and_no_gradient() {
        let row = |kind, n_updates| Row { n_updates, max_len: None, ..row(kind, 8_030_261_248, 1_000_000_000) };
        let of = |kind, n_updates| estimate(&row(kind, n_updates), asked(1), &SITE).unwrap();
        let (updates, all) = (of("sft", Some(40_000_000)), of("sft", None));
        let gb = |bytes: f64| (bytes / 1e7).round() / 100.0;
        assert_eq!((gb(updates.state_bytes[1]), gb(all.state_bytes[1])), (8.21, 36.14));
        let share = |kind| of(kind, Some(1)).seconds.unwrap() / of(kind, None).seconds.unwrap();
        assert!((share("sft") - 4.0 / 6.0).abs() < 1e-9 && (share("dpo") - 6.0 / 8.0).abs() < 1e-9);
        let node = |n_updates| of("dpo", n_updates).node_bytes.unwrap();
        assert_eq!(2.0 * node(Some(1)), node(None));
    }

    /// 4 x 70.55e9 bytes are 282 GB; with the reference 564.
    #[test]
    fn a_node_must_hold_the_model_in_f32_while_it_is_loaded_and_the_reference_beside_it() {
        let site = Site { node_bytes: Some(512e9), ..SITE };
        let of = |kind| estimate(&row(kind, 70_553_706_496, 1), asked(16), &site).unwrap();
        assert_eq!(of("sft").too_large().next(), None);
        let alignment = of("dpo");
        let said = alignment.too_large().next().unwrap();
        assert!(said.starts_with("needs 564 GB of each node's own memory, which has 512: "), "{said}");
        assert!(said.contains("loads policy and reference in f32"), "{said}");
    }

    /// 2 x 70.55e9 bytes over four GPUs are 35 GB, on one GPU 141.
    #[test]
    fn a_server_has_its_model_on_its_own_gpus_whatever_kind_of_stage_asks_it() {
        for kind in ["eval", "redteam", "synthesis"] {
            let on = |gpus| {
                let site = Site { gpus_of_server: gpus, ..SITE };
                estimate(&row(kind, 70_553_706_496, 1), asked(1), &site).unwrap()
            };
            assert_eq!(format!("{:.0}", on(None).state_bytes[0] / 1e9), "35", "{kind}");
            assert!(on(Some(1)).too_large().next().unwrap().ends_with("give each server more GPUs"), "{kind}");
        }
    }

    /// By hand: 1,000 letters of 2 x 8.03e9 FLOP at a tenth of 4 x 989e12, where a site's server draws them; scored, they are read alone.
    #[test]
    fn next_letters_are_drawn_where_the_site_serves_evaluations_and_scored_where_it_does_not() {
        let row = Row { letters_if_served: Some(1000), generated: Some(0), ..row("eval", 8_030_261_248, 1_000_000) };
        let seconds = |gpus_of_server| {
            let site = Site { gpus_of_server, ..SITE };
            estimate(&row, asked(1), &site).unwrap().seconds.unwrap()
        };
        let drawn = 1000.0 * 2.0 * 8_030_261_248.0 / (0.1 * 4.0 * 989e12);
        let read = 1e6 * 2.0 * 8_030_261_248.0 / (0.4 * 4.0 * 989e12);
        assert!((seconds(None) / read - 1.0).abs() < 1e-9, "{}", seconds(None));
        assert!((seconds(Some(4)) / (read + drawn) - 1.0).abs() < 1e-9, "{}", seconds(Some(4)));
    }

    #[test]
    fn a_job_that_outlasts_its_limit_is_told_and_one_without_gpus_has_no_line() {
        let long = estimate(&row("sft", 8_030_261_248, 72_000_000_000), asked(8), &SITE).unwrap();
        assert!(long.warnings[0].contains("over its limit of 3 days"), "{long:?}");
        let processors = Resources { gpus_per_node: 0, ..asked(1) };
        assert_eq!(estimate(&row("sft", 8_030_261_248, 1), processors, &SITE), None);
        assert_eq!(estimate(&row("merge", 8_030_261_248, 1), asked(1), &SITE), None);
    }
}
