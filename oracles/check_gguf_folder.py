"""Compares a Hugging Face folder that aloe wrote from a GGUF file with two independent readings of the same file.

Pinned: gguf 0.19.0, transformers 5.23.0, torch 2.15.0, safetensors 0.8.0.
1. every tensor of the folder against `gguf.quants.dequantize`, rows of q and k un-permuted here with numpy; expected difference 0;
2. the folder loaded by transformers against `AutoModelForCausalLM.from_pretrained(gguf_file=...)`, if --logits is given: logits of
   32 fixed ids in float32.

Usage: cargo run --release -p aloe-model --example convert -- MODEL.gguf OUT f32
       python oracles/check_gguf_folder.py MODEL.gguf OUT [--logits]
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors import safe_open

PARTS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hf_name(name):
    if name.startswith("blk."):
        _, layer, part, kind = name.split(".")
        return f"model.layers.{layer}.{PARTS[part]}.{kind}"
    part, kind = name.rsplit(".", 1)
    return f"{WHOLE[part]}.{kind}"


def unpermute(weight, n_heads):
    """The inverse of LlamaModel.permute in convert_hf_to_gguf.py."""
    rows = weight.shape[0]
    return weight.reshape(n_heads, rows // n_heads // 2, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def check_tensors(gguf_path, folder):
    reader = GGUFReader(gguf_path)
    arch = reader.fields["general.architecture"].contents()
    config = json.loads((folder / "config.json").read_text())
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    seen, worst = set(), (0.0, "")
    with safe_open(folder / "model.safetensors", framework="np") as written:
        for tensor in reader.tensors:
            expected = dequantize(tensor.data, tensor.tensor_type)
            expected = expected.reshape(tuple(int(n) for n in reversed(tensor.shape)))
            part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
            if arch == "llama" and part in heads:
                expected = unpermute(expected, heads[part])
            name = hf_name(tensor.name)
            found = written.get_tensor(name)
            assert found.shape == expected.shape and found.dtype == np.float32, (name, found.shape, expected.shape, found.dtype)
            worst = max(worst, (float(np.abs(found - expected).max()), name))
            seen.add(name)
        extra = set(written.keys()) - seen
        assert not extra, f"tensors that the GGUF file does not hold: {sorted(extra)[:5]}"
    print(f"{len(seen)} tensors, largest difference {worst[0]} {worst[1]}")
    return worst[0]


def check_logits(gguf_path, folder):
    import torch
    from transformers import AutoModelForCausalLM

    ids = (torch.arange(32)[None, :] * 977 + 13) % 4096
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        path = Path(gguf_path)
        theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)(ids).logits
    difference = float((ours - theirs).abs().max())
    print(f"logits {tuple(ours.shape)}: largest difference {difference}, largest logit {float(theirs.abs().max()):.3f}")
    return difference


def main():
    gguf_path, folder = sys.argv[1], Path(sys.argv[2])
    failed = check_tensors(gguf_path, folder) != 0.0
    if "--logits" in sys.argv:
        failed |= check_logits(gguf_path, folder) != 0.0
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
