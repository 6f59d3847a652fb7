//! Flags and help of `aloe embed` and `aloe rerank`.

use super::{MAX_TIMEOUT_S, threads};
use clap::Args;
use std::path::PathBuf;

pub(super) const EMBED_HELP: &str = "Example:\n  echo '{\"id\": \"1\", \"text\": \"Insulin is made in the pancreas.\"}' > texts.jsonl\n  aloe embed \
     models/all-MiniLM-L6-v2 --requests texts.jsonl --out vectors.jsonl\n\nA row has id and text. The model is a Hugging Face \
     folder: a BERT-type sentence encoder with mean or CLS pooling, as its 1_Pooling says (mean without one), or a causal model, of \
     which the last token's state is taken; or a server's /v1/embeddings. Local weights are used in f32.\n\nWrites one JSON object a text, in their order: id; \
     embedding, a vector of unit length; n_tokens read, the frame such as [CLS] and [SEP] included (null where a server does not tell); n_cut_tokens, those at the end of \
     a text beyond the model's length, which were not read. A text that has no embedding gets id and error instead, the others go on, \
     and the exit code is not 0. With --out and --json, standard output gets one object with out, n_rows, n_errors and n_cut, the \
     number of texts cut.";

pub(super) const RERANK_HELP: &str = "Example:\n  echo '{\"id\": \"1\", \"query\": \"Where is insulin made?\", \"texts\": [\"In the pancreas.\", \"In the \
     liver.\"]}' > r.jsonl\n  aloe rerank models/ms-marco-MiniLM-L6-v2 --requests r.jsonl --out ranks.jsonl\n\nA row has id, query \
     and texts. The model is a Hugging Face folder of a BertForSequenceClassification with one label, which reads query and text \
     together. Weights are used in f32.\n\nWrites one JSON object a query, in their order: id; scores, one logit a text in the order of \
     texts, higher answers the query better; ranked, the places of the texts from the best on, counted from 0; n_cut_tokens, a number \
     a text: a pair beyond the model's length loses tokens from the longer side first. With --out and --json, standard output gets one \
     object with out, n_rows, n_errors and n_cut, the number of texts cut.";

/// Rows from a file and where their answers go.
#[derive(Args)]
pub(crate) struct EncoderFileArgs {
    /// Rows, one JSON object a line
    #[arg(long)]
    pub(crate) requests: PathBuf,
    /// File to write; default standard output
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// With --out, print its name and numbers as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct EmbedArgs {
    /// Folder of a sentence encoder or of a causal model, or http(s)://host:port/v1#model
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) file: EncoderFileArgs,
    /// The longest that an endpoint's one answer is waited for, before it is asked again; default 600
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=MAX_TIMEOUT_S))]
    pub(crate) request_timeout: Option<u64>,
    /// Threads; 0 takes all cores. Results do not depend on it
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub(crate) threads: usize,
}

#[derive(Args)]
pub(crate) struct RerankArgs {
    /// Folder of a cross-encoder with one label
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) file: EncoderFileArgs,
    /// Threads; 0 takes all cores. Results do not depend on it
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub(crate) threads: usize,
}
