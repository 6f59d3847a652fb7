//! The one table of a decoder's tensors: Hugging Face name, GGUF name, shape, row permutation, decay group, role.
//!
//! Readers, writer, merger and optimizer all walk this table, so that a name is spelt in one place.

use crate::config::{Arch, Config};

/// How a GGUF file orders the rows of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowPermute {
    /// As in the Hugging Face checkpoint.
    None,
    /// Per head, row pairs (i, i + E/2) stand side by side: llama.cpp rotates neighbours, transformers rotates halves.
    /// Source: `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py.
    RopeHeads(usize),
}

/// Whether weight decay applies, by the rule of the Hugging Face Trainer: not to norms and biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamGroup {
    /// Matrices, the embedding included.
    Decay,
    /// Norm weights and biases.
    NoDecay,
}

/// What a tensor does in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Query projection `[H*E, D]`.
    Query,
    /// Its bias `[H*E]`.
    QueryBias,
    /// Key projection `[K*E, D]`.
    Key,
    /// Its bias `[K*E]`.
    KeyBias,
    /// Value projection `[K*E, D]`.
    Value,
    /// Its bias `[K*E]`.
    ValueBias,
    /// Output projection of attention `[D, H*E]`.
    Output,
    /// SwiGLU's gate `[F, D]`.
    Gate,
    /// SwiGLU's other input `[F, D]`.
    Up,
    /// Back to the hidden size `[D, F]`.
    Down,
    /// RMSNorm before attention `[D]`.
    InputNorm,
    /// RMSNorm before the feed-forward part `[D]`.
    PostNorm,
}

/// Where a tensor stands in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Token embedding `[V, D]`.
    Embed,
    /// A part of layer `i`, from 0.
    Layer(usize, Part),
    /// RMSNorm after the last layer `[D]`.
    FinalNorm,
    /// Output head `[V, D]`; absent when it is the embedding.
    Head,
    /// LoRA's A `[rank, K]` beside a matrix of layer `i`.
    LoraA(usize, Part),
    /// LoRA's B `[O, rank]` beside a matrix of layer `i`.
    LoraB(usize, Part),
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Name in Hugging Face folders.
    pub hf_name: String,
    /// Name in GGUF files.
    pub gguf_name: String,
    /// Row-major shape, rows first as in PyTorch.
    pub shape: Vec<usize>,
    /// Row order of the GGUF file.
    pub permute: RowPermute,
    /// Whether weight decay applies.
    pub group: ParamGroup,
    /// Where it stands in the model.
    pub role: Role,
}

impl TensorSpec {
    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The name of the embedding in Hugging Face folders.
pub const EMBED: &str = "model.embed_tokens.weight";
/// The name of the output head in Hugging Face folders.
pub const HEAD: &str = "lm_head.weight";

/// Every tensor of `config`'s model, in the order of the transformers state dict; without the head when it is tied.
pub fn tensors(config: &Config) -> Vec<TensorSpec> {
    let (d, v) = (config.hidden_size, config.vocab_size);
    let mut table = vec![whole(EMBED, "token_embd.weight", vec![v, d], Role::Embed)];
    for layer in 0..config.num_hidden_layers {
        table.extend(layer_tensors(config, layer));
    }
    table.push(whole("model.norm.weight", "output_norm.weight", vec![d], Role::FinalNorm));
    if !config.tie_word_embeddings {
        table.push(whole(HEAD, "output.weight", vec![v, d], Role::Head));
    }
    table
}

fn whole(hf_name: &str, gguf_name: &str, shape: Vec<usize>, role: Role) -> TensorSpec {
    let group = if shape.len() > 1 { ParamGroup::Decay } else { ParamGroup::NoDecay };
    TensorSpec { hf_name: hf_name.into(), gguf_name: gguf_name.into(), shape, permute: RowPermute::None, group, role }
}

fn layer_tensors(config: &Config, layer: usize) -> Vec<TensorSpec> {
    let (d, f) = (config.hidden_size, config.intermediate_size);
    let q_rows = config.num_attention_heads * config.head_dim;
    let kv_rows = config.num_key_value_heads * config.head_dim;
    let rows: [(Part, &str, &str, Vec<usize>); 12] = [
        (Part::Query, "self_attn.q_proj.weight", "attn_q.weight", vec![q_rows, d]),
        (Part::QueryBias, "self_attn.q_proj.bias", "attn_q.bias", vec![q_rows]),
        (Part::Key, "self_attn.k_proj.weight", "attn_k.weight", vec![kv_rows, d]),
        (Part::KeyBias, "self_attn.k_proj.bias", "attn_k.bias", vec![kv_rows]),
        (Part::Value, "self_attn.v_proj.weight", "attn_v.weight", vec![kv_rows, d]),
        (Part::ValueBias, "self_attn.v_proj.bias", "attn_v.bias", vec![kv_rows]),
        (Part::Output, "self_attn.o_proj.weight", "attn_output.weight", vec![d, q_rows]),
        (Part::Gate, "mlp.gate_proj.weight", "ffn_gate.weight", vec![f, d]),
        (Part::Up, "mlp.up_proj.weight", "ffn_up.weight", vec![f, d]),
        (Part::Down, "mlp.down_proj.weight", "ffn_down.weight", vec![d, f]),
        (Part::InputNorm, "input_layernorm.weight", "attn_norm.weight", vec![d]),
        (Part::PostNorm, "post_attention_layernorm.weight", "ffn_norm.weight", vec![d]),
    ];
    let is_bias = |part: Part| matches!(part, Part::QueryBias | Part::KeyBias | Part::ValueBias);
    rows.into_iter()
        .filter(|(part, ..)| config.attention_bias || !is_bias(*part))
        .map(|(part, hf, gguf, shape)| TensorSpec {
            permute: permutation(config, part),
            ..whole(
                &format!("model.layers.{layer}.{hf}"),
                &format!("blk.{layer}.{gguf}"),
                shape,
                Role::Layer(layer, part),
            )
        })
        .collect()
}

/// GGUF files of the `llama` architecture (Llama and Mistral) store q and k permuted; those of `qwen2` do not.
fn permutation(config: &Config, part: Part) -> RowPermute {
    match (config.arch, part) {
        (Arch::Llama | Arch::Mistral, Part::Query) => RowPermute::RopeHeads(config.num_attention_heads),
        (Arch::Llama | Arch::Mistral, Part::Key) => RowPermute::RopeHeads(config.num_key_value_heads),
        _ => RowPermute::None,
    }
}
