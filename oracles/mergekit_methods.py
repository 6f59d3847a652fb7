"""Golden merges of mergekit for crates/aloe-merge: every deterministic method, and 20 configurations in the shape of mergekit's documentation.

Made with mergekit 0.1.5, torch 2.15 (CPU), transformers 5.23, peft, Python 3.11, PYTHONHASHSEED=0.
Run: PYTHONHASHSEED=0 python oracles/mergekit_methods.py [crates/aloe-merge/tests/golden]
Inputs are those of mergekit_parity.py with four layers; they are not stored. Kept of each result: a few tensors, its tensor names, and its
config. Writes methods.safetensors (METHOD.DTYPE/TENSOR), configurations.json and configurations.safetensors (NAME/TENSOR); and exact.safetensors, of
methods of which mergekit rounds every step and ours does not (ROUNDED; of model_stock in float32): its own formula on the same inputs in float64,
stored in float32.
"""

import json
import os
import pathlib
import sys
import tempfile

import mergekit_parity as parity
import mergekit_smollm2 as checkpoints
import numpy as np
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models as token_models

LAYERS = 4
KEPT = [
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.3.self_attn.o_proj.weight",
    "model.layers.2.input_layernorm.weight",
]
TWO = "models:\n- model: a\n  parameters: {weight: 0.4}\n- model: b\n  parameters: {weight: 0.8}\n"
DENSE = "models:\n- model: a\n  parameters: {weight: 0.4, density: 0.5}\n- model: b\n  parameters: {weight: [0.7, 0.3], density: 0.3}\n"
OVER = "base_model: base\n"
METHODS = {
    "linear": TWO + "merge_method: linear\n",
    "slerp": "models: [{model: base}, {model: far}]\nbase_model: base\nmerge_method: slerp\nparameters: {t: [0.1, 0.9]}\n",
    "slerp_near": "models: [{model: base}, {model: a}]\nbase_model: base\nmerge_method: slerp\nparameters: {t: 0.3}\n",
    "nuslerp": TWO + OVER + "merge_method: nuslerp\n",
    "nuslerp_free": TWO.replace("model: b", "model: far") + "merge_method: nuslerp\n",
    "nuslerp_rows": TWO + OVER + "merge_method: nuslerp\nparameters: {nuslerp_flatten: false}\n",
    "nuslerp_columns": TWO + OVER + "merge_method: nuslerp\nparameters: {nuslerp_flatten: false, nuslerp_row_wise: true}\n",
    "multislerp": TWO + OVER + "merge_method: multislerp\n",
    "multislerp_free": TWO.replace("model: b", "model: far") + "merge_method: multislerp\nparameters: {normalize_weights: false}\n",
    "karcher": "models: [{model: a}, {model: b}, {model: far}]\nmerge_method: karcher\n",
    "passthrough": "models: [{model: a, parameters: {scale: 0.7}}]\nmerge_method: passthrough\n",
    "nearswap": "models: [{model: base}, {model: a}]\nbase_model: base\nmerge_method: nearswap\nparameters: {t: 0.0005}\n",
    "model_stock": "models: [{model: a}, {model: b}]\nbase_model: base\nmerge_method: model_stock\n",
    "model_stock_rows": "models: [{model: a}, {model: b}, {model: far}]\nbase_model: base\nmerge_method: model_stock\nparameters: {filter_wise: true}\n",
    "sce": "models: [{model: a}, {model: b}, {model: far}]\nbase_model: base\nmerge_method: sce\nparameters: {select_topk: 0.6}\n",
    "sce_all": "models: [{model: a}, {model: far}]\nbase_model: base\nmerge_method: sce\n",
    "task_arithmetic": TWO + OVER + "merge_method: task_arithmetic\nparameters: {lambda: 0.9, normalize: true}\n",
    "ties": DENSE + OVER + "merge_method: ties\n",
    "dare_linear": TWO + OVER + "merge_method: dare_linear\n",
    "breadcrumbs": DENSE + OVER + "merge_method: breadcrumbs\nparameters: {gamma: 0.05}\n",
    "breadcrumbs_ties": DENSE + OVER + "merge_method: breadcrumbs_ties\nparameters: {gamma: 0.05}\n",
    "della": TWO + OVER + "merge_method: della\n",
    "della_linear": TWO + OVER + "merge_method: della_linear\n",
}

ROUNDED = ["multislerp", "multislerp_free", "karcher", "model_stock_rows"]

# In the shape of mergekit's README, docs/ and examples/.
CONFIGURATIONS = {
    "bio_merge": "models:\n  - model: a\n  - model: b\n  - model: far\nmerge_method: model_stock\nbase_model: base\ndtype: float32\n",
    "gradient_slerp": "slices:\n  - sources:\n      - model: base\n        layer_range: [0, 4]\n      - model: a\n        layer_range: [0, 4]\nmerge_method: slerp\nbase_model: base\nparameters:\n  t:\n    - filter: self_attn\n      value: [0, 0.5, 0.3, 0.7, 1]\n    - filter: mlp\n      value: [1, 0.5, 0.7, 0.3, 0]\n    - value: 0.5\ndtype: float16\n",
    "linear": "models:\n  - model: base\n    parameters:\n      weight: 1.0\n  - model: a\n    parameters:\n      weight: 0.3\n  - model: b\n    parameters:\n      weight: 0.5\nmerge_method: linear\ndtype: float16\n",
    "mega_layers": "slices:\n- sources:\n  - {model: a, layer_range: [0, 2]}\n- sources:\n  - {model: b, layer_range: [1, 3]}\n- sources:\n  - model: a\n    layer_range: [2, 4]\n    parameters: {scale: [{filter: down_proj, value: 0.5}, {value: 1.0}]}\nmerge_method: passthrough\ndtype: float16\n",
    "orcamini": "slices:\n  - sources:\n    - model: a\n      layer_range: [0, 2]\n  - sources:\n    - model: a\n      layer_range: [2, 4]\nmerge_method: passthrough\ndtype: bfloat16\n",
    "ties": "models:\n  - model: a\n    parameters:\n      density: [1, 0.7, 0.1]\n      weight: 1.0\n  - model: b\n    parameters:\n      density: 0.5\n      weight: [0, 0.3, 0.7, 1]\n  - model: far\n    parameters:\n      density: 0.33\n      weight:\n        - filter: mlp\n          value: 0.5\n        - value: 0\nmerge_method: ties\nbase_model: base\nparameters:\n  normalize: true\n  int8_mask: true\ndtype: float32\n",
    "breadcrumbs": "models:\n  - model: a\n    parameters: {weight: 0.5, density: 0.9, gamma: 0.01}\n  - model: b\n    parameters: {weight: 0.3, density: 0.8}\nmerge_method: breadcrumbs\nbase_model: base\ndtype: float32\n",
    "task_arithmetic": "merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - model: base\n  - model: a\n    parameters: {weight: 0.6}\n  - model: b\n    parameters: {weight: -0.2}\ndtype: float32\nout_dtype: bfloat16\n",
    "modules": "modules:\n  default:\n    models:\n      - model: a\n        parameters: {weight: 1}\n      - model: b\n    parameters: {weight: 3}\nmerge_method: linear\ndtype: float32\n",
    "modules_slices": "modules:\n  default:\n    slices:\n    - sources:\n      - {model: a, layer_range: [0, 1]}\n      - {model: b, layer_range: [3, 4]}\n      parameters: {weight: [0.2, 0.8]}\n    - sources:\n      - {model: a, layer_range: [1, 4]}\n    parameters: {weight: 2}\nmerge_method: linear\ndtype: float32\n",
    "slice_precedence": "slices:\n- sources:\n  - {model: a, layer_range: [0, 2], parameters: {weight: 0.9}}\n  - {model: b, layer_range: [2, 4]}\n  parameters: {weight: [1, 2]}\n- sources:\n  - {model: b, layer_range: [0, 2]}\n  - {model: a, layer_range: [1, 3]}\nparameters: {weight: 0.5, normalize: false}\nmerge_method: linear\ndtype: float32\n",
    "slice_base": "slices:\n- base_model: b\n  sources:\n  - {model: a, layer_range: [0, 2]}\n  - {model: b, layer_range: [0, 2]}\n- sources:\n  - {model: base, layer_range: [2, 4]}\n  - {model: a, layer_range: [2, 4]}\nbase_model: base\nmerge_method: slerp\nparameters: {t: 0.25}\ndtype: float32\n",
    "nearswap": "slices:\n  - sources:\n      - {model: base, layer_range: [0, 4]}\n      - {model: a, layer_range: [0, 4]}\nmerge_method: nearswap\nbase_model: base\nparameters:\n  t: 0.0001\ndtype: bfloat16\n",
    "sce": "models:\n  - model: a\n  - model: b\n  - model: base\nmerge_method: sce\nbase_model: base\nparameters:\n  select_topk: 0.8\ndtype: float32\n",
    "anchors": "models:\n  - model: a\n    parameters: &p {weight: 1e-1, density: 1}\n  - model: b\n    parameters: {<<: *p, weight: '0.5'}\nmerge_method: dare_ties\nbase_model: base\nparameters: {rescale: yes}\ndtype: float32\n",
    "tokenizer_base": "models: [{model: tok_base, parameters: {weight: 1}}, {model: tok_a, parameters: {weight: 3}}]\nbase_model: tok_base\nmerge_method: linear\ntokenizer_source: base\ndtype: float32\n",
    "tokenizer_model": "models: [{model: tok_base, parameters: {weight: 1}}, {model: tok_a, parameters: {weight: 3}}]\nmerge_method: linear\ntokenizer_source: tok_a\nbase_model: tok_base\ndtype: float32\n",
    "tokenizer_union": "models: [{model: tok_a, parameters: {weight: 1}}, {model: tok_b, parameters: {weight: 3}}]\nbase_model: tok_base\nmerge_method: task_arithmetic\ntokenizer:\n  source: union\n  pad_to_multiple_of: 16\ndtype: float32\n",
    "tokenizer_tokens": "models: [{model: tok_base, parameters: {weight: 1}}, {model: tok_a, parameters: {weight: 3}}, {model: tok_b, parameters: {weight: 1}}]\nbase_model: tok_base\nmerge_method: linear\ntokenizer:\n  source: base\n  tokens:\n    c: {source: tok_a, force: true}\n    <|end|>: {source: {kind: model_token, model: tok_b, token: d}}\n    <new>: {source: {kind: model_token, model: tok_a, token_id: 3}}\n    e: {source: {kind: zero}, force: true}\ndtype: float32\n",
    "lora": "models: [{model: base+adapter, parameters: {weight: 1}}, {model: a, parameters: {weight: 1}}]\nmerge_method: linear\ndtype: float32\n",
}

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
# Name, plain tokens, added tokens, rows of the embedding.
TOKENIZERS = [
    ("tok_base", LETTERS, ["<|end|>"], 32),
    ("tok_a", LETTERS, ["<|end|>", "<|im_start|>", "<|im_end|>"], 29),
    ("tok_b", LETTERS[::-1] + ["ab"], [], 27),
]


def config(vocab_size):
    return parity.CONFIG | {"num_hidden_layers": LAYERS, "vocab_size": vocab_size}


def write_model(root, name, vocab_size=64):
    folder = root / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(vocab_size)))
    parity.L, parity.V = LAYERS, vocab_size
    tensors = {}
    for tensor, shape in parity.shapes().items():
        n = int(np.prod(shape))
        # `far` has nothing in common with the base: angles that are not small.
        values = parity.noise(f"far/{tensor}", n) * np.float32(2.0**-5) if name == "far" else parity.value(name, tensor, n)
        tensors[tensor] = torch.from_numpy(values.reshape(shape).copy())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(folder, plain, added):
    tokenizer = Tokenizer(token_models.BPE(vocab={token: i for i, token in enumerate(plain)}, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def write_adapter(root):
    folder = root / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
    settings |= {"bias": "none", "base_model_name_or_path": str(root / "base"), "fan_in_fan_out": False, "use_rslora": False}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {}
    for layer in range(LAYERS):
        for module, rows, cols in (("self_attn.q_proj", 32, 32), ("mlp.down_proj", 32, 64)):
            key = f"base_model.model.model.layers.{layer}.{module}"
            for part, shape in (("lora_A", (4, cols)), ("lora_B", (rows, 4))):
                values = parity.noise(f"adapter/{layer}/{module}/{part}", shape[0] * shape[1]) * np.float32(0.05)
                tensors[f"{key}.{part}.weight"] = torch.from_numpy(values.reshape(shape).copy())
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def absolute(value, root, names):
    if isinstance(value, dict):
        is_word = lambda key, item: key in ("tokenizer_source", "source") and item == "base"
        return {key: item if is_word(key, item) else absolute(item, root, names) for key, item in value.items()}
    if isinstance(value, list):
        return [absolute(item, root, names) for item in value]
    if isinstance(value, str) and value.split("+")[0] in names:
        return "+".join(str(root / part) for part in value.split("+"))
    return value


def merge(text, root, out):
    names = [path.name for path in root.iterdir() if path.is_dir()]
    settings = absolute(yaml.safe_load(text), root, names)
    options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False, lora_merge_cache=str(root / "lora"))
    run_merge(MergeConfiguration.model_validate(settings), str(out), options)
    tensors = {}
    for shard in sorted(out.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}
    return tensors


def exact(text, root, dtype):
    """The kept tensors as mergekit's formula gives them in float64 from the inputs in the merge's dtype."""
    names = [path.name for path in root.iterdir() if path.is_dir()]
    inputs = {}
    for name in ("base", "a", "b", "far"):
        files = checkpoints.tensors_of(root / name)
        inputs[str(root / name)] = {tensor: (lambda read=read: read().to(dtype)) for tensor, read in files.items()}
    tasks = checkpoints.planned(absolute(yaml.safe_load(text), root, names))
    return {name: checkpoints.formula(tasks[name], inputs, torch.float64).float() for name in KEPT}


def main(out):
    assert os.environ.get("PYTHONHASHSEED") == "0"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as results:
        root, results = pathlib.Path(scratch), pathlib.Path(results)
        for name in ("base", "a", "b", "far"):
            write_model(root, name)
        for name, plain, added, rows in TOKENIZERS:
            write_model(root, name, rows)
            write_tokenizer(root / name, plain, added)
            (out / f"{name}.json").write_text((root / name / "tokenizer.json").read_text())
        write_adapter(root)
        kept, in_float64 = {}, {}
        for method, text in METHODS.items():
            for dtype in ("float32", "bfloat16"):
                source = text + f"dtype: {dtype}\n"
                tensors = merge(source, root, results / f"{method}.{dtype}")
                kept |= {f"{method}.{dtype}/{name}": tensors[name].clone() for name in KEPT}
                if method in ROUNDED and (method, dtype) != ("model_stock_rows", "bfloat16"):
                    found = exact(source, root, getattr(torch, dtype))
                    in_float64 |= {f"{method}.{dtype}/{name}": tensor for name, tensor in found.items()}
        save_file(kept, out / "methods.safetensors")
        save_file(in_float64, out / "exact.safetensors")
        (out / "methods.json").write_text(json.dumps(METHODS, indent=1) + "\n")
        kept, described = {}, {}
        for name, text in CONFIGURATIONS.items():
            folder = results / f"configuration.{name}"
            tensors = merge(text, root, folder)
            settings = json.loads((folder / "config.json").read_text())
            described[name] = {
                "yaml": text,
                "tensors": {tensor: list(value.shape) for tensor, value in tensors.items()} if name.startswith("tok") else sorted(tensors),
                "num_hidden_layers": settings["num_hidden_layers"],
                "vocab_size": settings["vocab_size"],
            }
            if "tokenizer" in text:
                described[name]["vocab"] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
                wanted = ["model.embed_tokens.weight", "lm_head.weight"]
            else:
                wanted = KEPT[:1] + KEPT[2:] + (["model.layers.3.self_attn.q_proj.weight"] if name == "lora" else [])
            kept |= {f"{name}/{tensor}": tensors[tensor].clone() for tensor in wanted}
        save_file(kept, out / "configurations.safetensors")
        (out / "configurations.json").write_text(json.dumps(described) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "crates/aloe-merge/tests/golden"))
