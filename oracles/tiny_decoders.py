"""Tiny decoders with weights from an integer formula, for the training oracles. Twin of crates/aloe-model/src/testing.rs."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM


def name_hash(name):
    h = 2166136261
    for byte in name.encode():
        h = ((h ^ byte) * 16777619) & 0xFFFFFFFF
    return h


def fill(name, n):
    """n values in [-1, 1), each a multiple of 2^-15."""
    i = np.arange(n, dtype=np.uint64)
    h = (i * np.uint64(2654435761) + np.uint64(name_hash(name))) & np.uint64(0xFFFFFFFF)
    h ^= h >> np.uint64(15)
    h = (h * np.uint64(2246822519)) & np.uint64(0xFFFFFFFF)
    h ^= h >> np.uint64(13)
    h = (h * np.uint64(3266489917)) & np.uint64(0xFFFFFFFF)
    h ^= h >> np.uint64(16)
    return ((h >> np.uint64(16)).astype(np.float64) - 32768.0) / 32768.0


def set_weights(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            value = torch.tensor(fill(name, p.numel()), dtype=torch.float64).reshape(p.shape)
            if "norm" in name:
                value = 1.0 + 0.25 * value
            elif name.endswith("bias"):
                value = 0.125 * value
            elif "embed" not in name:
                value = 0.25 * value
            p.copy_(value.float())
    return model


COMMON = dict(
    vocab_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    bos_token_id=1, eos_token_id=2, attn_implementation="eager",
)


def llama():
    scaling = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
    rope = dict(rope_theta=10000.0, **scaling)
    config = LlamaConfig(hidden_size=64, intermediate_size=96, rms_norm_eps=1e-5, rope_parameters=rope, tie_word_embeddings=False, **COMMON)
    return set_weights(LlamaForCausalLM(config)).float()


def qwen2():
    rope = dict(rope_theta=1000000.0, rope_type="default")
    config = Qwen2Config(hidden_size=32, intermediate_size=48, rms_norm_eps=1e-6, rope_parameters=rope, tie_word_embeddings=True, **COMMON)
    return set_weights(Qwen2ForCausalLM(config)).float()


def tokens(name, n):
    return [int(v) for v in (fill(name, n) + 1.0) * 32]
