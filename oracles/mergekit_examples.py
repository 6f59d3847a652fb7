"""mergekit's own YAML examples, planned by mergekit and by `aloe merge --check --json`: the same tensors, inputs and parameters.

Made with mergekit 0.1.5, transformers 5.23, Python 3.11, PYTHONHASHSEED=0, HF_HUB_OFFLINE=1.
Run: python oracles/mergekit_examples.py CHECKOUT [NUMBER ...]        (ALOE names another binary than target/release/aloe)
CHECKOUT is a clone of mergekit with its history. Every version of README.md, docs/, examples/ and notebook.ipynb is searched for YAML; equal
documents count once, parts about tokenizers are put into a linear merge. Nothing of it is kept in this repository. All model names stand for
one tiny Llama folder with as many layers as the document asks for, and a tokenizer with the tokens that it names.

Expected on standard output of `aloe merge FILE --check --json`:
  {"method": name, "dtype": name, "out_dtype": name,
   "tokenizer": null or {"source": "base", "union" or a model, "pad_to_multiple_of": n or null,
                         "tokens": {token: {"source": a row, "force": bool}}},
   "groups": [{"tensors": [name, ...], "parameters": {name: value}, "base_model": model or null,
               "inputs": [{"model": name, "tensors": [source per tensor, ...], "parameters": {name: value}}, ...]}, ...]}
A row is null, a model, {"kind": "zero"} or {"kind": "model_token", "model": a model, and "token": text or "token_id": n}.
Inputs stand in the order of the slice, the base among them (last, where `models` does not list it), with the parameters that its scope gives it.
Compared per output tensor: inputs in their order, source tensors, parameters at 1e-9 relative, base model (where the method uses one), dtypes
where the file names them, tokenizer. Not compared: `int8_mask` (what mergekit's masks are stored in, without effect on the result) and `rescale_kind` (ours alone).
"""

import json
import logging
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, models as token_models

ALOE = pathlib.Path(os.environ.get("ALOE", pathlib.Path(__file__).resolve().parent.parent / "target/release/aloe")).resolve()
PLACES = ["README.md", "docs", "examples", "notebook.ipynb"]
FRAGMENT = {"merge_method": "linear", "base_model": "base", "dtype": "float32", "parameters": {"weight": 1}}
WITHOUT_EFFECT = {"int8_mask", "rescale_kind"}


def texts(checkout):
    """Path and text of every version of every file in PLACES, oldest last."""
    git = lambda *words: subprocess.run(["git", "-C", checkout, *words], check=True, capture_output=True, text=True).stdout
    for line in git("rev-list", "--all", "--objects", "--", *PLACES).splitlines():
        blob, _, path = line.partition(" ")
        if path.endswith((".yml", ".yaml", ".md", ".ipynb")):
            yield path, git("cat-file", "blob", blob)


def documents(path, text):
    """The YAML documents of a file."""
    if path.endswith(".md"):
        parts = re.findall(r"^( *)```ya?ml\n(.*?)^ *```", text, re.M | re.S)
        parts = [re.sub(rf"^{indent}", "", body, flags=re.M) for indent, body in parts]
    elif path.endswith(".ipynb"):
        cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
        parts = [body for cell in cells for body in re.findall(r'"""(.*?)"""', cell, re.S)]
    else:
        parts = [text]
    for part in parts:
        yield from re.split(r"^---.*$", part, flags=re.M)


def configurations(checkout):
    """Distinct configurations with their paths; a part about tokenizers becomes a whole one."""
    found = {}
    for path, text in texts(checkout):
        for document in documents(path, text):
            try:
                settings = yaml.safe_load(document)
            except yaml.YAMLError:
                continue
            if not isinstance(settings, dict):
                continue
            if settings.keys() & {"tokenizer", "tokenizer_source", "chat_template"} and "merge_method" not in settings:
                models = sorted({"base", *model_names(settings)})
                settings = FRAGMENT | settings | {"models": [{"model": model} for model in models]}
                document = yaml.safe_dump(settings, sort_keys=False)
            if "merge_method" in settings:
                found.setdefault(json.dumps(settings, sort_keys=True), (path, document, settings))
    return list(found.values())


def model_names(settings):
    """Every model that a configuration names."""
    names = set()
    if isinstance(settings, dict):
        for key, value in settings.items():
            is_source = key in ("source", "tokenizer_source") and value not in ("union", "base")
            is_name = isinstance(value, str) and (is_source or key in ("model", "base_model"))
            names |= {value} if is_name else model_names(value)
    elif isinstance(settings, list):
        names |= {name for value in settings for name in model_names(value)}
    return names


def write_stand_in(folder, settings, text):
    """A Llama of width 8 with the layers that are asked for, and a tokenizer with the tokens that are named."""
    folder.mkdir(parents=True)
    ends = [int(end) for end in re.findall(r"layer_range:\s*(?:\[|\n\s*-)\s*\d+\s*(?:,|\n\s*-)\s*(\d+)", text)]
    n_layers = max([4, *ends])
    tokens = dict((settings.get("tokenizer") or {}).get("tokens") or {})
    sources = [rule.get("source") for rule in tokens.values() if isinstance(rule, dict)]
    named = [source["token"] for source in sources if isinstance(source, dict) and "token" in source]
    words = [*dict.fromkeys([*"abcdefgh", "<s>", "</s>", "<unk>", *tokens, *named])]
    Tokenizer(token_models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=[])).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    settings = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": n_layers,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": len(words), "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "hidden_act": "silu", "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    shapes = {"model.embed_tokens.weight": (len(words), 8), "lm_head.weight": (len(words), 8), "model.norm.weight": (8,)}
    for layer in range(n_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}{part}_layernorm.weight": (8,) for part in ("input", "post_attention")}
        shapes |= {f"{prefix}mlp.{part}_proj.weight": (8, 8) for part in ("gate", "up", "down")}
        shapes |= {f"{prefix}self_attn.{part}_proj.weight": (8 if part in "qo" else 4, 8) for part in "qkvo"}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def plan_of_mergekit(settings):
    """mergekit's own plan in the shape of ours, one group per tensor."""
    from mergekit import merge_methods
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import _model_out_config
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner

    config, options = MergeConfiguration.model_validate(settings), MergeOptions()
    merge_methods.get(config.merge_method)
    architecture = get_architecture_info(config, options)
    LoaderCache().loaders.clear()
    LoaderCache().setup(options=options)
    choice = None
    if config.tokenizer or config.tokenizer_source:
        choice = config.tokenizer.model_dump(mode="json") if config.tokenizer else {"source": config.model_dump(mode="json")["tokenizer_source"]}
    planner = MergePlanner(config, architecture, options, _model_out_config(config, architecture))
    groups = []
    for save in planner.plan_to_disk(""):
        if not hasattr(save, "tensor_name"):
            continue
        task = save.tensor_task
        gather = getattr(task.gather_tensors, "gather_tensors", task.gather_tensors)
        inputs = [
            {"model": str(model), "tensors": [gather.weight_info[model].name], "parameters": dict(task.input_parameters[model].items())}
            for model in task.model_order
        ]
        is_used = merge_methods.get(task.method_name).spec.contract.base.value != "ignored"
        base = str(task.base_model) if task.base_model and is_used else None
        groups.append({"tensors": [save.tensor_name], "parameters": dict(task.parameters.items()), "inputs": inputs, "base_model": base})
    return {"method": config.merge_method, "dtype": config.dtype, "out_dtype": config.out_dtype, "tokenizer": choice, "groups": groups}


def by_tensor(plan):
    """Per output tensor: its base model, parameters, and per input model, source tensor and parameters."""
    found = {}
    for group in plan["groups"]:
        for at, name in enumerate(group["tensors"]):
            assert name not in found, f"{name} twice"
            inputs = [
                {"model": source["model"], "tensor": source["tensors"][at], "parameters": known(source["parameters"])} for source in group["inputs"]
            ]
            found[name] = {"base_model": group["base_model"], "parameters": known(group["parameters"]), "inputs": inputs}
    return found


def known(parameters):
    """Parameters with an effect; mergekit's unset `scale` is a scale of one."""
    return {name: 1.0 if name == "scale" and value is None else value for name, value in parameters.items() if name not in WITHOUT_EFFECT}


def tokenizer_of(plan):
    """The choice of vocabulary with what mergekit leaves out."""
    choice = plan["tokenizer"]
    if choice is None:
        return None
    rules = {}
    for token, rule in (choice.get("tokens") or {}).items():
        source = rule.get("source")
        if isinstance(source, dict) and "model" in source and "kind" not in source:
            source = name_of(source)
        elif isinstance(source, dict) and source["kind"] == "model_token":
            source = {key: name_of(value) if key == "model" else value for key, value in source.items() if value is not None}
        rules[token] = {"source": source, "force": bool(rule.get("force"))}
    return {"source": name_of(choice["source"]), "pad_to_multiple_of": choice.get("pad_to_multiple_of"), "tokens": rules}


def name_of(model):
    """A model reference as a name."""
    while isinstance(model, dict):
        model = model["model"] if "model" in model else model["path"]
    return model


def differences(ours, theirs, place=""):
    """Where two values differ; numbers at 1e-9 relative."""
    is_number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number(ours) and is_number(theirs):
        return [] if math.isclose(ours, theirs, rel_tol=1e-9) else [f"{place}: ours {ours}, mergekit {theirs}"]
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = [f"{place}: ours alone has {key}" for key in sorted(ours.keys() - theirs.keys())]
        found += [f"{place}: mergekit alone has {key}" for key in sorted(theirs.keys() - ours.keys())]
        return found + [line for key in ours if key in theirs for line in differences(ours[key], theirs[key], f"{place} {key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [line for at, pair in enumerate(zip(ours, theirs)) for line in differences(*pair, f"{place}[{at}]")]
    return [] if ours == theirs else [f"{place}: ours {ours}, mergekit {theirs}"]


def compare(settings, document):
    """One configuration in the current folder: what mergekit says, what we say."""
    try:
        theirs = plan_of_mergekit(settings)
    except Exception as error:
        return "refused by mergekit", [f"{type(error).__name__}: {' '.join(str(error).split())[:160]}", *check(document)[1]]
    ours, message = check(document)
    if ours is None:
        return ("no JSON of ours" if "accepted" in message[0] else "REFUSED BY OURS"), message
    # Where the file names no dtype ours is the one that it comes to.
    keys = ["method", *(key for key in ("dtype", "out_dtype") if theirs[key] is not None)]
    found = [line for key in keys for line in differences(ours[key], theirs[key], key)]
    found += differences(tokenizer_of(ours), tokenizer_of(theirs), "tokenizer")
    found += differences(by_tensor(ours), by_tensor(theirs))
    n_tensors, n_numbers = len(by_tensor(theirs)), sum(len(i["parameters"]) for t in by_tensor(theirs).values() for i in [t, *t["inputs"]])
    return (f"DIFFERENT, {len(found)} places" if found else f"equal, {n_tensors} tensors, {n_numbers} parameters"), found[:8]


def check(document):
    """Our plan, or none and why."""
    pathlib.Path("merge.yml").write_text(document)
    run = subprocess.run([ALOE, "merge", "merge.yml", "--check", "--json"], capture_output=True, text=True)
    if run.returncode:
        return None, [f"ours: {line.strip()}" for line in run.stderr.splitlines() if line.strip()][:8]
    try:
        return json.loads(run.stdout), ["ours: accepted"]
    except json.JSONDecodeError:
        return None, ["ours: accepted, but no JSON on standard output"]


def main(checkout, numbers):
    assert os.environ.get("PYTHONHASHSEED") == "0"
    logging.disable(logging.CRITICAL)
    counts = {}
    for number, (path, document, settings) in enumerate(configurations(checkout)):
        if numbers and number not in numbers:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)
            write_stand_in(pathlib.Path("stand-in"), settings, document)
            for name in model_names(settings):
                link = pathlib.Path(name.split("@")[0])
                if not link.is_absolute() and not link.exists():
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(pathlib.Path("stand-in").resolve())
            verdict, lines = compare(settings, document)
            os.chdir("/")
        counts[verdict.split(",")[0]] = counts.get(verdict.split(",")[0], 0) + 1
        print(f"{number:3} {path:38} {settings['merge_method']:18} {verdict}", *lines, sep="\n       ", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


if __name__ == "__main__":
    main(sys.argv[1], [int(word) for word in sys.argv[2:]])
