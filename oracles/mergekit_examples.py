"""mergekit's plan against that of `aloe merge --check --json`: per output tensor the method, the inputs and every resolved parameter.

Made with mergekit 0.1.5, torch 2.15 (CPU), transformers 5.23, Python 3.11, PYTHONHASHSEED=0, HF_HUB_OFFLINE=1.
Run: python oracles/mergekit_examples.py compare CHECKOUT | golden [crates/aloe-merge/tests/golden/plans.json]
`compare` takes a git checkout of mergekit, or its bare repository: every merge in examples/*.yml and in YAML blocks of *.md, at any commit, and
blocks that show a tokenizer or a chat template alone, around which it puts a linear merge of the models they name. All models are stand-ins: tiny
Llama checkpoints under the names of the file. Nothing of the checkout is kept. `golden` plans configurations that we wrote and stores what
mergekit resolved; crates/aloe-merge/src/merge/tests/golden.rs compares ours with it.
"""

import contextlib
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import torch
import yaml
from mergekit import merge_methods
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import _model_out_config
from mergekit.merge_methods.base import BasePolicy
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from safetensors.torch import save_file

import mergekit_methods as methods

ALOE = pathlib.Path(__file__).resolve().parent.parent / "target/release/aloe"


def plan_of(settings, name_of=str):
    """What mergekit resolves, as plain values; models are called by `name_of`."""
    LoaderCache().loaders.clear()
    options = MergeOptions(quiet=True, lora_merge_cache=tempfile.mkdtemp(prefix="lora-"))
    config = MergeConfiguration.model_validate(settings)
    information = get_architecture_info(config, options)
    LoaderCache().setup(options=options)
    for model in config.referenced_models():
        LoaderCache().get(model)
    tokenizer = config.tokenizer or config.tokenizer_source and {"source": config.tokenizer_source}
    # `plan_in_memory` of 0.1.5 ends in a TypeError of pydantic: its two steps stand here.
    planner = MergePlanner(config, information, options, _model_out_config(config, information))
    planner._plan()
    uses_base = merge_methods.get(config.merge_method).spec.contract.base != BasePolicy.IGNORED
    tensors = {}
    for weight_out, merge in planner._tensors:
        gather = merge.gather_tensors
        gather = getattr(gather, "gather_tensors", gather)
        per_model = {model: dict(values) for model, values in merge.input_parameters.items()}
        names = {model: weight.name for model, weight in gather.weight_info.items()}
        base = merge.base_model if uses_base and merge.base_model in merge.model_order else None
        tensors[weight_out.name] = {
            "base_model": base and name_of(base),
            "parameters": dict(merge.parameters.items()),
            "inputs": [
                {"model": name_of(model), "from": names[model], "parameters": per_model.get(model, {})}
                for model in merge.model_order
            ],
        }
    return {
        "method": config.merge_method,
        "dtype": config.dtype,
        "out_dtype": config.out_dtype or config.dtype,
        "tokenizer": tokenizer and tokenizer_of(tokenizer, name_of),
        "tensors": tensors,
    }


def tokenizer_of(choice, name_of):
    choice = choice if isinstance(choice, dict) else dict(choice)
    source = choice["source"]
    rules = {}
    for token, rule in (choice.get("tokens") or {}).items():
        row = rule.source
        if row is not None and hasattr(row, "kind"):
            row = {key: name_of(value) if key == "model" else value for key, value in dict(row).items() if value is not None}
        elif row is not None:
            row = name_of(row)
        rules[token] = {"source": row, "force": rule.force}
    source = source if isinstance(source, str) else name_of(source)
    return {"source": source, "pad_to_multiple_of": choice.get("pad_to_multiple_of"), "tokens": rules}


def ours(path, folder):
    done = subprocess.run([ALOE, "merge", path, "--check", "--json"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        return None, done.stderr.strip()
    plan = json.loads(done.stdout)
    tensors = {}
    for group in plan["groups"]:
        for tensor in group["tensors"]:
            inputs = [given | {"from": name} for given, name in zip(group["inputs"], tensor["from"])]
            tensors[tensor["name"]] = {"base_model": group["base_model"], "parameters": group["parameters"], "inputs": inputs}
    return {key: plan[key] for key in ("method", "dtype", "out_dtype", "tokenizer")} | {"tensors": tensors}, ""


def difference(ours, theirs):
    """The first thing that differs, or nothing. `rescale_kind` is ours alone; mergekit's scale of none multiplies by nothing, as 1 does."""
    for key in ("method", "dtype", "out_dtype", "tokenizer"):
        expected = theirs[key]
        if expected is None and key in ("dtype", "out_dtype"):
            continue
        if isinstance(expected, str) and key.endswith("dtype"):
            expected = expected.removeprefix("torch.")
        if ours[key] != expected:
            return f"{key}: {ours[key]} is not {expected}"
    if ours["tensors"].keys() != theirs["tensors"].keys():
        return f"tensors: {sorted(ours['tensors'].keys() ^ theirs['tensors'].keys())[:4]}"
    for name, tensor in theirs["tensors"].items():
        found = json.loads(json.dumps(ours["tensors"][name]))
        found["parameters"].pop("rescale_kind", None)
        expected = json.loads(json.dumps(tensor))
        for given in expected["inputs"]:
            if given["parameters"].get("scale", 1) is None:
                given["parameters"]["scale"] = 1.0
        if found != expected:
            return f"{name}: {found} is not {expected}"
    return None


# ---------------------------------------------------------------- a checkout's files


def sources(checkout):
    """(path, text) of every example and block, each text once."""

    def git(*words):
        return subprocess.run(["git", "-C", checkout, *words], capture_output=True, text=True, check=True).stdout

    seen, texts = set(), {}
    for commit in git("log", "--all", "--format=%H").split():
        for line in git("ls-tree", "-r", commit).splitlines():
            (_, _, blob), path = line.split("\t")[0].split(), line.split("\t")[1]
            if blob in seen or not (path.startswith("examples/") or path.endswith(".md")):
                continue
            seen.add(blob)
            text = git("cat-file", "-p", blob)
            is_yaml = path.endswith((".yml", ".yaml"))
            for block in [text] if is_yaml else re.findall(r"```ya?ml\n(.*?)```", text, re.S):
                texts.setdefault(block, path)
    return [(path, text) for text, path in texts.items()]


def documents(path, text):
    """The merges of a text, each as a file of its own."""
    with contextlib.suppress(yaml.YAMLError):
        for part in re.split(r"^---\s*$", text, flags=re.M):
            settings = yaml.safe_load(part)
            if not isinstance(settings, dict) or "..." in json.dumps(settings):
                continue
            if "merge_method" in settings:
                yield part
            elif settings.keys() and settings.keys() <= {"tokenizer", "tokenizer_source", "chat_template"}:
                named = sorted({"leader"} | set(model_names({"tokenizer": settings.get("tokenizer")})))
                models = "".join(f"- model: {name}\n  parameters: {{weight: 1}}\n" for name in named)
                yield f"merge_method: linear\nbase_model: leader\ndtype: float32\nmodels:\n{models}{part}"


def model_names(value, key=None):
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from model_names(item, inner)
    elif isinstance(value, list):
        for item in value:
            yield from model_names(item, key)
    elif isinstance(value, str) and key in ("model", "base_model", "tokenizer_source", "source", "path"):
        if value not in ("union", "base"):
            yield value


def tokens_of(value):
    if isinstance(value, dict):
        yield from (value.get("tokens") or {}) if isinstance(value.get("tokens"), dict) else ()
        if isinstance(value.get("token"), str):
            yield value["token"]
        for item in value.values():
            yield from tokens_of(item)


def stand_in(folder, layers, tokens):
    """A Llama of width 8 whose tokenizer has the letters and the tokens that some file names."""
    folder.mkdir(parents=True)
    settings = methods.parity.CONFIG | {"num_hidden_layers": layers, "hidden_size": 8, "intermediate_size": 8}
    settings |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 2048}
    (folder / "config.json").write_text(json.dumps(settings))
    shapes = {"model.embed_tokens.weight": (2048, 8), "lm_head.weight": (2048, 8), "model.norm.weight": (8,)}
    for layer in range(layers):
        for part, shape in (
            ("self_attn.q_proj", (8, 8)), ("self_attn.k_proj", (4, 8)), ("self_attn.v_proj", (4, 8)), ("self_attn.o_proj", (8, 8)),
            ("mlp.gate_proj", (8, 8)), ("mlp.up_proj", (8, 8)), ("mlp.down_proj", (8, 8)), ("input_layernorm", (8,)),
            ("post_attention_layernorm", (8,)),
        ):
            shapes[f"model.layers.{layer}.{part}.weight"] = shape
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    methods.write_tokenizer(folder, methods.LETTERS, sorted(set(tokens) - set(methods.LETTERS)))


def compare(checkout):
    found = [(path, part) for path, text in sources(checkout) for part in documents(path, text)]
    found = [(path, part) for index, (path, part) in enumerate(found) if part not in [p for _, p in found[:index]]]
    settings = [yaml.safe_load(part) for _, part in found]
    ends = [int(end) for _, part in found for end in re.findall(r"layer_range:\s*\[\s*\d+\s*,\s*(\d+)", part)]
    ends += [int(end) for _, part in found for end in re.findall(r"layer_range:\s*\n\s*-\s*\d+\s*\n\s*-\s*(\d+)", part)]
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        stand_in(root / ".stand-in", max(ends + [4]), [token for one in settings for token in tokens_of(one)])
        for name in {name.split("@")[0] for one in settings for name in model_names(one)}:
            link = root / name.lstrip("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(root / ".stand-in")
        os.chdir(root)
        counts = {"the same plan": 0, "refused by both": 0}
        for (path, part), parsed in zip(found, settings):
            file = root / "merge.yml"
            file.write_text(part)
            reason = ""
            try:
                theirs = plan_of(parsed)
            except Exception as error:  # mergekit's errors have no class of their own
                theirs, reason = None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            mine, message = ours(file, root)
            if theirs and mine:
                apart = difference(mine, theirs)
                verdict = "the same plan" if apart is None else "DIFFERENT"
                detail = apart or f"{theirs['method']}, {len(theirs['tensors'])} tensors"
            elif theirs:
                verdict, detail = "refused by ours alone", message.replace("\n", " | ")
            elif mine:
                verdict, detail = "refused by mergekit alone", reason
            else:
                verdict, detail = "refused by both", f"{reason[:90]} / {message.splitlines()[-1][:200] if message else ''}"
            counts[verdict] = counts.get(verdict, 0) + 1
            print(f"{verdict:26} {path:40} {detail[:600]}", flush=True)
        print(counts)


# ---------------------------------------------------------------- our own configurations

BASE_AB = "base_model: base\nmodels:\n  - model: a\n    parameters: {weight: 0.5}\n  - model: b\n    parameters: {weight: 0.25}\n"
OURS = {
    "numbers_as_text": "merge_method: linear\ndtype: bfloat16\nmodels: [{model: a}, {model: b}]\nparameters: {weight: ['1e-1', 3e-1, 2], normalize: 0}\n",
    "gradient_of_flags": BASE_AB + "merge_method: ties\nparameters: {normalize: [true, false], density: 0.5}\n",
    "star_and_nothing": BASE_AB + "merge_method: dare_linear\ndtype: float32\nparameters:\n  lambda: [{filter: mlp.up, value: [0.5, 1.5]}, {filter: '*', value: 2}]\n  density: {value: 0.75}\n",
    "filter_falls_through": "base_model: base\nmerge_method: breadcrumbs_ties\nparameters: {weight: 0.125, density: 0.9}\nmodels:\n  - model: a\n    parameters:\n      weight: [{filter: q_proj, value: 1}, {filter: layernorm, value: [0, 1, 0]}]\n      gamma: [{filter: lm_head, value: 0.05}]\n  - {model: b, parameters: {density: [{filter: layers.1., value: 0.25}]}}\n",
    "uneven_gradients": BASE_AB + "merge_method: della\nparameters: {density: [0.3, 0.4, 0.7], epsilon: [0.1, 0.05], int8_mask: true}\ndtype: float16\nout_dtype: bfloat16\n",
    "one_layer_slices": "merge_method: slerp\nbase_model: base\nparameters: {t: [0, 0.25, 1]}\nslices:\n- sources: [{model: base, layer_range: [0, 1]}, {model: a, layer_range: [3, 4]}]\n- sources: [{model: a, layer_range: [1, 3]}, {model: base, layer_range: [2, 4]}]\n  parameters: {t: [{filter: mlp, value: [0.9, 0.1]}]}\n",
    "filters_by_source_name": "merge_method: linear\nparameters: {weight: [{filter: layers.0., value: 5}, {filter: layers.3., value: 7}, {value: 1}]}\nslices:\n- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [2, 4]}]\n- sources: [{model: b, layer_range: [1, 4]}, {model: a, layer_range: [0, 3]}]\n",
    "base_listed_with_parameters": "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: base, parameters: {weight: 9}}, {model: a, parameters: {weight: [1, -1]}}, {model: far, parameters: {weight: 0}}]\nparameters: {lambda: 0.7}\ndtype: bfloat16\n",
    "scales": "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 3]}]\n- sources: [{model: b, layer_range: [1, 4], parameters: {scale: [{filter: o_proj, value: [0, 1]}, {filter: down_proj, value: 0.5}]}}]\n  parameters: {scale: [{filter: k_proj, value: 2}]}\n",
    "spheres": "merge_method: multislerp\nbase_model: base\nmodels: [{model: a, parameters: {weight: [1, 2]}}, {model: b, parameters: {weight: 1}}, {model: far, parameters: {weight: 0.5}}]\nparameters: {normalize_weights: false, eps: 1e-6}\ndtype: float32\n",
    "rows": BASE_AB + "merge_method: nuslerp\nparameters: {nuslerp_row_wise: [{filter: mlp, value: true}], nuslerp_flatten: [{filter: self_attn, value: false}, {value: true}]}\n",
    "means": "merge_method: karcher\nmodels: [{model: a}, {model: b}, {model: far}]\nparameters: {max_iter: [{filter: mlp, value: 3}], tol: 1e-7}\ndtype: float32\n",
    "chosen": "merge_method: sce\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {select_topk: [0.1, 0.9], int8_mask: true}\n",
    "stock": "merge_method: model_stock\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {filter_wise: [{filter: self_attn, value: true}, {value: false}]}\n",
}


def golden(path):
    assert os.environ.get("PYTHONHASHSEED") == "0"
    plans = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        for name in ("base", "a", "b", "far"):
            methods.write_model(root, name)
        for name, plain, added, rows in methods.TOKENIZERS:
            methods.write_model(root, name, rows)
            methods.write_tokenizer(root / name, plain, added)
        methods.write_adapter(root)
        names = [folder.name for folder in root.iterdir() if folder.is_dir()]
        short = lambda model: "+".join(pathlib.Path(part).name for part in str(model).split("+"))
        for name, text in (methods.CONFIGURATIONS | OURS).items():
            plan = plan_of(methods.absolute(yaml.safe_load(text), root, names), short)
            groups = []
            for tensor, resolved in plan.pop("tensors").items():
                sources = [given.pop("from") for given in resolved["inputs"]]
                group = next((group for group in groups if group["resolved"] == resolved), None)
                if group is None:
                    groups.append(group := {"resolved": resolved, "tensors": {}})
                # The usual name in every input is left out.
                group["tensors"][tensor] = None if set(sources) == {tensor} else sources
            plans[name] = {"yaml": text} | plan | {"groups": groups}
    lines = [f"{json.dumps(name)}: {json.dumps(plan)}" for name, plan in plans.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    if sys.argv[1] == "golden":
        golden(pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "crates/aloe-merge/tests/golden/plans.json"))
    else:
        compare(os.path.abspath(sys.argv[2]))
