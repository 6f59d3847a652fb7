//! Every settable key of every kind of stage with its unit and default, for `--help`.
//!
//! The sentences stand here once; defaults are taken from the settings themselves, and tests hold the names and the choices
//! against what the reader of the settings accepts, so that a new key cannot be left without help.

use super::eval_stage::EvalStage;
use super::redteam_stage::RedteamStage;
use serde_json::Value;

/// A key and what it means, with its unit.
pub(super) type Key = (&'static str, &'static str);

/// Keys that an optimizer loop has, whatever it trains on.
const LOOP: &[Key] = &[
    ("lr", "peak learning rate, above 0"),
    ("max_steps", "the most optimizer steps"),
    ("warmup_steps", "optimizer steps of the linear rise from 0"),
    ("warmup_ratio", "the same as a share of all steps (0 to below 1), rounded up; 0 takes warmup_steps"),
    ("schedule", "learning rate after the warm-up: cosine, linear or constant"),
    ("lr_floor", "where the schedule ends, as a share of lr (0 to 1); not with constant"),
    ("betas", "AdamW's two decay rates"),
    ("eps", "AdamW's epsilon"),
    ("weight_decay", "decoupled weight decay; norms and biases never decay"),
    ("clip", "largest norm of the gradient; 0 turns clipping off"),
    ("seed", "seed of order and held-out choice; default the recipe's or --seed"),
    (
        "dtype",
        "weights and matrix inputs while training: bf16 or f32 (masters are f32); default the recipe's or --dtype",
    ),
    (
        "recompute",
        "compute activations again in the backward pass instead of keeping them: less memory, a third more time, the same bits",
    ),
    ("chat_template", "llama3, chatml, alpaca or a .jinja file in place of the model's own"),
    (
        "shuffle",
        "another order in each epoch; false keeps the file's order, and in SFT that of packing: rows from long to short",
    ),
    ("eval_every", "steps between held-out evaluations (needs held-out rows); 0 is start and end only"),
    ("patience", "held-out evaluations in a row without a better one that end the training; 0 never does"),
    ("keep_best", "write the weights of the best held-out evaluation, not the last ones"),
    ("sample_every", "steps between answers to sample_prompts, also at start and end, into samples.jsonl; 0 is none"),
    ("sample_prompts", "user messages that the model in training answers, greedily"),
    ("sample_tokens", "the most tokens of such an answer"),
    ("checkpoint_every", "steps between checkpoints, and behind the last step; 0 is only where a run is stopped"),
    ("keep_last", "checkpoints kept"),
    (
        "on_nonfinite",
        "stop before the step, or skip it (three in a row stop): weights and AdamW stay as they are, the schedule goes on",
    ),
    (
        "on_spike",
        "loss or gradient norm 6 sigma above the last 128 steps (after 64): stop before the step, skip it, or keep it and count",
    ),
    ("lora", "table, see below: train low-rank updates beside frozen weights; by default all weights are trained"),
];

const LORA: &[Key] = &[
    ("rank", "inner size of the updates, at most the smaller side of each target"),
    ("alpha", "updates are scaled by alpha / rank"),
    (
        "targets",
        "matrices of each layer that get one; default all: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
    ),
    ("dropout", "share of an update's inputs dropped while training, 0 to below 1; SFT only"),
    ("base", "frozen weights: dense (in dtype) or q8 (8-bit blocks: a quarter of the memory of dense bf16)"),
    (
        "train_embeddings",
        "train embedding and head too, whole; needed where the template's tokens have untrained rows in the start model",
    ),
];

/// What `lora` does, under its keys.
const LORA_NOTE: &str = "With lora, adapter/ (PEFT's format) is written too; model/ and master/ hold the merged weights. LoRA wants about ten \
                         times the lr of full training.\nOn the command line: --set lora.rank=16, or --set 'lora={ rank = 16, base = \"q8\" }'.\n";

const SFT: &[Key] = &[
    ("epochs", "passes over the rows; epochs or max_steps is required, the smaller decides"),
    ("max_len", "tokens of a packed row"),
    (
        "long_rows",
        "rows longer than max_len: drop (counted), or split at turns, and in windows where one exchange is too long",
    ),
    ("batch_size", "packed rows of max_len tokens per optimizer step"),
    ("micro_batch_size", "packed rows per forward pass: a matter of memory"),
    ("neftune_alpha", "NEFTune's noise on the embeddings while training (the paper: 5 to 15), 1000 at most; 0 is none"),
    (
        "held_out_share",
        "share of the rows (0 to 1) held out when the data stage held out none; rounded down, to one or more",
    ),
];

const DPO: &[Key] = &[
    ("epochs", "passes over the pairs"),
    ("max_len", "tokens of prompt plus one answer; longer pairs are dropped and counted"),
    (
        "truncate",
        "off, or prompt: take whole oldest turns out of a prompt until the pair fits; the system message and the last turn stay",
    ),
    ("batch_size", "pairs per optimizer step"),
    ("micro_batch_size", "pairs per forward pass: a matter of memory"),
    (
        "held_out_share",
        "share of the pairs (0 to 1) held out when the data stage held out none; rounded down, to one or more",
    ),
    ("chunks", "train on the shuffled pairs in this many parts, one after the other; needs epochs = 1"),
    (
        "reference",
        "with chunks, the reference is the model at stage_start or at chunk_start; held-out figures are told against stage_start",
    ),
    ("loss", "sigmoid (DPO), robust, hinge, ipo, sigmoid_norm (by answer length) or apo_zero"),
    ("beta", "strength of the tie to the reference"),
    ("label_smoothing", "assumed share of flipped labels, 0 to 0.5"),
    ("nll_weight", "weight of the chosen answers' negative log-probability per token, added to the loss; 0 is none"),
    ("reference_cache", "folder of reference log-probabilities that other runs find again; default none"),
];

const DATA: &[Key] = &[
    ("sources", "list of tables with the keys below; the order decides which of two duplicates stays"),
    ("output", "sft (conversations) or pairs (preference pairs)"),
    ("rules", "table of cleaning rules, see below"),
    (
        "identifiers",
        "of persons: off, report (counted), mask (replaced by their kind, as [DATE]) or drop (their rows): e-mail, phone, date, address, record number, SSN, NHS number, DNI/NIE, IBAN, payment card, names behind titles and labels. Not a de-identification",
    ),
    ("filters", "table, see below: rows dropped by length, language or repetition; default none"),
    ("dedup", "table, see below"),
    ("duplicates", "folder of a merge by `aloe data dedup`, taken in place of a search for duplicates"),
    ("verdicts", "file of `aloe data review`: rows that overlap an evaluation question stay where it says keep"),
    (
        "decontaminate",
        "files or folders of evaluation questions that no row may overlap, beside those that the recipe's own eval, merge-search and redteam stages score on; [] compares with none of either",
    ),
    (
        "meaning",
        "table, see below: rows that ask in other words what an evaluation question asks, by the input embedder; by default as below where that is given",
    ),
    ("quality", "table, see below: DEITA's complexity and quality by the input scorer; default none"),
    (
        "hold_out",
        "share of the rows, 0 to below 1, written to hold_out.jsonl; drawn before max_rows and weight, so of a capped source more is held out",
    ),
    ("seed", "seed of caps, weights, hold-out and order; default the recipe's or --seed"),
    ("stage", "pairs only: keep the rows of this stage number"),
    ("quarantine", "write broken rows to quarantine.jsonl (true) or to this file and go on; false stops at them"),
    ("commercial", "the same as use = [\"commercial\"]"),
    (
        "use",
        "list of what the result is for: commercial, derivatives (sharing them), other_terms (than the sources'), beyond_research; sources whose licence forbids one, or is not known, stop the run",
    ),
    ("tokenizer", "model folder whose tokenizer counts the rows' tokens"),
    ("template", "llama3, chatml or alpaca, for counting with a tokenizer that has no template"),
    (
        "rendered",
        "also write rendered.jsonl: the rows' input_ids and labels (-100 where the loss does not look) by tokenizer and template, of pairs prompt_ids, chosen_ids and rejected_ids, for other trainers",
    ),
    (
        "templates",
        "true puts one of 130 built-in instruction templates before each question whose task has some, with its subject; a table of lists by task takes the place of those lists",
    ),
    ("turn_tokens", "turn tokens that attack_styles forge: llama3 or chatml"),
];

const SOURCE: &[Key] = &[
    ("name", "unique; begins every row's id"),
    (
        "path",
        "file, or folder of .jsonl, .ndjson, .json, .csv, .tsv (also .gz) and .parquet files, or of .txt alone; or the folder of a stage (data, synthesis, redteam), whose rows are taken; in a recipe also stage:NAME, the rows of an earlier stage, or stage:NAME/FILE",
    ),
    ("licence", "as the publisher states it; \"unknown\" is refused"),
    (
        "dialect",
        "layout of the rows; found by their columns when absent. One of @DIALECTS@. Speakers of messages: @SPEAKERS@",
    ),
    (
        "columns",
        "own columns in place of a dialect: { prompt = .., response = .., rejected = .., system = .. }, or { question = .., options = .. (a list; or option_1, option_2, ..), one of answer_letter, answer_index (from 0), answer_number (from 1), answer_text, and explanation, context, subject }",
    ),
    (
        "max_rows",
        "at most so many training rows, drawn by the seed; rows of hold_out are drawn before, from all of the source",
    ),
    ("expect_rows", "rows that the files must hold, broken ones counted; another number stops the stage. Default any"),
    (
        "rating_gap",
        "HelpSteer: points of helpfulness, 1 to 4, that the better side of a pair must lie above the worse; default 1",
    ),
    ("weight", "times each training row appears: 2 twice, 0.5 every other row"),
    ("task", "sub-task named in the manifest"),
    ("subject", "subject of rows that name none"),
    (
        "split",
        "split of the published set that the rows are of; by default what their column split says, else the only split that their file's name names",
    ),
    ("system", "system message for rows without one"),
    ("attack_styles", "pairs only: wrap each red-team question in every attack style that is not held out"),
    ("rejected_openings", "pairs only: a fixed compliant opening as the rejected side where a row has none"),
    (
        "safe_answers",
        "red_team_samples only: file or folder of safe answers (by question_id, or by the question's text) as the chosen sides, before the model's own; default none",
    ),
];

const RULES: &[Key] = &[
    ("clean", "take out URLs, e-mail addresses, control characters, repeated spaces"),
    ("literal_breaks", "turn literal \\n and \\t of one-line texts into breaks"),
    ("drop_listed_questions", "drop questions on the list of Aloe-Beta's Table B5"),
    ("drop_listed_answers", "drop answers on the list of Table B6"),
    ("contentless_mcqa", "reduce contentless explanations to the answer line (Table B7)"),
    ("drop_empty", "drop rows with an empty question or answer"),
    ("unanswered_end", "take a user's last turn off a dialogue that nobody answered"),
    ("equal_sides", "drop pairs whose two sides are the same"),
    (
        "chosen_rated_below_rejected",
        "drop pairs whose ratings put the chosen side below the rejected one; default true",
    ),
    ("held_out_style", "drop red-team rows in an attack style that is kept for evaluation"),
    ("betraying", "drop synthetic rows whose reasoning betrays that the answer was given"),
    (
        "standardise",
        "texts in capitals alone to sentence case, curly quotes straight, repeated ! ? and commas once, no space before a stop",
    ),
];

const FILTERS: &[Key] = &[
    ("min_words", "the fewest words of a row's messages together; default no bound"),
    ("max_words", "the most; default no bound"),
    (
        "languages",
        "list of the languages that stay, as ISO 639-3 or 639-1 writes them: eng or en, spa or es; a row below 200 letters, or of which the language is not sure, stays. Default all",
    ),
    (
        "repetition",
        "drop rows with an answer of 50 words or more that repeats itself: lines, paragraphs and runs of words by Gopher's table A1",
    ),
];

const DEDUP: &[Key] = &[
    ("keep", "which row of duplicates stays: first (by sources, files and lines) or longest; default first"),
    ("exact", "rows equal but for case and punctuation"),
    (
        "minhash",
        "near duplicates: 14 x 8 bands, 11 x 9 for dialogues, as Datatrove; false keeps rows made from one template",
    ),
];

/// Of DEDUP's table, by a model.
const DEDUP_MEANING: &[Key] = &[(
    "semantic",
    "cosine (0.95, say) from which on two rows are duplicates by the input embedder, of 50,000 rows at most; default none",
)];

const MEANING: &[Key] = &[
    ("threshold", "cosine from which on a row is dropped, above 0 to 1; a judge's word goes before it"),
    ("neighbours", "nearest rows of each evaluation question that a judge is shown"),
    ("judge_from", "cosine from which on it is shown them; at the threshold and above it is shown every row"),
    ("judge_attempts", "the most replies asked for a pair, until one is True or False"),
];

const QUALITY: &[Key] = &[
    (
        "drop_lowest",
        "share of the scored rows, lowest complexity x quality first, that is dropped; rows without scores go too",
    ),
    (
        "tokenizer",
        "scorer behind an endpoint: folder or .gguf whose tokenizer makes the prompts' tokens; without it a server that has chat alone is asked behind its own template",
    ),
];

/// Inputs of a data stage, under its keys.
const DATA_INPUTS: &str = "Inputs of a recipe's stage, from = { embedder = .., judge = .., scorer = .. }: folders, .gguf files or http(s)://host:port/v1#model. \
                           embedder finds each row's nearest evaluation question by meaning; judge (with it) is asked whether the two are the \
                           same, True or False; scorer is one model or two, [complexity, quality].\n";

const EVAL: &[Key] = &[
    ("tasks", "list of task names, see below"),
    ("data", "folder with the benchmarks' files"),
    ("protocol", "whose wording and rules: aloe, lm-eval or prompt-engine"),
    (
        "strategy",
        "loglikelihood, next-letter (the most probable of A, B, .. as the next token), cot, sc-cot or medprompt",
    ),
    ("split", "test (reported) or validation (for choosing)"),
    (
        "shots",
        "examples before each question; by default 0 for loglikelihood and next-letter, 3 for cot and sc-cot, 5 for medprompt",
    ),
    ("limit", "only the first N questions of each task; then not comparable"),
    ("n_samples", "answers per question; by default 5 for sc-cot and medprompt, else 1"),
    ("shuffle", "options in another order in each sample; by default true for medprompt only"),
    (
        "temperature",
        "generated answers: 0 is greedy; by default 0.7 for sc-cot and medprompt (0.01 with prompt-engine), else 0",
    ),
    ("top_p", "generated answers: nucleus sampling, above 0 to 1; by default 1"),
    ("max_new_tokens", "the most tokens of a worked answer; by default 500"),
    ("stop", "list of texts that end a generated answer, beside the model's own end of turn"),
    (
        "chat_template",
        "prompts are conversations in the model's chat template; by default true for generated answers and for next-letter with server_template, else false (true for loglikelihood is lm-evaluation-harness's --apply_chat_template)",
    ),
    ("system", "system prompt in place of the protocol's own; \"\" for none"),
    (
        "retry",
        "none, or prompt-engine: samples without an answer are asked again up to nine times, hotter and longer, for comparison with that program; by default none",
    ),
    (
        "examples",
        "medprompt: file of worked examples, an examples.json of an earlier run or prompt_engine's generations.json, in place of those the model would write",
    ),
    ("neighbours", "medprompt: nearest, random or static (ablations); by default nearest"),
    ("include_same", "medprompt: let the test question itself be its example, as prompt_engine does; by default false"),
    (
        "rerank_factor",
        "medprompt: pool questions that the reranker sees for each example; by default 4 (3 with prompt-engine)",
    ),
    (
        "embedder",
        "medprompt: folder of a sentence encoder for the neighbours, or http(s)://host:port/v1#model; without it they are found by words",
    ),
    ("reranker", "medprompt: folder of a BERT cross-encoder with one label that puts the nearest questions in order"),
    ("pool_limit", "medprompt: the most pool questions that get a worked answer, at least 1; by default all"),
    ("pool_attempts", "medprompt: attempts per pool question; by default 5"),
    (
        "specialties",
        "a model that puts each question into one of 35 medical specialties, for accuracy by specialty: folder, .gguf or http(s)://host:port/v1#model, whose server renders the prompt; default none",
    ),
    (
        "expect_accuracy",
        "table of accuracies that must come out, NAME = [lowest, highest] in percent, of tasks, mmlu_medical or multimedqa; the exit code is 1 where one does not",
    ),
    (
        "trained_on",
        "list of data stages' folders or .jsonl files that the model was trained on: questions that they hold are scored apart; for a model of this program its records lead to them where they lie beside it",
    ),
    ("tokenizer", "endpoint: folder or .gguf whose tokenizer and template render the prompts"),
    ("server_template", "endpoint: the server renders chat messages (recorded as such), in place of a tokenizer"),
    ("quantize", "q8 or q4: round the weights of a folder to blocks on load; not with dtype f32"),
    ("kv_budget", "the most memory for keys and values, in MiB; default a quarter of what is free"),
    (
        "request_timeout",
        "endpoint: the longest that one answer is waited for before it is asked again, in seconds; default 600",
    ),
    ("connections", "endpoint: requests that a server is sent at once; by default 16"),
    (
        "answer_cache",
        "folder of answers kept on disk: a model is not asked again what it was asked before; default none",
    ),
    (
        "labels",
        "open tasks: a person's labels on some of the answers, JSON lines with task, id, label (0 or 1) and, to be checked, answer; default none",
    ),
    ("judge_max_new_tokens", "open tasks: the most tokens of a judge's reply; default 1500"),
    ("seed", "seed of draws, orders and sampling; default the recipe's or --seed"),
];

const REJUDGE: &[Key] = &[
    (
        "labels",
        "a person's labels on some of the answers, JSON lines with task, id, label (0 or 1) and, to be checked, answer; default none",
    ),
    ("judge_max_new_tokens", "the most tokens of a judge's reply"),
    (
        "request_timeout",
        "endpoint: the longest that one reply is waited for before it is asked again, in seconds; default 600",
    ),
];

const REDTEAM: &[Key] = &[
    ("questions", "file of base questions; those of the split are asked"),
    (
        "split",
        "whose questions are asked, default test; train: the rates are no evaluation, and the judged answers are a source of preference pairs",
    ),
    ("harmless", "file of harmless prompts whose refusals are counted beside"),
    ("judge", "judge model, http(s)://host:port/v1#model; without one no attack success rate is stated"),
    (
        "judge_prompt",
        "message (Llama Guard's prompt as a user message) or conversation (for a Llama Guard whose template writes it)",
    ),
    ("judge_tokenizer", "folder of the judge's tokenizer; without it the server renders the prompt"),
    ("judge_labels", "labelled responses that the judge's error is measured on; required with a judge"),
    ("n_prompts", "harmful prompts asked, over all styles and renderings; fewer if the set has fewer"),
    ("n_harmless", "harmless prompts asked, the first so many"),
    ("max_new_tokens", "the most tokens of a response"),
    ("styles", "attack styles; by default all: @STYLES@"),
    ("tokenizer", "endpoint: folder or .gguf whose tokenizer and template render the prompts"),
    ("server_template", "endpoint: the server renders chat messages (recorded as such)"),
    ("quantize", "q8 or q4: round the weights of a folder to blocks on load; not with dtype f32"),
    ("kv_budget", "the most memory for keys and values, in MiB; default a quarter of what is free"),
    (
        "request_timeout",
        "endpoint: the longest that one answer is waited for before it is asked again, in seconds; default 600",
    ),
    (
        "answer_cache",
        "folder of answers kept on disk: a model is not asked again what it was asked before; default none",
    ),
    ("system", "system prompt before every prompt"),
    ("seed", "seed of the sample; default the recipe's or --seed"),
];

const CARD: &[Key] = &[
    ("model_name", "name of the model, also the id in the code examples"),
    ("base_model", "the base model's name or Hub id"),
    ("developed_by", "who made it"),
    ("contact", "where to write to"),
    ("licence", "licence of the result, a Hub identifier"),
    ("also_licensed", "further licences that the result carries"),
    ("languages", "language codes, such as [\"en\"]"),
    (
        "power",
        "table: device_w (watts of a GPU with its share of the node, or of a machine without one), intensity_kg_per_kwh, intensity_source, pue (1 by default)",
    ),
    ("cited", "published figures of others: list of { what, value, source }"),
    ("warning", "a warning printed at the top"),
];

const HEADING: &str = "Settings: keys of --set KEY=VALUE, of --config FILE and of a recipe's stage";

/// The keys of `aloe sft`, with an example.
pub(crate) fn sft() -> String {
    let defaults = json_of(&aloe_train::SftConfig::default());
    format!(
        "{HEADING}\n{}{}\nlora\n{}{LORA_NOTE}\nExamples:\n  aloe sft --recipe recipes/quickstart.toml --stage sft-medical\n  aloe sft --model models/smollm2 \
         --data runs/x/data-medical --out runs/x/sft --set lr=2e-5 --set epochs=2\n\nWrites model/ (bf16), master/ (f32), \
         metrics.jsonl (a line a step), timing.jsonl, tensorboard/ (event files), samples.jsonl where asked for, report.html and \
         record.json into --out.",
        list(SFT, &defaults),
        list(LOOP, &defaults),
        list(LORA, &json_of(&aloe_train::LoraConfig::default()))
    )
}

/// The keys of `aloe dpo`, with an example.
pub(crate) fn dpo() -> String {
    let defaults = json_of(&aloe_train::DpoConfig::default());
    format!(
        "{HEADING}\n{}{}\nlora\n{}{LORA_NOTE}\nExample:\n  aloe dpo --model runs/x/merge --data runs/x/pairs-1 --out runs/x/dpo-1 --set lr=2e-7 --set beta=0.1\n\n\
         Writes model/ (bf16), master/ (f32), metrics.jsonl (a line a step), timing.jsonl, tensorboard/ (event files), samples.jsonl \
         where asked for, report.html and record.json into --out. The reference is the start model.",
        list(DPO, &defaults),
        list(LOOP, &defaults),
        list(LORA, &json_of(&aloe_train::LoraConfig::default()))
    )
}

/// A settings file for `aloe data run --config`.
pub(crate) const DATA_EXAMPLE: &str = r#"  output = "sft"
  hold_out = 0.05
  decontaminate = ["data/medqa_test.jsonl"]
  sources = [
      { name = "cot", path = "data/medqa-cot.jsonl", licence = "cc-by-nc-4.0", max_rows = 5000 },
      { name = "own", path = "data/own.csv", licence = "mit", columns = { prompt = "q", response = "a" } },
  ]
  [rules]
  literal_breaks = true
"#;

/// The keys of `aloe data run`, with an example file.
pub(crate) fn data() -> String {
    let (defaults, source) = data_defaults();
    format!(
        "{}\n{}\nEach source\n{}\nrules\n{}\nfilters\n{}\ndedup\n{}\nmeaning\n{}\nquality\n{}\n{DATA_INPUTS}\nExample of data.toml:\n{DATA_EXAMPLE}\nExamples:\n  aloe data run --config data.toml \
         --out runs/data\n  aloe data run --recipe recipes/quickstart.toml --stage data-medical\n\nWrites train.jsonl (conversations or \
         pairs, each with its id, source, licence, split, task and subject), hold_out.jsonl, manifest.json, report.html, ledger.jsonl, duplicates.jsonl, overlaps.jsonl, unjudged.jsonl (with a judge), scores.jsonl (with a scorer) and record.json into --out.",
        HEADING,
        list(DATA, &defaults),
        list(SOURCE, &source).replace("@DIALECTS@", &dialects().join(", ")).replace("@SPEAKERS@", aloe_data::SPEAKERS),
        list(RULES, &defaults["rules"]),
        list(FILTERS, &json_of(&aloe_data::Filters::default())),
        list(DEDUP, &defaults["dedup"]) + &list(DEDUP_MEANING, &defaults["dedup"]),
        list(MEANING, &json_of(&aloe_data::Meaning::default())),
        list(QUALITY, &json_of(&aloe_data::Quality::default())),
    )
}

/// The keys of `aloe eval`, with an example and the tasks.
pub(crate) fn eval() -> String {
    let tasks: Vec<String> = aloe_task::Task::all().into_iter().map(aloe_task::Task::name).collect();
    format!(
        "Settings: keys of --set KEY=VALUE and of a recipe's stage (those that are flags have the flag's default)\n{}\nTasks: {}; groups \
         mmlu_medical, multimedqa, starter\n\nExample:\n  aloe eval models/smollm2 --tasks medqa_4options,pubmedqa --data $ALOE_DATA --protocol \
         lm-eval --limit 200 --out runs/eval\n  aloe eval models/smollm2 --tasks starter_mcqa --data starter --strategy sc-cot --set \
         n_samples=5 --set temperature=0.7 --out runs/sc-cot\n  aloe eval models/smollm2 --tasks openmedqa --data $ALOE_DATA --judge \
         http://host:8000/v1#judge-a --judge models/judge-b --out runs/open\n\nOpen tasks ({}) are answered in free text, once: ROUGE and BLEU \
         against the reference, and with --judge each judge's verdicts, their majority (a tie is wrong) and full agreement. They are not mixed with \
         others. In a recipe the judges are an input: from = {{ model = .., judge = [..] }}. samples.jsonl holds question, reference, answer and verdicts, to be labelled by a person; `aloe rejudge` judges them \
         anew.\n\nWrites results.json, samples.jsonl, record.json and, but for open tasks, questions.jsonl into --out; `aloe view` shows them. An endpoint is sent \
         up to 100 requests of each task a second time, which do not count: what changes is the noise floor beside the score.",
        list(EVAL, &minimal::<EvalStage>(r#"{"tasks": [], "data": ""}"#)),
        tasks.join(", "),
        super::open_stage::open_names()
    )
}

/// The keys of `aloe rejudge`, with examples.
pub(crate) fn rejudge() -> String {
    format!(
        "Settings: keys of --set KEY=VALUE and of a recipe's stage, whose inputs are answers and judge\n{}\nExamples:\n  aloe rejudge runs/open \
         --judge http://host:8000/v1#judge-c --out runs/open-c\n  aloe rejudge runs/open --labels labels.jsonl --out runs/open-labelled\n\nThe \
         answers of RUN are judged anew, and its model is asked nothing; without --judge RUN's verdicts stand. With labels, a person's \
         verdicts on some of the answers, each judge's sensitivity and specificity are stated, and the accuracy corrected for them \
         (Rogan-Gladen).\n\nWrites results.json, samples.jsonl and record.json into --out; RUN is not changed.",
        list(REJUDGE, &minimal::<super::open_stage::RejudgeStage>("{}"))
    )
}

/// The keys of `aloe redteam`, with an example.
pub(crate) fn redteam() -> String {
    let defaults = minimal::<RedteamStage>(r#"{"questions": ""}"#);
    format!(
        "Settings: keys of --set KEY=VALUE and of a recipe's stage\n{}\nExample:\n  aloe redteam models/smollm2 --questions \
         starter/redteam/questions.jsonl --harmless starter/redteam/harmless.jsonl --set n_prompts=60 --out runs/redteam\n\nWrites \
         results.json, samples.jsonl and record.json into --out.",
        list(REDTEAM, &defaults).replace("@STYLES@", &styles().join(", "))
    )
}

/// The keys of `aloe card`, with an example. Its records come from the recipe's `from`.
pub(crate) fn card() -> String {
    let required = r#"{"model_name": "", "base_model": "", "developed_by": "", "contact": "", "licence": "", "languages": [],
        "power": {"device_w": 1.0, "intensity_kg_per_kwh": 1.0, "intensity_source": ""}}"#;
    format!(
        "Settings: keys of the recipe's stage\n{}\nExample:\n  aloe card --recipe recipes/quickstart.toml --stage card --out \
         runs/quickstart\n\nWrites README.md and record.json.",
        list(CARD, &minimal::<crate::card::CardConfig>(required))
    )
}

/// One line a key: name, default, meaning.
pub(super) fn list(keys: &[Key], defaults: &Value) -> String {
    keys.iter().map(|(name, about)| format!("  {name:<21} {:<13} {about}\n", shown(name, about, defaults))).collect()
}

/// The default of a key in TOML: `required` where the settings cannot be without it, `-` where there is none.
fn shown(name: &str, about: &str, defaults: &Value) -> String {
    match defaults.get(name) {
        _ if about.to_lowercase().contains("default ") => String::new(),
        // What is not there is not written either.
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::Object(_)) => String::new(),
        Some(Value::Array(items)) if items.is_empty() => "[]".to_owned(),
        Some(Value::Number(number)) => short(number.as_f64().unwrap_or_default()),
        Some(Value::Array(items)) => {
            let items: Vec<String> = items.iter().filter_map(Value::as_f64).map(short).collect();
            format!("[{}]", items.join(", "))
        }
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(value)) => value.to_string(),
    }
}

/// A number as people write it: `2e-5`, `0.9`, `2048`.
fn short(number: f64) -> String {
    // Of a setting in single precision its own digits, not those of its double.
    let single = number as f32;
    if f64::from(single) == number && single.abs() >= 1e-3 {
        return format!("{single}");
    }
    if number != 0.0 && number.abs() < 1e-3 { format!("{number:e}") } else { format!("{number}") }
}

fn json_of<T: serde::Serialize>(settings: &T) -> Value {
    serde_json::to_value(settings).unwrap_or_default()
}

/// The settings that `required` alone gives; in the place of each required key's value stands that it is required.
pub(super) fn minimal<T: serde::Serialize + serde::de::DeserializeOwned>(required: &str) -> Value {
    let mut given = serde_json::from_str::<T>(required).map_or(Value::Null, |settings| json_of(&settings));
    let names: Value = serde_json::from_str(required).unwrap_or_default();
    for (name, _) in names.as_object().into_iter().flatten() {
        given.as_object_mut().map(|given| given.insert(name.clone(), REQUIRED.into()));
    }
    given
}

const REQUIRED: &str = "required";

/// Defaults of a data stage and of one of its sources.
fn data_defaults() -> (Value, Value) {
    let stage = minimal::<aloe_data::DataConfig>(r#"{"sources": []}"#);
    let source = minimal::<aloe_data::SourceConfig>(r#"{"name": "", "path": "", "licence": ""}"#);
    (stage, source)
}

/// The names that a list of choices accepts, from the reader's own error.
fn choices<T: serde::de::DeserializeOwned>() -> Vec<String> {
    match serde_json::from_str::<T>("\"\\u0000\"") {
        Ok(_) => Vec::new(),
        Err(error) => quoted(&error.to_string()).into_iter().skip(1).collect(),
    }
}

fn dialects() -> Vec<String> {
    choices::<aloe_data::Dialect>().into_iter().filter(|name| name != "mapped").collect()
}

fn styles() -> Vec<String> {
    choices::<aloe_task::red_team::Style>()
}

/// What stands between back-quotes.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::super::search_keys::{SEARCH, SEARCH_STAGE};
    use super::super::search_stage::MergeSearchStage;
    use super::super::synthesis_stage::{SYNTHESIS, SynthesisStage};
    use super::*;
    use serde::de::DeserializeOwned;
    use std::collections::BTreeSet;

    /// The keys that `T` reads, from its error about one that it does not.
    fn accepted<T: DeserializeOwned>() -> BTreeSet<String> {
        let error = serde_json::from_str::<T>(r#"{"no such key": 1}"#).err().unwrap().to_string();
        assert!(error.contains("unknown field"), "{error}");
        quoted(&error).into_iter().skip(1).collect()
    }

    fn check<T: DeserializeOwned>(listed: &[&[Key]]) {
        let names: Vec<String> = listed.iter().flat_map(|keys| keys.iter()).map(|(name, _)| (*name).into()).collect();
        let set: BTreeSet<String> = names.iter().cloned().collect();
        assert_eq!(set.len(), names.len(), "a key is listed twice");
        assert_eq!(set, accepted::<T>(), "help lists other keys than the settings have");
    }

    #[test]
    fn help_lists_exactly_the_keys_that_the_settings_read() {
        check::<aloe_train::SftConfig>(&[SFT, LOOP]);
        check::<aloe_train::DpoConfig>(&[DPO, LOOP]);
        check::<aloe_train::LoraConfig>(&[LORA]);
        check::<aloe_data::DataConfig>(&[DATA]);
        check::<aloe_data::SourceConfig>(&[SOURCE]);
        check::<aloe_data::Rules>(&[RULES]);
        check::<aloe_data::Filters>(&[FILTERS]);
        check::<aloe_data::Dedup>(&[DEDUP, DEDUP_MEANING]);
        check::<aloe_data::Meaning>(&[MEANING]);
        check::<aloe_data::Quality>(&[QUALITY]);
        check::<EvalStage>(&[EVAL]);
        check::<super::super::open_stage::RejudgeStage>(&[REJUDGE]);
        check::<RedteamStage>(&[REDTEAM]);
        check::<SynthesisStage>(&[SYNTHESIS]);
        check::<crate::card::CardConfig>(&[CARD]);
        check::<MergeSearchStage>(&[SEARCH_STAGE]);
        check::<aloe_merge::search::SearchSettings>(&[SEARCH]);
    }

    /// Every choice that the reader accepts for a key stands in the key's sentence.
    fn check_choices<T: DeserializeOwned>(required: &str, keys: &[Key]) {
        for (name, about) in keys {
            let mut settings: Value = serde_json::from_str(required).unwrap();
            settings[*name] = Value::String("\u{0}".into());
            let Err(error) = serde_json::from_value::<T>(settings) else { continue };
            let error = error.to_string();
            if error.contains("unknown variant") {
                let about = about.replace("@DIALECTS@", &dialects().join(", "));
                for choice in quoted(&error).into_iter().skip(1).filter(|choice| choice != "mapped") {
                    assert!(about.contains(&choice), "{name}: {choice:?} is not in {about:?}");
                }
            }
        }
    }

    #[test]
    fn help_names_every_choice_of_a_key() {
        check_choices::<aloe_train::SftConfig>("{}", LOOP);
        check_choices::<aloe_train::SftConfig>("{}", SFT);
        check_choices::<aloe_train::DpoConfig>("{}", DPO);
        check_choices::<aloe_train::LoraConfig>("{}", LORA);
        check_choices::<aloe_data::DataConfig>(r#"{"sources": []}"#, DATA);
        check_choices::<aloe_data::SourceConfig>(r#"{"name": "", "path": "", "licence": ""}"#, SOURCE);
        assert!(dialects().len() > 15 && styles().len() == aloe_task::red_team::Style::ALL.len());
    }

    #[test]
    fn defaults_in_help_are_those_of_the_settings() {
        let sft = sft();
        for line in ["lr                    2e-5", "batch_size            8", "betas                 [0.9, 0.999]"] {
            assert!(sft.contains(line), "{line:?} is not in {sft}");
        }
        assert!(data().contains("name                  required"), "{}", data());
        assert!(eval().contains("tasks                 required"), "{}", eval());
        assert!(eval().contains("quantize              -"), "{}", eval());
        assert!(redteam().contains("n_prompts             120"), "{}", redteam());
    }

    /// By hand, from the settings: a key that may be absent is not required, however its absence is written.
    #[test]
    fn help_calls_required_what_the_settings_cannot_be_without_and_nothing_else() {
        let all =
            [sft(), dpo(), data(), eval(), rejudge(), redteam(), card(), super::super::synthesis_stage::synthesis()];
        let required: Vec<String> = all
            .iter()
            .flat_map(|text| text.lines())
            .filter(|line| line.starts_with("  ") && line.split_whitespace().nth(1) == Some("required"))
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .collect();
        let by_hand = [
            "sources",
            "name",
            "path",
            "licence",
            "tasks",
            "data",
            "questions",
            "model_name",
            "base_model",
            "developed_by",
            "contact",
            "licence",
            "languages",
            "power",
        ];
        assert_eq!(required, by_hand);
        let text = super::super::synthesis_stage::synthesis();
        assert!(text.contains("temperature           0.7           of attempts"), "{text}");
        assert!(data().contains("  chosen_rated_below_rejected               drop pairs"), "{}", data());
    }

    #[test]
    fn the_example_of_a_data_file_is_read_without_a_mistake() {
        let config: aloe_data::DataConfig = toml::from_str(DATA_EXAMPLE).unwrap();
        config.check().unwrap();
        assert_eq!(config.sources.len(), 2);
    }
}
