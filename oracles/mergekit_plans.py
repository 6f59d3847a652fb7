"""mergekit's own plans of 27 configurations in the shape of its documentation and examples, and one file of several documents merged by
mergekit-multi, for crates/aloe-merge.

Made with mergekit 0.1.5, torch 2.15 (CPU), transformers 5.23, Python 3.11, PYTHONHASHSEED=0.
Run: PYTHONHASHSEED=0 python oracles/mergekit_plans.py [crates/aloe-merge/tests/golden]
The configurations are those of mergekit_methods.py and the ones below; the models are those of mergekit_methods.py. Per output tensor: inputs in
their order, source tensors, every resolved parameter, base model; `int8_mask` is left out, which changes no number. Writes plans.json (NAME:
yaml, method, dtype, out_dtype, tokenizer, groups of tensors of equal parameters) and multi.yml with multi.safetensors (three tensors).
"""

import json
import os
import pathlib
import sys
import tempfile

import mergekit_examples as examples
import mergekit_methods as methods
import torch
import yaml
from click.testing import CliRunner
from mergekit.scripts import multimerge
from safetensors import safe_open
from safetensors.torch import save_file

MORE = {
    "dare_of_the_card": "models:\n  - model: base\n  - model: a\n    parameters: {density: 0.53, weight: 0.4}\n  - model: b\n    parameters: {density: 0.53, weight: 0.6}\nmerge_method: dare_ties\nbase_model: base\nparameters: {int8_mask: true}\ndtype: bfloat16\n",
    "filters_and_gradients": "models:\n  - model: a\n    parameters:\n      weight:\n        - {filter: self_attn, value: [0, 1]}\n        - {filter: mlp, value: [1, 0.5, 0]}\n        - {value: 0.3}\n      density: [{filter: layernorm, value: 1}, {value: [0.2, 0.9]}]\n  - model: b\n    parameters: {weight: 0.5}\nmerge_method: dare_linear\nbase_model: base\nparameters: {density: 0.7, normalize: [{filter: down_proj, value: true}, {value: false}], lambda: [0.5, 1.5]}\ndtype: float32\n",
    "della": "models:\n  - model: a\n    parameters: {weight: 1, density: 0.5, epsilon: 0.1}\n  - model: b\n    parameters: {weight: [0.1, 0.9]}\nmerge_method: della\nbase_model: base\nparameters: {density: 0.6, lambda: 1.1}\ndtype: bfloat16\nout_dtype: float16\n",
    "self_stack": "slices:\n  - sources: [{model: a, layer_range: [0, 3]}]\n  - sources: [{model: a, layer_range: [1, 4], parameters: {scale: [{filter: o_proj, value: 0}, {filter: down_proj, value: 0}, {value: 1}]}}]\nmerge_method: passthrough\ndtype: bfloat16\n",
    "gradient_over_slices": "slices:\n  - sources:\n      - {model: base, layer_range: [0, 2]}\n      - {model: a, layer_range: [0, 2], parameters: {weight: [0, 1]}}\n  - sources:\n      - {model: base, layer_range: [2, 4]}\n      - {model: a, layer_range: [2, 4], parameters: {weight: [1, 0, 0.5]}}\nmerge_method: task_arithmetic\nbase_model: base\nparameters: {weight: 9}\ndtype: float32\n",
    "nuslerp": "models: [{model: a, parameters: {weight: 0.7}}, {model: b, parameters: {weight: [{filter: mlp, value: 0.1}, {value: 0.4}]}}]\nmerge_method: nuslerp\nparameters: {nuslerp_flatten: false, nuslerp_row_wise: [{filter: q_proj, value: true}, {value: false}]}\nbase_model: base\ndtype: float32\n",
    "karcher": "models: [{model: a}, {model: b}, {model: far}]\nmerge_method: karcher\nparameters: {max_iter: 20, tol: 1.0e-6}\ndtype: bfloat16\n",
    "multislerp": "models: [{model: a, parameters: {weight: [1, 2]}}, {model: b, parameters: {weight: 0.5}}, {model: far, parameters: {weight: 3}}]\nmerge_method: multislerp\nbase_model: base\nparameters: {eps: 1.0e-7, normalize_weights: false}\ndtype: float32\n",
}
MULTI = """name: first
merge_method: linear
models: [{model: a}, {model: b}]
parameters: {weight: 0.5}
dtype: float32
---
name: second
merge_method: slerp
base_model: first
models: [{model: far}]
parameters: {t: [0.2, 0.6]}
dtype: float32
---
merge_method: ties
base_model: base
models:
  - {model: second, parameters: {weight: 0.5, density: 0.6}}
  - {model: first, parameters: {weight: 0.4, density: 0.8}}
dtype: float32
"""


def grouped(groups):
    """Groups of one tensor each, joined where all but the tensors' names is equal."""
    joined = {}
    for group in groups:
        inputs = [{"model": source["model"], "parameters": examples.known(source["parameters"])} for source in group["inputs"]]
        common = {"base_model": group["base_model"], "parameters": examples.known(group["parameters"])}
        entry = joined.setdefault(json.dumps([common, inputs], sort_keys=True), common | {"tensors": [], "inputs": [i | {"tensors": []} for i in inputs]})
        entry["tensors"] += group["tensors"]
        for kept, source in zip(entry["inputs"], group["inputs"]):
            kept["tensors"] += source["tensors"]
    return list(joined.values())


def merge_multi(out):
    """The file of several documents, merged by the command."""
    documents = [methods.absolute(document, pathlib.Path.cwd(), ["base", "a", "b", "far"]) for document in yaml.safe_load_all(MULTI)]
    pathlib.Path("multi.yml").write_text(yaml.safe_dump_all(documents, sort_keys=False))
    result = CliRunner().invoke(multimerge.main, ["multi.yml", "-I", str(pathlib.Path("steps").resolve()), "--out-path", "multi", "--no-copy-tokenizer", "--quiet"])
    assert result.exit_code == 0, (result.output, result.exception)
    tensors = {}
    for shard in sorted(pathlib.Path("multi").glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys() if name in methods.KEPT}
    (out / "multi.yml").write_text(MULTI)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, out / "multi.safetensors", metadata={"format": "pt"})


def main(out):
    assert os.environ.get("PYTHONHASHSEED") == "0"
    torch.set_num_threads(1)
    home = pathlib.Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        os.chdir(root)
        for name in ("base", "a", "b", "far"):
            methods.write_model(root, name)
        for name, plain, added, rows in methods.TOKENIZERS:
            methods.write_model(root, name, rows)
            methods.write_tokenizer(root / name, plain, added)
        plans = {}
        for name, text in (methods.CONFIGURATIONS | MORE).items():
            if name == "lora":
                continue
            plan = examples.plan_of_mergekit(yaml.safe_load(text))
            choice = examples.tokenizer_of(plan)
            plans[name] = {key: plan[key] for key in ("method", "dtype", "out_dtype")} | {"yaml": text, "tokenizer": choice, "groups": grouped(plan["groups"])}
        merge_multi(out)
        os.chdir(home)
    text = json.dumps(plans, separators=(",", ":")) + "\n"
    (out / "plans.json").write_text(text)
    n_numbers = sum(
        len(g["tensors"]) * (len(g["parameters"]) + sum(len(i["parameters"]) for i in g["inputs"])) for p in plans.values() for g in p["groups"]
    )
    print(len(plans), "plans,", sum(len(g["tensors"]) for p in plans.values() for g in p["groups"]), "tensors,", n_numbers, "parameters,", len(text), "bytes")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "crates/aloe-merge/tests/golden").resolve())
