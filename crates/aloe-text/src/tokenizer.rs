//! Ids of texts and texts of ids, over the tokenizer file that the model ships.
//!
//! `encode_plain` is the only way in for anything a user wrote: no control token can come out of it. `encode_markup` is for text that
//! the operator wrote (templates, forged prompts of a red team). Truncation and padding settings in the file are ignored: a cut
//! happens where it is counted, not here.

use crate::added::AddedTokens;
use crate::gguf::{TokenizerFiles, tokenizer_from_gguf};
use crate::plain::{Place, PlainEncoders, encode_error};
use crate::{DecodeStream, Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;
use tokenizers::Tokenizer as HfTokenizer;

/// A tokenizer; cloning shares it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    origin: String,
    full: HfTokenizer,
    plain: PlainEncoders,
    added: AddedTokens,
    bos: Option<(String, u32)>,
    eos: Option<(String, u32)>,
    pad: Option<String>,
    unk: Option<String>,
    eos_ids: Vec<u32>,
    /// What the post-processor or `add_bos_token` puts around a raw text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// tokenizer.json and tokenizer_config.json as they will be written.
    json: Vec<u8>,
    config: Map<String, Value>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({}, {} tokens)", self.inner.origin, self.vocab_size())
    }
}

impl Tokenizer {
    /// Opens a folder with tokenizer.json and, if present, tokenizer_config.json, special_tokens_map.json and generation_config.json.
    pub fn open(dir: &Path) -> Result<Tokenizer> {
        Tokenizer::from_files(TokenizerFiles::read(dir)?)
    }

    /// Builds the tokenizer from GGUF metadata (`tokenizer.ggml.*`).
    pub fn from_gguf(metadata: &Map<String, Value>) -> Result<Tokenizer> {
        Tokenizer::from_files(tokenizer_from_gguf(metadata)?)
    }

    /// Builds the tokenizer from file contents already read.
    pub fn from_files(files: TokenizerFiles) -> Result<Tokenizer> {
        // The library's thread pool would compete with ours and gains nothing on single texts.
        tokenizers::utils::parallelism::set_parallelism(false);
        let TokenizerFiles { origin, tokenizer_json, mut config, special_tokens_map, generation_eos_ids } = files;
        let fail = |message: String| Error::Tokenizer { origin: origin.clone(), message };
        let mut full = HfTokenizer::from_bytes(&tokenizer_json).map_err(|e| fail(e.to_string()))?;
        full.with_truncation(None).map_err(|e| fail(e.to_string()))?;
        full.with_padding(None);
        let parsed: AddedOnly = serde_json::from_slice(&tokenizer_json).map_err(|e| fail(e.to_string()))?;
        let added = AddedTokens::from_json(&parsed.added_tokens);
        let plain = PlainEncoders::new(&full, &added, &origin)?;
        for key in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            if special_text(&config, key).is_none()
                && let Some(text) = special_text(&special_tokens_map, key)
            {
                config.insert(key.to_owned(), json!(text));
            }
        }
        let special = |key: &str| -> Result<Option<(String, u32)>> {
            let Some(text) = special_text(&config, key) else { return Ok(None) };
            let id = full.token_to_id(&text).ok_or_else(|| fail(format!("{key} `{text}` is not in the vocabulary")))?;
            Ok(Some((text, id)))
        };
        let (bos, eos) = (special("bos_token")?, special("eos_token")?);
        let mut eos_ids: Vec<u32> = eos.iter().map(|(_, id)| *id).collect();
        eos_ids.extend(generation_eos_ids);
        eos_ids.sort_unstable();
        eos_ids.dedup();
        let (prefix, suffix) = frame(&full, &plain, &config, bos.as_ref(), eos.as_ref())?;
        let (pad, unk) = (special_text(&config, "pad_token"), special_text(&config, "unk_token"));
        let inner = Inner {
            origin,
            full,
            plain,
            added,
            bos,
            eos,
            pad,
            unk,
            eos_ids,
            prefix,
            suffix,
            json: tokenizer_json,
            config,
        };
        Ok(Tokenizer { inner: Arc::new(inner) })
    }

    /// Ids of plain text: no control token is ever recognised, no BOS is added. Equal to Hugging Face's
    /// `encode(text, add_special_tokens=False)` when the text holds no control token.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.inner.plain.encode(text, Place::Start)
    }

    /// Ids of plain text that goes on where another text stopped: no space is put before it.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        self.inner.plain.encode(text, Place::Middle)
    }

    /// Ids of text written by the operator: added tokens are recognised, no BOS is added. Never for user text.
    pub fn encode_markup(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.full.encode_fast(text, false).map_err(|e| encode_error(text, e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of plain text with all that the tokenizer puts around it (BOS for Llama, `[CLS]` and `[SEP]` for BERT).
    pub fn encode_framed(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.with_bos(self.encode_plain(text)?);
        ids.extend_from_slice(&self.inner.suffix);
        Ok(ids)
    }

    /// Puts before the ids what the tokenizer puts before a raw text: BOS, or nothing. Not a second time.
    pub fn with_bos(&self, ids: Vec<u32>) -> Vec<u32> {
        if self.inner.prefix.is_empty() || ids.starts_with(&self.inner.prefix) {
            return ids;
        }
        let mut all = self.inner.prefix.clone();
        all.extend(ids);
        all
    }

    /// Text of the ids; with `skip_special` without control tokens.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.full.decode(ids, skip_special).map_err(|e| Error::Decode { len: ids.len(), message: e.to_string() })
    }

    /// Text of ids that arrive one by one.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream {
        DecodeStream::new(self.clone(), skip_special)
    }

    /// Id of a token written as in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.full.token_to_id(token)
    }

    /// The token as written in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.full.id_to_token(id)
    }

    /// Number of tokens, added ones included. The model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.full.get_vocab_size(true)
    }

    /// The BOS token's id, whether or not the tokenizer adds it.
    pub fn bos(&self) -> Option<u32> {
        self.inner.bos.as_ref().map(|(_, id)| *id)
    }

    /// The BOS token's text.
    pub fn bos_token(&self) -> Option<&str> {
        self.inner.bos.as_ref().map(|(text, _)| text.as_str())
    }

    /// The EOS token's text.
    pub fn eos_token(&self) -> Option<&str> {
        self.inner.eos.as_ref().map(|(text, _)| text.as_str())
    }

    /// The padding token's text.
    pub fn pad_token(&self) -> Option<&str> {
        self.inner.pad.as_deref()
    }

    /// The text of the token for what the vocabulary cannot express.
    pub fn unk_token(&self) -> Option<&str> {
        self.inner.unk.as_deref()
    }

    /// EOS ids: the tokenizer's and those of generation_config.json, sorted.
    pub fn eos_ids(&self) -> &[u32] {
        &self.inner.eos_ids
    }

    /// Whether a raw text gets BOS.
    pub fn adds_bos(&self) -> bool {
        !self.inner.prefix.is_empty()
    }

    /// Whether the id is a control token: any added token that is not white space.
    pub fn is_control(&self, id: u32) -> bool {
        self.inner.added.contains_id(id)
    }

    /// All control tokens as (text, id).
    pub fn control_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.inner.added.iter().map(|token| (token.content.as_str(), token.id))
    }

    /// File or "GGUF metadata", for messages.
    pub fn origin(&self) -> &str {
        &self.inner.origin
    }

    /// Bytes of tokenizer.json.
    pub fn json(&self) -> &[u8] {
        &self.inner.json
    }

    /// Contents of tokenizer_config.json as read, special tokens completed.
    pub fn config(&self) -> &Map<String, Value> {
        &self.inner.config
    }

    pub(crate) fn plain(&self) -> &PlainEncoders {
        &self.inner.plain
    }

    pub(crate) fn added(&self) -> &AddedTokens {
        &self.inner.added
    }
}

#[derive(serde::Deserialize)]
struct AddedOnly {
    #[serde(default)]
    added_tokens: Vec<Value>,
}

/// A special token in tokenizer_config.json is a string or an object with `content`.
pub(crate) fn special_text(config: &Map<String, Value>, key: &str) -> Option<String> {
    let value = config.get(key)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// What goes before and after a raw text. `add_bos_token` or `add_eos_token` in the configuration replaces the post-processor, as in
/// transformers 5.23 (`TokenizersBackend.update_post_processor`); otherwise the post-processor is asked with one letter.
fn frame(
    full: &HfTokenizer,
    plain: &PlainEncoders,
    config: &Map<String, Value>,
    bos: Option<&(String, u32)>,
    eos: Option<&(String, u32)>,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let flag = |key: &str| config.get(key).and_then(Value::as_bool);
    let (add_bos, add_eos) = (flag("add_bos_token"), flag("add_eos_token"));
    if add_bos.is_some() || add_eos.is_some() {
        let take = |wanted: Option<bool>, token: Option<&(String, u32)>| match (wanted, token) {
            (Some(true), Some((_, id))) => vec![*id],
            _ => Vec::new(),
        };
        return Ok((take(add_bos, bos), take(add_eos, eos)));
    }
    let bare = plain.encode("a", Place::Start)?;
    let framed = full.encode_fast("a", true).map_err(|e| encode_error("a", e))?;
    let framed = framed.get_ids();
    let at = framed.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
    Ok((framed[..at].to_vec(), framed[(at + bare.len()).min(framed.len())..].to_vec()))
}
