"""Golden merges of mergekit for crates/aloe-merge: three tiny Llama models by formula, merged with linear, ties and dare_ties (density 1).

Made with mergekit 0.1.5, torch 2.15 (CPU), transformers 5.23, Python 3.11.
Run: python oracles/mergekit_parity.py [crates/aloe-merge/tests/golden]
The inputs are not stored: `value` below is exact in f32 and stands in the test too.
"""

import hashlib
import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors import safe_open
from safetensors.torch import save_file

import importlib.metadata

assert importlib.metadata.version("mergekit") == "0.1.5"

D, F, V, L, H, K = 32, 64, 64, 2, 4, 2
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "num_key_value_heads": K,
    "head_dim": D // H,
    "vocab_size": V,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def shapes():
    table = {"model.embed_tokens.weight": (V, D)}
    for layer in range(L):
        p = f"model.layers.{layer}."
        table |= {
            p + "self_attn.q_proj.weight": (D, D),
            p + "self_attn.k_proj.weight": (K * D // H, D),
            p + "self_attn.v_proj.weight": (K * D // H, D),
            p + "self_attn.o_proj.weight": (D, D),
            p + "mlp.gate_proj.weight": (F, D),
            p + "mlp.up_proj.weight": (F, D),
            p + "mlp.down_proj.weight": (D, F),
            p + "input_layernorm.weight": (D,),
            p + "post_attention_layernorm.weight": (D,),
        }
    return table | {"model.norm.weight": (D,), "lm_head.weight": (V, D)}


def noise(key, n):
    """n values in [-1, 1) from a 32-bit mixer started at SHA-256 of the key; each has 24 bits, exact in f32."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")
    x = (np.arange(n, dtype=np.uint64) * 0x9E3779B9 + seed) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return ((x >> 8).astype(np.float32) - np.float32(1 << 23)) * np.float32(2.0**-23)


def value(model, name, n):
    """The base is noise * 2^-5; each tuned model adds noise * 2^-9 in f32, zero where a third noise is below -1/2."""
    base = noise(f"base/{name}", n) * np.float32(2.0**-5)
    if model == "base":
        return base
    change = noise(f"{model}/{name}", n) * np.float32(2.0**-9)
    change[noise(f"{model}/mask/{name}", n) < -0.5] = 0
    return base + change


def write_models(root):
    for model in ("base", "a", "b"):
        folder = root / model
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG))
        tensors = {
            name: torch.from_numpy(value(model, name, int(np.prod(shape))).reshape(shape).copy())
            for name, shape in shapes().items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


MODELS = "models:\n- model: a\n  parameters: {weight: 0.4, density: DENSITY_A}\n- model: b\n  parameters: {weight: [0.7, 0.3], density: DENSITY_B}\nbase_model: base\n"
RUNS = {
    "linear": "models:\n- model: base\n  parameters: {weight: 0.2}\n- model: a\n  parameters: {weight: 0.5}\n- model: b\n  parameters:\n    weight:\n    - filter: mlp\n      value: [1, 0.25]\n    - value: 0.6\nmerge_method: linear\n",
    "ties": MODELS.replace("DENSITY_A", "0.5").replace("DENSITY_B", "0.3") + "merge_method: ties\n",
    "dare_ties": MODELS.replace("DENSITY_A", "1").replace("DENSITY_B", "1.0")
    + "merge_method: dare_ties\nparameters: {lambda: 0.9, int8_mask: true}\n",
    "ties_rescaled": MODELS.replace("DENSITY_A", "0.5").replace("DENSITY_B", "0.3")
    + "merge_method: ties\nparameters: {rescale: true, normalize: false}\n",
}


def main(out):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        write_models(root)
        for run, text in RUNS.items():
            for dtype in ("float32", "bfloat16"):
                if run == "ties_rescaled" and dtype == "float32":
                    continue
                source = text + f"dtype: {dtype}\n"
                (out / f"{run}_{dtype}.yml").write_text(source)
                config = yaml.safe_load(source)
                for entry in config["models"]:
                    entry["model"] = str(root / entry["model"])
                if "base_model" in config:
                    config["base_model"] = str(root / config["base_model"])
                merged = root / f"{run}_{dtype}"
                run_merge(
                    MergeConfiguration.model_validate(config),
                    str(merged),
                    MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False),
                )
                tensors = {}
                for shard in sorted(merged.glob("*.safetensors")):
                    with safe_open(shard, "pt") as file:
                        tensors |= {name: file.get_tensor(name) for name in file.keys()}
                assert tensors.keys() == shapes().keys(), run
                save_file(tensors, out / f"{run}_{dtype}.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "crates/aloe-merge/tests/golden"))
