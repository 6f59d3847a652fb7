//! A model in this process: decoder, tokenizer and identity, opened once and shared by all calls.

use crate::engine::EngineIdentity;
use crate::memory::default_kv_budget_bytes;
use crate::prefixes::{Prefixes, SharedPrefixes};
use crate::walk::{LayerPages, Selection, Walk};
use crate::{EngineCounts, EngineOptions, Error, Prompt, Result, ScoreRequest, encode};
use aloe_model::{Decoder, KvCache, KvMeter, ModelSource, Pass, TreePiece, WeightFormat};
use aloe_tensor::{Device, Dtype};
use aloe_text::TextModel;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Weights, tokenizer and limits of a local model.
pub struct Local {
    pub(crate) decoder: Decoder,
    pub(crate) text: TextModel,
    pub(crate) identity: EngineIdentity,
    pub(crate) kv_budget_bytes: usize,
    pub(crate) max_batch: usize,
    /// [`PACK_TOKENS`], but in tests.
    pub(crate) pack_tokens: usize,
    pub(crate) kv_meter: Arc<KvMeter>,
    pub(crate) prefixes: SharedPrefixes,
    counts: Mutex<EngineCounts>,
}

/// The most tokens that go through the decoder in one packed batch, whatever the length of a text: it bounds the memory of activations.
/// Results do not depend on it.
const PACK_TOKENS: usize = 2048;

impl Local {
    /// Opens a Hugging Face folder or a `.gguf` file.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Self> {
        let source = ModelSource::open(path)?;
        let text = match source.gguf_metadata() {
            Some(metadata) => TextModel::from_gguf(metadata)?,
            None => TextModel::open(path)?,
        };
        let threads = if options.threads == 0 { available_threads() } else { options.threads };
        let device = Device::cpu(threads);
        let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into());
        let format = weight_format(&source, options.format)?;
        let identity = EngineIdentity {
            name,
            weights: source.digest()?,
            text: text.digest(),
            dtype: format.name().to_owned(),
            path: device.isa().name().to_owned(),
        };
        let decoder = Decoder::open_to_answer(&source, format, &device)?;
        let kv_budget_bytes = options.kv_budget_bytes.unwrap_or_else(default_kv_budget_bytes);
        Ok(Self {
            decoder,
            text,
            identity,
            kv_budget_bytes,
            max_batch: options.max_batch.max(1),
            pack_tokens: PACK_TOKENS,
            kv_meter: Arc::new(KvMeter::default()),
            prefixes: Arc::new(Mutex::new(Prefixes::new(kv_budget_bytes))),
            counts: Mutex::new(EngineCounts::default()),
        })
    }

    /// A model that is in memory already, such as one in training: its weights are shared, not copied. `name` stands for its
    /// weights, which have no digest; nothing of it belongs into an answer cache.
    pub fn over(decoder: Decoder, text: TextModel, name: &str) -> Self {
        let identity = EngineIdentity {
            name: name.to_owned(),
            weights: name.to_owned(),
            text: text.digest(),
            dtype: if decoder.dtype == Dtype::F32 { "f32" } else { "bf16" }.to_owned(),
            path: decoder.device.isa().name().to_owned(),
        };
        let kv_budget_bytes = default_kv_budget_bytes();
        Self {
            decoder,
            text,
            identity,
            kv_budget_bytes,
            max_batch: EngineOptions::default().max_batch,
            pack_tokens: PACK_TOKENS,
            kv_meter: Arc::new(KvMeter::default()),
            prefixes: Arc::new(Mutex::new(Prefixes::new(kv_budget_bytes))),
            counts: Mutex::new(EngineCounts::default()),
        }
    }

    /// The ids of a prompt, checked against vocabulary and context.
    pub(crate) fn prompt_ids(&self, id: &str, prompt: &Prompt) -> Result<Vec<u32>> {
        let ids = encode::prompt_ids(&self.text, prompt)?;
        self.check_prompt(id, &ids)?;
        Ok(ids)
    }

    /// Prompt and continuation ids of a score request.
    pub(crate) fn score_ids(&self, request: &ScoreRequest) -> Result<(Vec<u32>, Vec<Vec<u32>>)> {
        let (prompt_ids, continuations) = encode::score_ids(&self.text, request)?;
        for (at, ids) in continuations.iter().enumerate() {
            if ids.is_empty() {
                let reason = format!("continuation {} has no tokens, so there is nothing to score", at + 1);
                return Err(Error::Request { id: request.id.clone(), reason });
            }
            self.check_ids(&request.id, ids)?;
        }
        self.check_prompt(&request.id, &prompt_ids)?;
        self.check_context(&request.id, &prompt_ids, &continuations)?;
        Ok((prompt_ids, continuations))
    }

    fn check_prompt(&self, id: &str, ids: &[u32]) -> Result<()> {
        self.check_ids(id, ids)?;
        if ids.is_empty() {
            return Err(Error::Request {
                id: id.to_owned(),
                reason: "the prompt has no tokens; the model has no BOS token to start from".to_owned(),
            });
        }
        Ok(())
    }

    fn check_ids(&self, id: &str, ids: &[u32]) -> Result<()> {
        let vocab_size = self.decoder.config.vocab_size;
        match ids.iter().find(|&&token| token as usize >= vocab_size) {
            Some(token) => Err(Error::Request {
                id: id.to_owned(),
                reason: format!("token id {token} is outside the model's vocabulary of {vocab_size}"),
            }),
            None => Ok(()),
        }
    }

    pub(crate) fn check_context(&self, id: &str, prompt_ids: &[u32], continuations: &[Vec<u32>]) -> Result<()> {
        let longest = prompt_ids.len() + continuations.iter().map(Vec::len).max().unwrap_or(0);
        let limit = self.context_len();
        if longest > limit {
            return Err(Error::Request {
                id: id.to_owned(),
                reason: format!(
                    "{longest} tokens exceed the model's context of {limit}; shorten the prompt or use fewer shots"
                ),
            });
        }
        Ok(())
    }

    /// Refuses a text whose keys and values alone exceed the budget.
    pub(crate) fn check_kv_budget(&self, id: &str, n_tokens: usize) -> Result<()> {
        let needed = KvCache::bytes_of(&self.decoder, n_tokens);
        if needed > self.kv_budget_bytes {
            return Err(Error::Request {
                id: id.to_owned(),
                reason: format!(
                    "keys and values of {n_tokens} tokens take {:.1} MiB, more than the budget of {:.1} MiB; raise it with \
                     --kv-budget (a quarter of the free memory is the default), shorten the prompt or ask for fewer new tokens",
                    needed as f64 / 1_048_576.0,
                    self.kv_budget_bytes as f64 / 1_048_576.0
                ),
            });
        }
        Ok(())
    }

    /// The pages of one layer that fit into so many bytes.
    pub(crate) fn layer_pages(&self, free_bytes: usize) -> LayerPages {
        let n_layers = self.decoder.config.num_hidden_layers;
        LayerPages { n: free_bytes / (KvCache::bytes_of(&self.decoder, 1) / n_layers), n_layers }
    }

    /// One pass through the decoder for the hidden states of rows `wanted`, counted.
    pub(crate) fn pass(
        &self,
        pieces: &[TreePiece<'_>],
        tokens: &[&[u32]],
        caches: &mut [&mut KvCache],
        wanted: &[usize],
    ) -> Result<Pass> {
        let pass = self.decoder.run_for(pieces, tokens, caches, wanted)?;
        let n_tokens = pass.rows.last().map_or(0, |rows| rows.end as u64);
        self.count(|counts| {
            counts.n_computed_tokens += n_tokens;
            counts.largest_pass_tokens = counts.largest_pass_tokens.max(n_tokens);
        });
        Ok(pass)
    }

    /// [`Walk::select_alone`] with what comes before the last tokens run.
    pub(crate) fn select_alone(&self, walk: &mut Walk, held: impl Fn(usize) -> bool) -> Result<Selection> {
        walk.select_alone(self.pack_tokens, held, |ids, cache| self.pass(&[], &[ids], &mut [cache], &[]).map(drop))
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut EngineCounts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What was computed since the model was opened.
    pub fn counts(&self) -> EngineCounts {
        let counts = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let (kv_budget_bytes, peak_kv_bytes) = (self.kv_budget_bytes as u64, self.kv_meter.peak_bytes() as u64);
        EngineCounts { kv_budget_bytes, peak_kv_bytes, ..counts }
    }

    /// Tokens of the longest text that the context and the memory budget have room for.
    pub(crate) fn room_tokens(&self) -> usize {
        let n_pages = self.kv_budget_bytes / KvCache::bytes_of(&self.decoder, 1);
        (n_pages * KvCache::PAGE).min(self.context_len())
    }

    /// The model's context in tokens.
    pub(crate) fn context_len(&self) -> usize {
        self.decoder.config.max_position_embeddings
    }
}

/// The form that was asked for, or the model's own.
fn weight_format(source: &ModelSource, asked: Option<WeightFormat>) -> Result<WeightFormat> {
    match (asked, source.gguf_metadata()) {
        (Some(WeightFormat::Q8 | WeightFormat::Q4), Some(_)) => Err(Error::Open {
            model: source.path.display().to_string(),
            reason: "its blocks are used as they are, rounding them again loses more; leave --quantize out, or write a folder \
                     with `aloe pull` and quantise that"
                .to_owned(),
        }),
        (Some(format), _) => Ok(format),
        (None, Some(_)) => Ok(WeightFormat::Stored),
        (None, None) => Ok(WeightFormat::Dense(Dtype::Bf16)),
    }
}

/// Cores this process may use.
pub(crate) fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
