#!/usr/bin/env python3
"""Holds the memory that `aloe plan` gives for training stages against the peaks of short runs of them.

Writes a recipe of one pull and a stage for each case (SmolLM2-135M, bf16, real rows of MedQuAD and GenMedGPT by turns, pairs of dpo_pairs), plans it, and
runs each stage for its few steps in a process of its own; the peak is the resident maximum that its record holds.

    ALOE_DATA=... python3 oracles/plan_memory.py ALOE_BINARY MODEL.gguf WORK_FOLDER [--cases sft-2x512,dpo-1]

Prints planned and measured MiB and their ratio; exits with 1 where one is not within 0.85 to 1.15. Python 3.11, no packages, no seed.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import dpo_parity
import sft_parity

SFT = {
    "sft-1x1024": dict(max_len=1024, batch_size=2),
    "sft-2x512": dict(max_len=512, batch_size=2, micro_batch_size=2),
    "sft-1x2048": dict(max_len=2048, batch_size=1),
    "sft-1x2048-recompute": dict(max_len=2048, batch_size=1, recompute=True),
    "sft-1x8192-recompute": dict(max_len=8192, batch_size=1, recompute=True, max_steps=1),
    "lora-1x1024": dict(max_len=1024, batch_size=2, lora=dict(rank=16)),
    "lora-1x1024-q8": dict(max_len=1024, batch_size=2, lora=dict(rank=16, base="q8")),
    "lora-1x2048-recompute": dict(max_len=2048, batch_size=1, recompute=True, lora=dict(rank=16)),
}
DPO = {
    "dpo-1": dict(max_len=1024, batch_size=8),
    "dpo-2": dict(max_len=1024, batch_size=8, micro_batch_size=2),
    "dpo-1-recompute": dict(max_len=1024, batch_size=8, recompute=True),
    "dpo-1-lora": dict(max_len=1024, batch_size=8, lora=dict(rank=16)),
}
N_TOKENS, N_PAIRS = 40_000, 16


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


def write(options):
    answer = lambda text: [{"role": "assistant", "content": text.strip()}]
    rows, n_characters = [], 0
    for question, text in sft_parity.raw_rows():
        if n_characters < 4 * N_TOKENS:
            rows.append({"messages": [{"role": "user", "content": question.strip()}] + answer(text)})
            n_characters += len(question) + len(text)
    pairs = []
    for prompt, chosen, rejected in dpo_parity.raw_pairs():
        if chosen.strip() and rejected.strip() and chosen != rejected and len(pairs) < N_PAIRS:
            pairs.append({"prompt": prompt, "chosen": answer(chosen), "rejected": answer(rejected)})
    for name, lines in (("rows", rows), ("pairs", pairs)):
        (options.work / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = f'name = "plan-memory"\nseed = 7\ndtype = "bf16"\n\n[[stage]]\nkind = "pull"\nname = "base"\nsource = {toml(str(options.model))}\nlicence = "apache-2.0"\n'
    for kind, cases in (("sft", SFT), ("dpo", DPO)):
        data = options.work / ("rows.jsonl" if kind == "sft" else "pairs.jsonl")
        for name, settings in cases.items():
            settings = dict(lr=1e-5, max_steps=2, checkpoint_every=0, held_out_share=0.0) | settings
            text += f'\n[[stage]]\nkind = "{kind}"\nname = "{name}"\nfrom = {{ model = "base", data = {toml(str(data))} }}\n'
            text += "".join(f"{key} = {toml(value)}\n" for key, value in settings.items())
    path = options.work / "recipe.toml"
    path.write_text(text)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aloe", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--cases", type=lambda text: text.split(","), default=[*SFT, *DPO])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    recipe, out = write(options), options.work / "out"
    run = lambda *command: subprocess.run([str(part) for part in (options.aloe, *command)], check=True, capture_output=True, text=True).stdout
    run("run", recipe, "--out", out, "--stage", "base")
    planned = {row["stage"]: row["memory_bytes"] for row in json.loads(run("plan", recipe, "--out", out, "--json"))["stages"]}
    good = True
    for name in options.cases:
        if not (out / name / "record.json").exists():
            run("run", recipe, "--out", out, "--stage", name, "--threads", 2)
        record = json.loads((out / name / "record.json").read_text())
        ratio = planned[name] / record["peak_rss_bytes"]
        good &= 0.85 <= ratio <= 1.15
        print(f"{name}: planned {planned[name] / 2**20:.0f} MiB, measured {record['peak_rss_bytes'] / 2**20:.0f}, {ratio:.2f}", flush=True)
    sys.exit(not good)


main()
