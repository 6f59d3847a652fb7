"""Golden logits, loss and gradients of two tiny decoders (Llama with llama3 RoPE scaling and its own head; Qwen2 with biases and a tied head).

Pinned: python 3.11+, torch 2.15, transformers 5.23. No seed: weights come from the integer formula `fill`, which crates/aloe-model/src/testing.rs repeats.
Each document runs alone (no packing here), so the packed batch of the implementation is judged against separate documents.
Writes crates/aloe-model/tests/golden/decoder_grads.json. Run: python oracles/decoder_grads.py
"""

import json
import pathlib

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

N_PROJECTIONS = 16


def name_hash(name):
    h = 2166136261
    for byte in name.encode():
        h = ((h ^ byte) * 16777619) & 0xFFFFFFFF
    return h


def fill(name, n):
    """n values in [-1, 1), each a multiple of 2^-15: exact in f32 and in bf16-free arithmetic of any language."""
    i = np.arange(n, dtype=np.uint64)
    m = np.uint64(0xFFFFFFFF)
    h = (i * np.uint64(2654435761) + np.uint64(name_hash(name))) & m
    h ^= h >> np.uint64(15)
    h = (h * np.uint64(2246822519)) & m
    h ^= h >> np.uint64(13)
    h = (h * np.uint64(3266489917)) & m
    h ^= h >> np.uint64(16)
    return ((h >> np.uint64(16)).astype(np.float64) - 32768.0) / 32768.0


def weights_of(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            value = torch.tensor(fill(name, p.numel()), dtype=torch.float64).reshape(p.shape)
            if "norm" in name:
                value = 1.0 + 0.25 * value
            elif name.endswith("bias"):
                value = 0.125 * value
            elif "embed" in name:
                value = 1.0 * value
            else:
                value = 0.25 * value
            p.copy_(value.float())


def summary(name, g):
    g = g.detach().double().flatten().numpy()
    projections = [float(g @ fill(f"projection {j} {name}", g.size)) for j in range(N_PROJECTIONS)]
    return {"norm": float(np.linalg.norm(g)), "projections": projections}


def case(model, documents, masks):
    weights_of(model)
    model.eval()
    n_targets = sum(sum(m[1:]) for m in masks)
    logits, loss = [], 0.0
    for ids, mask in zip(documents, masks):
        out = model(input_ids=torch.tensor([ids])).logits[0]
        logits.append([[round(float(v), 6) for v in row] for row in out.detach()])
        logp = torch.log_softmax(out, dim=-1)
        for t in range(1, len(ids)):
            if mask[t]:
                loss = loss - logp[t - 1, ids[t]] / n_targets
    loss.backward()
    config = model.config.to_dict()
    return {
        "config": {k: config[k] for k in config if isinstance(config[k], (int, float, str, bool, dict, list, type(None)))},
        "documents": documents,
        "masks": masks,
        "logits": logits,
        "loss": float(loss),
        "gradients": {name: summary(name, p.grad) for name, p in model.named_parameters()},
    }


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    documents = [[int(v) for v in (fill(f"document {d}", n) + 1.0) * 32] for d, n in enumerate([13, 1, 22])]
    masks = [[int(v > -0.2) for v in fill(f"mask {d}", len(ids))] for d, ids in enumerate(documents)]
    common = dict(vocab_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    scaling = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            rms_norm_eps=1e-5,
            rope_parameters=dict(rope_theta=10000.0, **scaling),
            tie_word_embeddings=False,
            attn_implementation="eager",
            **common,
        )
    )
    qwen2 = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=32,
            intermediate_size=48,
            rms_norm_eps=1e-6,
            rope_parameters=dict(rope_theta=1000000.0, rope_type="default"),
            tie_word_embeddings=True,
            attn_implementation="eager",
            **common,
        )
    )
    out = {"versions": {"torch": torch.__version__}, "llama": case(llama, documents, masks), "qwen2": case(qwen2, documents, masks)}
    target = pathlib.Path(__file__).parent.parent / "crates/aloe-model/tests/golden/decoder_grads.json"
    target.write_text(json.dumps(out))
    print(target, target.stat().st_size, out["llama"]["loss"], out["qwen2"]["loss"])


main()
