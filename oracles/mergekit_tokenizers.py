"""mergekit's tokenizer unions against ours on real vocabularies: ids, tokens, and every row of the embedding and the head.

Made with mergekit 0.1.5, torch 2.15 (CPU), transformers 5.23, Python 3.11, PYTHONHASHSEED=0, HF_HUB_OFFLINE=1.
Run: python oracles/mergekit_tokenizers.py NAME=TOKENIZER_FOLDER ...      (ALOE names another binary than target/release/aloe)
Per tokenizer three Llama checkpoints of width 8: `base` with the vocabulary, `chat` with tokens added behind it, `spare` with other tokens added
and rows that no token uses. Each is merged in f32 under every rule below by both programs; the table counts the rows that differ, those of
tokens that some model lacks apart. mergekit numbers new tokens in the order of a Python set of its models, so by PYTHONHASHSEED; where ids
differ, it merges again with that set in the order of the configuration, which is ours. Not here: `tokens` that are new with `source: base` and a
base without spare rows, where mergekit stops with a KeyError (it adds the tokens to the very vocabulary that it takes for the base's).
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

ALOE = pathlib.Path(os.environ.get("ALOE", pathlib.Path(__file__).resolve().parent.parent / "target/release/aloe"))
ADDED = {"base": [], "chat": ["<|begin_user|>", "<|begin_doctor|>", "<|done|>"], "spare": ["<|cite|>", "<|done|>"]}
LINEAR = "merge_method: linear\nparameters: {weight: 1}\nbase_model: base\n"
RULES = {
    "union of two": LINEAR + "models: [{model: base}, {model: chat}]\ntokenizer_source: union\n",
    "union of two, padded": LINEAR + "models: [{model: base}, {model: chat}]\ntokenizer: {source: union, pad_to_multiple_of: 64}\n",
    "union of three": LINEAR + "models: [{model: base}, {model: chat}, {model: spare}]\ntokenizer_source: union\n",
    "of one model": LINEAR + "models: [{model: base}, {model: chat}]\ntokenizer_source: chat\n",
    "base, task vectors": "merge_method: task_arithmetic\nparameters: {weight: 0.5}\nbase_model: base\nmodels: [{model: chat}, {model: spare}]\ntokenizer_source: base\n",
    "of the spare one, padded": LINEAR + "models: [{model: base}, {model: spare}]\ntokenizer: {source: spare, pad_to_multiple_of: 128}\n",
    "union, task vectors": "merge_method: task_arithmetic\nparameters: {weight: 0.5}\nbase_model: base\nmodels: [{model: chat}, {model: base}]\ntokenizer_source: union\n",
    "rows by id, forced": LINEAR + "models: [{model: base}, {model: chat}]\ntokenizer:\n  source: union\n  tokens:\n"
    "    the: {source: {kind: zero}, force: true}\n    <|done|>: {source: chat}\n    <|new|>: {source: {kind: zero}}\n"
    "    <|begin_user|>: {source: {kind: model_token, model: base, token_id: 5}, force: true}\n",
    "rows by token": LINEAR + "models: [{model: base}, {model: chat}]\ntokenizer:\n  source: union\n  tokens:\n"
    "    <|done|>: {source: chat, force: true}\n    <|begin_user|>: {source: {kind: zero}}\n"
    "    <|begin_doctor|>: {source: {kind: model_token, model: base, token: the}}\n",
}


def write(folder, tokenizer_folder, name):
    folder.mkdir(parents=True)
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ADDED[name]])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    rows = max(tokenizer.get_vocab().values()) + 1 + (13 if name == "spare" else 0)
    settings = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": rows, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "hidden_act": "silu", "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": (rows, 8), "lm_head.weight": (rows, 8), "model.norm.weight": (8,)}
    shapes |= {f"{layer}{part}_layernorm.weight": (8,) for part in ("input", "post_attention")}
    shapes |= {f"{layer}mlp.{part}_proj.weight": (8, 8) for part in ("gate", "up", "down")}
    shapes |= {f"{layer}self_attn.{part}_proj.weight": (8 if part in "qo" else 4, 8) for part in "qkvo"}
    random = torch.Generator().manual_seed(sorted(ADDED).index(name))
    tensors = {key: torch.randn(shape, generator=random) for key, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def merge_theirs(text, root):
    shutil.rmtree(root / "theirs", ignore_errors=True)
    settings = MergeConfiguration.model_validate(yaml.safe_load(text + "dtype: float32\n"))
    run_merge(settings, str(root / "theirs"), MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False))


def run(text, root):
    """Both merge; the verdict, with mergekit's models in listed order as well where that matters."""
    merge_theirs(text, root)
    shutil.rmtree(root / "ours", ignore_errors=True)
    (root / "merge.yml").write_text(text + "dtype: float32\n")
    subprocess.run([ALOE, "merge", "merge.yml", "ours", "--threads", "1"], check=True, capture_output=True)
    verdict = compared(text, root)
    if "ids not" not in verdict:
        return verdict
    of_set = MergeConfiguration.referenced_models
    MergeConfiguration.referenced_models = lambda settings: sorted(of_set(settings), key=lambda model: text.index(f"{{model: {model}}}"))
    try:
        merge_theirs(text, root)
    finally:
        MergeConfiguration.referenced_models = of_set
    return f"{verdict}\n{'':33} in listed order {compared(text, root)}"


def compared(text, root):
    vocabularies = [Tokenizer.from_file(str(root / out / "tokenizer.json")).get_vocab() for out in ("theirs", "ours")]
    theirs, ours = (load_file(root / out / "model.safetensors") for out in ("theirs", "ours"))
    known = [Tokenizer.from_file(str(root / name / "tokenizer.json")).get_vocab() for name in ADDED if name in text]
    same_ids = vocabularies[0] == vocabularies[1]
    same_tokens = vocabularies[0].keys() == vocabularies[1].keys()
    new = [token for token in vocabularies[0] if any(token not in vocabulary for vocabulary in known)]
    counts = []
    for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
        a, b = ours[tensor], theirs[tensor]
        if a.shape != b.shape:
            return f"shapes {tuple(a.shape)} {tuple(b.shape)}"
        unequal = {token for token, at in vocabularies[0].items() if not close(a[vocabularies[1].get(token, 0)], b[at])}
        padding = sum(not close(a[row], b[row]) for row in range(len(vocabularies[0]), len(b)))
        counts.append(f"{len(unequal)}/{len(unequal & set(new))}/{padding}")
    ids = "ids equal" if same_ids else "tokens equal, ids not" if same_tokens else "TOKENS DIFFER"
    return f"{len(b):>7} rows, {len(new)} tokens that some model lacks; {ids}; unequal rows (all/of those/padding): {', '.join(counts)}"


def close(a, b):
    return bool(((a - b).abs() <= 1e-6 * b.abs().clamp(min=b.square().mean().sqrt())).all())


if __name__ == "__main__":
    assert os.environ.get("PYTHONHASHSEED") == "0"
    for argument in sys.argv[1:]:
        called, folder = argument.split("=")
        source = pathlib.Path(folder).resolve()
        with tempfile.TemporaryDirectory() as scratch:
            root = pathlib.Path(scratch)
            os.chdir(root)
            for name in ADDED:
                write(root / name, source, name)
            for rule, text in RULES.items():
                try:
                    print(f"{called:10} {rule:22} {run(text, root)}", flush=True)
                except Exception as error:
                    detail = getattr(error, "stderr", b"") or b""
                    print(f"{called:10} {rule:22} {type(error).__name__}: {error} {detail.decode()}", flush=True)
