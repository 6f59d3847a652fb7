"""Folders that `aloe merge` wrote, loaded by transformers: the logits are those of a model whose weights are merged here in torch, the ids those of
the tokenizer, which `aloe` and transformers read alike; one folder in a single file, one in shards, one with the union of two vocabularies.

Made with transformers 5.23, torch 2.15 (CPU), safetensors, tokenizers 0.22, Python 3.11.
Run: python oracles/merged_by_transformers.py        (ALOE names another binary than target/release/aloe)
The models are two tiny Llamas of random weights; `linear` of both in float32, so that the expected weights are a weighted mean. Shards are read, not
written: transformers writes the inputs in files of 100 kB. Prints the largest difference of logits, and stops where ids differ or a weight is missing.
"""

import os
import pathlib
import subprocess
import tempfile

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

ALOE = pathlib.Path(os.environ.get("ALOE", pathlib.Path(__file__).resolve().parent.parent / "target/release/aloe")).resolve()
PLAIN = [f"w{at}" for at in range(90)]
TEXTS = ["w1 w2 w3 w89", "w5 <|a|> w6", "w7 <|b|> <|a|> w8", "w0"]


def write(folder, seed, added):
    """A model and a tokenizer with `added` tokens after the plain ones."""
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate([*PLAIN, "<unk>"])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    n_rows = tokenizer.get_vocab_size()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=n_rows, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="100KB")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}')


def aloe(yaml, out):
    path = out.with_suffix(".yml")
    path.write_text(yaml)
    run = subprocess.run([ALOE, "merge", path, out], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def compare(name, out, expected, weights):
    """Logits of the written folder and of a model with the expected weights; ids of its tokenizer."""
    merged, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    tokenizer = AutoTokenizer.from_pretrained(out)
    reference = LlamaForCausalLM(merged.config)
    reference.load_state_dict(weights)
    vocabulary = tokenizer.get_vocab()
    worst = 0.0
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == [expected.get(word, expected["<unk>"]) for word in text.split()], (name, text, ids)
        worst = max(worst, (logits(merged.eval(), ids) - logits(reference.eval(), ids)).abs().max().item())
    n_files = len(list(out.glob("*.safetensors")))
    print(f"{name}: {len(vocabulary)} tokens, {merged.config.vocab_size} rows, {n_files} files, largest difference of logits {worst:.2e}")
    assert worst < 1e-5


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        write(root / "a", 1, ["<|a|>"])
        write(root / "b", 2, ["<|a|>"])
        write(root / "c", 3, ["<|b|>"])
        load = lambda name: LlamaForCausalLM.from_pretrained(root / name, dtype=torch.float32).state_dict()
        a, b, c = load("a"), load("b"), load("c")
        assert len(list((root / "a").glob("*.safetensors"))) > 2
        yaml = "models: [{{model: {0}/a, parameters: {{weight: 1}}}}, {{model: {0}/{1}, parameters: {{weight: 3}}}}]\nmerge_method: linear\ndtype: float32\n"
        expected = {word: at for at, word in enumerate([*PLAIN, "<unk>", "<|a|>"])}
        aloe(yaml.format(root, "b"), root / "plain")
        compare("linear of shards", root / "plain", expected, {name: (a[name] + 3 * b[name]) / 4 for name in a})
        aloe(yaml.format(root, "c") + "tokenizer_source: union\n", root / "union")
        weights = {}
        for name, value in a.items():
            other = c[name]
            if value.shape[0] == len(expected) and name.split(".")[-2] in ("embed_tokens", "lm_head"):
                # 91 tokens are in both; the token of each alone has that model's row in both.
                own, others = torch.cat([value, other[91:92]]), torch.cat([other[:91], value[91:92], other[91:92]])
                weights[name] = (own + 3 * others) / 4
            else:
                weights[name] = (value + 3 * other) / 4
        compare("union of two vocabularies", root / "union", expected | {"<|b|>": 92}, weights)


if __name__ == "__main__":
    main()
