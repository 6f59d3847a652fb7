//! Flags and help of `aloe serve`.

use super::threads;
use crate::weights::{DtypeName, Quantize};
use clap::Args;

pub(super) const SERVE_HELP: &str = "Example:\n  aloe serve runs/quickstart/dpo-2 --port 8000\n  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: \
    application/json' -d '{\"model\": \"dpo-2\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello.\"}]}'\n  ALOE_API_KEY=... aloe serve \
    models/smollm2 --host 0.0.0.0\n\nAnswers GET /health, GET /v1/models, POST /v1/completions, POST /v1/chat/completions and POST /v1/embeddings (the last \
    token's state) as OpenAI and vLLM do, streams too. The model's name is that of its folder or file. /v1/completions takes texts or token ids and tells the log-probabilities of the \
    prompt with echo and logprobs (max_tokens 0 or 1), which is what lm-evaluation-harness (local-completions) and `aloe eval \
    http://...` score by. A field that is not known, or cannot be honoured, is refused by its name. Text never becomes a control token; a \
    client that renders its own template sends ids. An answer ends with finish_reason length where the context is full; a prompt that does \
    not fit is refused. With a seed an answer is the same each time, whatever else is served, and sample i is that of seed + i alone; \
    without one it is another each time.\n\nWith ALOE_API_KEY set, every route but /health wants `Authorization: Bearer KEY`; without it only \
    addresses of this machine are listened on, and requests to another Host than an address or localhost are refused. When --max-requests wait or run, a further one gets 429 and Retry-After. A client that \
    goes away ends its answer at the next token. One line on standard output names the address once requests are answered. SIGTERM and \
    Ctrl-C take no more requests, end what runs within 25 seconds and exit with 0 and 130. Nothing that is asked or answered is written anywhere.";

#[derive(Args)]
pub(crate) struct ServeArgs {
    /// Folder or .gguf file
    pub(crate) model: String,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// Port; 0 takes a free one
    #[arg(long, default_value_t = 8000)]
    pub(crate) port: u16,
    /// Requests that wait or run at most, each prompt of a request counted
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_requests: u32,
    /// Type of the weights in memory; default bf16, for a .gguf file its blocks as they are
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<DtypeName>,
    /// Round the weights of a folder to blocks on load
    #[arg(long, value_enum)]
    pub(crate) quantize: Option<Quantize>,
    /// The most memory for keys and values, in MiB; default a quarter of what is free. Results do not depend on it
    #[arg(long, value_name = "MIB")]
    pub(crate) kv_budget: Option<usize>,
    /// Threads; 0 takes all cores. Results do not depend on it
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub(crate) threads: usize,
}
