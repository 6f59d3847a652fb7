//! Flags of the commands that read finished evaluations: `compare` and `export`.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// What `aloe compare --help` says beneath the flags.
pub(crate) const COMPARE_HELP: &str = "Examples:\n  aloe compare runs/base-eval runs/sft-eval\n  aloe compare runs/base-eval \
runs/sft-eval runs/dpo-eval --json\n\nEach RUN is compared with BASE question by question: the exact McNemar test and a paired bootstrap \
(10,000 draws; abstracts are drawn where questions share one). Where more than one test is made, p-values are adjusted by Holm and the verdicts \
speak by those. Verdicts: higher, lower, or no difference can be concluded. `smallest` is the difference in points that these questions would \
show in 80 % of such comparisons (Connor 1987). Of open questions those answers are right that most of the run's judges call so, and runs of other \
judges are refused. Runs over other questions (other ids, texts, numbers of options or keys) are refused; in what else the runs differ is said above the table.";

/// `aloe compare`.
#[derive(Args)]
pub(crate) struct CompareArgs {
    /// Output folder of the evaluation that the others are compared with
    pub(crate) base: PathBuf,
    /// Output folders of evaluations over the same questions
    #[arg(required = true)]
    pub(crate) runs: Vec<PathBuf>,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print the comparisons as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `aloe rescore --help` says beneath the flags.
pub(crate) const RESCORE_HELP: &str = "Examples:\n  aloe rescore runs/sc-cot --out runs/sc-cot-again\n  aloe rescore runs/sc-cot --rule \
prompt-engine --out runs/sc-cot-pe\n  aloe rescore runs/sc-cot --trained-on runs/data-medical --expect medqa_4options=50..60 --out runs/sc-cot-held\n\nReads every stored answer again, votes and counts anew, without asking a model: after a version that reads \
answers otherwise, or by another rule. RUN is left as it is, and refused where its files were cut or edited; OUT gets results.json, samples.jsonl, questions.jsonl and record.json, which \
compare, export and view read as they do a run's. Exported figures say that, and by which rule, answers were read again; their date is that of the rescoring.";

/// `aloe rescore`.
#[derive(Args)]
pub(crate) struct RescoreArgs {
    /// Output folder of an evaluation
    pub(crate) run: PathBuf,
    /// How answers are read: aloe or prompt-engine; default that of the run's protocol
    #[arg(long)]
    pub(crate) rule: Option<String>,
    /// Data stage's folder, or file of rows, that the model was trained on: questions that it holds are scored apart; may be given several times
    #[arg(long, value_name = "PATH")]
    pub(crate) trained_on: Vec<PathBuf>,
    /// Accuracy in percent that a task or an average must have: NAME=LOWEST..HIGHEST; may be given several times
    #[arg(long, value_name = "NAME=LOW..HIGH", value_parser = expected)]
    pub(crate) expect: Vec<(String, f64, f64)>,
    /// Folder to write; must not exist
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Print how much changed as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// `medqa_4options=50..60.5`.
fn expected(text: &str) -> Result<(String, f64, f64), String> {
    let parsed = || {
        let (name, range) = text.rsplit_once('=')?;
        let (low, high) = range.split_once("..")?;
        Some((name.trim().to_owned(), low.trim().parse().ok()?, high.trim().parse().ok()?))
    };
    let in_percent = |(_, low, high): &(String, f64, f64)| low <= high && *low >= 0.0 && *high <= 100.0;
    parsed()
        .filter(in_percent)
        .ok_or_else(|| "wanted is NAME=LOWEST..HIGHEST in percent, as medqa_4options=50..60.5".to_owned())
}

/// What `aloe export --help` says beneath the flags.
pub(crate) const EXPORT_HELP: &str = "Examples:\n  aloe export runs/eval --format markdown\n  aloe export runs/eval --format lm-eval --out \
results_2026.json\n  aloe export runs/eval --format model-index --repo me/my-aloe\n\nFormats: lm-eval (the results JSON of lm-evaluation-harness), \
eval-results (YAML files for a Hub repository's .eval_results/), model-index (YAML for a model card's front matter), csv, latex (needs booktabs), \
markdown, and prompt-engine (its output folder MODEL/../generations.json below --out, of generated answers). csv, latex and markdown have rows of their own for the \
questions that the training rows hold (dirty) and do not hold (clean), lm-eval has them in each task's metadata. The interval of a task is Wilson's, or, where \
questions share an abstract, that of clusters; of an average it is 1.96 standard errors to each side (normal). Figures that are not comparable with published ones keep their note, or a column that says so; they are left out of eval-results and \
model-index, and that is said.";

/// `aloe export`.
#[derive(Args)]
pub(crate) struct ExportArgs {
    /// Output folder of an evaluation
    pub(crate) run: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    pub(crate) format: ExportFormat,
    /// File to write; default standard output
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Name of the model on the Hub, ORG/NAME; default the name it was opened under
    #[arg(long, value_name = "ORG/NAME")]
    pub(crate) repo: Option<String>,
}

/// A form that other tools read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// Results JSON of lm-evaluation-harness
    LmEval,
    /// YAML for a Hub repository's .eval_results folder
    EvalResults,
    /// YAML for a model card's front matter
    ModelIndex,
    /// One row a task and group
    Csv,
    /// A table for a paper
    Latex,
    /// A table for a README
    Markdown,
    /// prompt_engine's output folder, below --out
    PromptEngine,
}
