#!/usr/bin/env python3
"""Writes a model folder of Llama-3-8B's shape with seeded random bf16 weights (16.06 GB, seven shards), to measure loading, memory and
speed at real size without the real weights.

Config: that of meta-llama/Meta-Llama-3-8B (hidden 4096, 32 layers, 32 heads over 8 key/value heads, feed-forward 14336, vocabulary
128256, context 8192, rope theta 500000, untied head). Weights: uniform in +-0.035 (deviation 0.02, transformers' initializer_range)
rounded to bf16; norms are one. Tokenizer: the folder given as the second argument (the real Llama 3 tokenizer).

Python 3.9 or newer; numpy 2.x. About two minutes.

    python3 oracles/llama8b_shape.py OUT TOKENIZER_FOLDER [--layers 32]
"""
import argparse
import json
import pathlib
import shutil
import struct

import numpy as np

HIDDEN, HEADS, KV_HEADS, FFN, VOCAB, CONTEXT = 4096, 32, 8, 14336, 128256, 8192


def tensors(layers):
    kv = HIDDEN // HEADS * KV_HEADS
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for i in range(layers):
        at = f"model.layers.{i}."
        yield at + "input_layernorm.weight", (HIDDEN,)
        for name, shape in [("q", (HIDDEN, HIDDEN)), ("k", (kv, HIDDEN)), ("v", (kv, HIDDEN)), ("o", (HIDDEN, HIDDEN))]:
            yield at + f"self_attn.{name}_proj.weight", shape
        yield at + "post_attention_layernorm.weight", (HIDDEN,)
        for name, shape in [("gate", (FFN, HIDDEN)), ("up", (FFN, HIDDEN)), ("down", (HIDDEN, FFN))]:
            yield at + f"mlp.{name}_proj.weight", shape
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def values(rng, shape):
    n = int(np.prod(shape))
    if len(shape) == 1:
        return np.full(n, 0x3F80, dtype="<u2")
    # 4096 bf16 numbers uniform in +-0.035, drawn at random.
    table = (np.linspace(-0.035, 0.035, 4096, dtype="<f4").view("<u4") >> 16).astype("<u2")
    out = np.empty(n, dtype="<u2")
    for start in range(0, n, 1 << 24):
        stop = min(n, start + (1 << 24))
        out[start:stop] = table[rng.integers(0, 4096, stop - start, dtype=np.uint16)]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("tokenizer", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "mlp_bias": False, "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": options.layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "rope_scaling": None, "tie_word_embeddings": False, "bos_token_id": 128000, "eos_token_id": 128001,
        "initializer_range": 0.02, "torch_dtype": "bfloat16",
    }
    (options.out / "config.json").write_text(json.dumps(config, indent=2))
    for path in options.tokenizer.iterdir():
        if path.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copy(path, options.out / path.name)
    shards, size = [[]], 0
    for name, shape in tensors(options.layers):
        n_bytes = 2 * int(np.prod(shape))
        if size and size + n_bytes > 2.5e9:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += n_bytes
    rng, weight_map, total = np.random.default_rng(8), {}, 0
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in shard:
            n_bytes = 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + n_bytes]}
            weight_map[name], at = file_name, at + n_bytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(options.out / file_name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _, shape in shard:
                file.write(values(rng, shape).tobytes())
        total += at
        print(f"{file_name}: {at / 1e9:.2f} GB", flush=True)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (options.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


if __name__ == "__main__":
    main()
