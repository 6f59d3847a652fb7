#!/usr/bin/env python3
"""Holds what `aloe-handoff` writes for axolotl against axolotl itself, on processors. Parts, each its own process:

    python oracles/engine_axolotl.py validate    every configuration of tests/engine_cases through axolotl's own validation, as on H100s
                                                 -> tests/golden/engine_axolotl.json; then the ten misspelt keys of tests/engine.rs, which
                                                 it lets through (why our check exists)
    python oracles/engine_axolotl.py losses [KIND..]
                                                 SFT, DPO, DPO in two chunks, and with held-out rows, ten steps, f32: axolotl started by engine.py with engine.yaml
                                                 from the run folder, our trainer on the same rows; losses, the movement of every tensor, the
                                                 checker's verdict and the import of axolotl's folder -> tests/golden/axolotl_losses.json
    python oracles/engine_axolotl.py rows        the 2,000 conversations of engine_trl.py, or with --data FOLDER/train.jsonl the first 2,000 that a data
                                                 stage wrote: axolotl's own preparation (type: chat_template) against our ids and labels, with
                                                 SmolLM2's template, ChatML and Llama 3. Named exceptions: answers that begin with white space, and
                                                 empty ones, whose end of turn axolotl does not train

Build first: cargo build --release -p aloe-handoff --examples. `rows` needs ALOE_MODELS and ALOE_DATA.
Pinned: python 3.11, axolotl 0.19.0, trl 1.9.0, transformers 5.16.1, accelerate 1.13.0, torch 2.13.0. Seed of the made rows: 5.
A GPU is made up for `validate` (compute capability 9.0, bf16), since the schema asks for one.
"""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES = ROOT / "target/release/examples"
GOLDEN = ROOT / "crates/aloe-handoff/tests/golden"


def versions():
    return {name: importlib.metadata.version(name) for name in ("axolotl", "trl", "transformers", "accelerate")}


def validate():
    import yaml
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    def taken(text, n_gpu=4, n_node=2):
        has_gpu = "fsdp_config" in text
        capabilities = {"bf16": has_gpu, "n_gpu": n_gpu, "n_node": n_node, "fp8": False, "tf32": has_gpu, "compute_capability": "sm_90" if has_gpu else None}
        return validate_config(DictDefault(yaml.safe_load(text)), capabilities=capabilities, env_capabilities={"torch_version": "2.13.0"})

    cases = json.loads(subprocess.run([EXAMPLES / "engine_cases", "axolotl"], check=True, capture_output=True).stdout)
    for name, text in cases.items():
        read = taken(text)
        # What was read is what was meant, not only something.
        assert read.max_steps == 240 and read.datasets[0]["path"].endswith("rendered.jsonl") and read.skip_prepare_dataset, name
        assert isinstance(read.learning_rate, float) and read.shuffle_merged_datasets is False and read.logging_steps == 1, name
        written = yaml.safe_load(text)
        for key, value in written.items():
            if key in ("datasets", "test_datasets", "fsdp_config"):
                continue
            assert read[key] == value, (name, key, value, read[key])
        for key, value in written.get("fsdp_config", {}).items():
            assert read.fsdp_config[key] == value, (name, key)
        if "fsdp_config" in text:
            assert read.fsdp_version == 2, name
        print("accepted", name)
    golden = {"versions": versions(), "accepted": cases}
    (GOLDEN / "engine_axolotl.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(len(cases), "configurations accepted by axolotl's own validation")
    source = (ROOT / "crates/aloe-handoff/tests/engine.rs").read_text()
    text = re.search(r'const AXOLOTL: &str = "\\\n(.*?)";', source, re.S)[1].replace("\\n", "\n")
    typos = re.search(r"let typos = \[(.*?)\n    \];", source, re.S)[1]
    typos = re.findall(r'\(\s*"(\w+)",\s*"(\w+)",', typos)
    assert len(typos) == 10, typos
    for name, changed in [("as it is", text), *((f"{a} -> {b}", text.replace(f"{a}:", f"{b}:", 1)) for a, b in typos)]:
        taken(changed)
        print("let through:", name)


def train(run, kind):
    stage = f"stages/01-{kind}"
    torchrun = pathlib.Path(sys.executable).parent / "torchrun"
    command = [torchrun, "--standalone", "--nproc-per-node=1", f"{stage}/engine.py", "axolotl.cli.train", "--config", f"{stage}/engine.yaml"]
    done = subprocess.run(command, cwd=run, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{kind}: exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    state = json.loads((run / f"work/{kind}/trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def judged(run, kind):
    command = [EXAMPLES / "engine_run", "verify", run, f"stages/01-{kind}", f"work/{kind}", run / "out/tuned"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def losses():
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    from engine_trl import farthest_held_out, held_out, movement

    path = GOLDEN / "axolotl_losses.json"
    golden = {**(json.loads(path.read_text()) if sys.argv[2:] else {}), "versions": versions()}
    for kind in sys.argv[2:] or ("sft", "dpo", "chunks", "held", "patience", "held-dpo"):
        with tempfile.TemporaryDirectory() as folder:
            run = pathlib.Path(folder) / "run"
            subprocess.run([EXAMPLES / "engine_run", "write", run, kind, "1", "axolotl"], check=True)
            theirs = train(run, kind)
            lines = [json.loads(line) for line in (run / "ours/metrics.jsonl").read_text().splitlines()]
            ours = [line["loss"] for line in lines if "loss" in line]
            worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
            tensor, move = movement(run, kind)
            said = judged(run, kind)
            print(f"{kind}: worst loss difference {worst:.1e}, worst movement difference {move:.1e} ({tensor})")
            print("  axolotl", [round(loss, 6) for loss in theirs])
            print("  ours   ", [round(loss, 6) for loss in ours])
            print("  checker:", said["findings"] or "good", {key: said["facts"][key] for key in ("n_steps", "world_size", "n_hosts", "versions")})
            assert worst <= 1e-4 and move <= 1e-2 and not said["findings"]
            print("  import:", said["import"]["engine"], said["import"]["export"], "newest checkpoint", said["newest"])
            golden[kind] = theirs
            if kind in ("held", "patience", "held-dpo"):
                farthest = farthest_held_out(run, kind)
                print(f"  held out: worst difference {farthest:.1e}, weights of step", said["facts"]["held_out"]["exported_step"])
                assert farthest <= 1e-4
                golden[f"{kind}, held out"] = held_out(run, kind)
    path.write_text(json.dumps(golden) + "\n")


def compared(name, made, tokenizer_from, template):
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        source = folder / "rows.jsonl"
        source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
        given = tokenizer_from
        if given.is_dir():
            given = folder / "tokenizer"
            given.mkdir()
            (given / "tokenizer.json").write_bytes((tokenizer_from / "tokenizer.json").read_bytes())
            (given / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast"}))
        subprocess.run([EXAMPLES / "engine_run", "rows", folder / "out", given, source, *template], check=True)
        ours = [json.loads(line) for line in open(folder / "out/ours.jsonl")]
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "out")
        jinja = (folder / "out/data/template.jinja").read_text()
        config = DictDefault({"sequence_len": 100_000, "train_on_inputs": False})
        rows = {"path": "messages.jsonl", "type": "chat_template", "chat_template": "jinja", "chat_template_jinja": jinja, "field_messages": "messages"}
        rows |= {"message_property_mappings": {"role": "role", "content": "content"}, "roles_to_train": ["assistant"], "train_on_eos": "turn"}
        strategy = load(tokenizer, config, DictDefault(rows))
        kept = [at for at, row in enumerate(ours) if "refused" not in row]
        differ = []
        for at in kept:
            theirs = strategy.tokenize_prompt(made[at])
            if list(theirs["input_ids"]) != ours[at]["input_ids"] or list(theirs["labels"]) != ours[at]["labels"]:
                differ.append(at)
        answers = lambda at: [m["content"] for m in made[at]["messages"] if m["role"] == "assistant"]
        # An answer's first white space can join the prompt's last line break in a token that no prompt ends with; ours begins a token where
        # the answer begins, as the model will when it is asked.
        spaced = {at for at in kept if any(answer[:1].isspace() for answer in answers(at))}
        empty = {at for at in kept if any(not answer.strip() for answer in answers(at))}
        refused = [ours[at]["refused"] for at in set(range(len(made))) - set(kept)]
        print(f"{name}: {len(kept)} of {len(made)} rows rendered, {len(kept) - len(differ)} with axolotl's ids and labels; {len(refused)} refused: {sorted(set(refused))}")
        other = set(differ) - spaced - empty
        print(f"  {len(spaced)} rows have an answer that begins with white space, of which {len(spaced & set(differ))} differ; {len(empty - spaced)} an empty one, of which {len((empty - spaced) & set(differ))} differ; of the other {len(set(kept) - spaced - empty)} rows {len(other)} differ")
        for at in sorted(other)[:3]:
            theirs = strategy.tokenize_prompt(made[at])
            where = next((i for i, (a, b) in enumerate(zip(theirs["input_ids"], ours[at]["input_ids"])) if a != b), None)
            labels = [(i, a, b) for i, (a, b) in enumerate(zip(theirs["labels"], ours[at]["labels"])) if a != b][:5]
            print("   ", at, "first other id at", where, "other labels", labels, repr(made[at]["messages"])[:200])
        return len(other)


def rows():
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    from engine_trl import made_rows

    models = pathlib.Path(os.environ["ALOE_MODELS"])
    smollm2 = models / "smollm2-135m-instruct-q4_1/model.gguf"
    cases = [("SmolLM2's own template", smollm2, []), ("SmolLM2 with ChatML", smollm2, ["chatml"]), ("Llama 3", models / "llama3-tokenizer", ["llama3"])]
    which, made = "made rows", made_rows()
    if "--data" in sys.argv:
        path = sys.argv[sys.argv.index("--data") + 1]
        which, made = "rows of a data stage", [json.loads(line) for line in open(path, encoding="utf-8")][:2000]
    n = sum(compared(f"{which}, {name}", made, tokenizer_from, template) for name, tokenizer_from, template in cases)
    assert n == 0, n


if __name__ == "__main__":
    {"validate": validate, "losses": losses, "rows": rows}[sys.argv[1]]()
