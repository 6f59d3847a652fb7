#!/usr/bin/env python3
"""Times prefill and decoding against llama.cpp and PyTorch, in turn, on the same weights and two threads.

Each round runs, in an order that rotates: `aloe bench --runs 1` in bf16 and in 4-bit, llama.cpp's own llama-bench (512 and 2048 tokens of
prompt, 128 drawn; flash attention on and off, the faster counts) and llama-batched-bench (16 streams of 128 tokens after one shared
prompt of 512) on a bf16, a Q8_0 and a Q4_0 file, and PyTorch (bf16, sdpa, logits of the last position only). llama.cpp's tools draw no
tokens from the logits, `aloe bench` does; a peer's figure is that of its fastest format where the work allows one.
`--only-cpu avx2` runs `aloe` with ALOE_CPU=avx2 against a llama.cpp that was built without AVX-512, and leaves PyTorch out.

Pinned: python 3.11, torch 2.15, transformers 5.23; llama.cpp of the llama-cpp-python 0.3.36 source package, built with GGML_NATIVE
(or with AVX2, FMA and F16C alone). Random token ids on all sides; no seeds.
Run: python oracles/engine_peers.py ALOE MODEL_FOLDER LLAMA_BIN_FOLDER GGUF_PREFIX [--rounds 5] [--lock FILE]
GGUF_PREFIX-bf16.gguf, -Q8_0.gguf and -Q4_0.gguf are the same weights. Prints one line a work with the medians and the median ratio.
"""

import argparse
import json
import os
import statistics
import subprocess
import time

import torch
from machine_lock import held
from transformers import AutoModelForCausalLM

FORMATS = ["bf16", "Q8_0", "Q4_0"]


def bench(binary, model, arguments, environment):
    found = subprocess.run([binary, "bench", model, "--runs", "1", "--json", *arguments], check=True, capture_output=True, text=True,
                           env=os.environ | environment)
    report = json.loads(found.stdout)
    return {row["work"]: row for row in report["rows"]}


def llama(folder, prefix, formats):
    """Tokens a second by (work, format)."""
    rates = {}
    for name in formats:
        model = f"{prefix}-{name}.gguf"
        for flash in ["0", "1"]:
            out = subprocess.run([f"{folder}/llama-bench", "-m", model, "-t", "2", "-p", "512,2048", "-n", "128", "-fa", flash, "-r", "1", "-o",
                                  "json"], check=True, capture_output=True, text=True).stdout
            for row in json.loads(out):
                work = "decode 1" if row["n_gen"] else f"prefill {row['n_prompt']}"
                rates[work, name] = max(rates.get((work, name), 0), row["avg_ts"])
        out = subprocess.run([f"{folder}/llama-batched-bench", "-m", model, "-t", "2", "-tb", "2", "-c", "16384", "-b", "2048", "-ub", "512",
                              "-fa", "on", "-kvu", "-npp", "512", "-ntg", "128", "-npl", "16", "-pps", "--output-format", "jsonl"], check=True,
                             capture_output=True, text=True).stdout
        row = next(json.loads(line) for line in out.splitlines() if line.startswith("{"))
        rates["decode 16", name] = row["speed_tg"]
    return rates


class Torch:
    def __init__(self, folder):
        torch.set_num_threads(2)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").eval()

    @torch.inference_mode()
    def rates(self):
        found = {}
        for n in [512, 2048]:
            ids = torch.randint(0, 49152, (1, n))
            best = 0
            for _ in range(3):
                start = time.perf_counter()
                self.model(ids, use_cache=True, logits_to_keep=1)
                best = max(best, n / (time.perf_counter() - start))
            found[f"prefill {n}", "PyTorch bf16"] = best
        return found


def ours(options, environment):
    works = {"prefill 512": "prefill, 512", "prefill 2048": "prefill, 2048", "decode 1": "decode, one stream", "decode 16": "decode, 16"}
    rates = {}
    for name, arguments in [("bf16", []), ("q4", ["--quantize", "q4"])]:
        rows = bench(options.binary, options.model, arguments, environment)
        for short, start in works.items():
            row = next(row for work, row in rows.items() if work.startswith(start))
            rates[short, name] = row["tokens_per_s"]
            rates[short + " share", name] = row["share_of_limit"]
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("llama")
    parser.add_argument("gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only-cpu")
    parser.add_argument("--lock", help="file whose lock is held during a round")
    options = parser.parse_args()
    environment = {"ALOE_CPU": options.only_cpu} if options.only_cpu else {}
    works = {"aloe": lambda: ours(options, environment), "llama": lambda: llama(options.llama, options.gguf, FORMATS)}
    if not options.only_cpu:
        works["torch"] = Torch(options.model).rates
    rounds = []
    for number in range(options.rounds):
        names = list(works)
        names = names[number % len(names):] + names[: number % len(names)]
        found = {}
        with held(options.lock):
            for name in names:
                found |= {(name, *key): rate for key, rate in works[name]().items()}
        rounds.append(found)
        print(f"round {number + 1}", {" ".join(key): round(rate, 2) for key, rate in found.items()}, flush=True)
    peers_of = {
        ("prefill 512", "bf16"): [("llama", "prefill 512", "bf16"), ("torch", "prefill 512", "PyTorch bf16")],
        ("prefill 2048", "bf16"): [("llama", "prefill 2048", "bf16"), ("torch", "prefill 2048", "PyTorch bf16")],
        ("decode 1", "bf16"): [("llama", "decode 1", "bf16")],
        ("decode 1", "q4"): [("llama", "decode 1", "Q4_0")],
        ("decode 16", "bf16"): [("llama", "decode 16", name) for name in FORMATS],
        ("decode 16", "q4"): [("llama", "decode 16", name) for name in FORMATS],
    }
    print("| work | aloe, tokens/s | share of the limit | fastest peer | its tokens/s | median ratio | ratios |\n|---|---|---|---|---|---|---|")
    for (work, name), peers in peers_of.items():
        medians = {peer: statistics.median(r[peer] for r in rounds) for peer in peers if peer in rounds[0]}
        best = max(medians, key=medians.get)
        ratios = [r["aloe", work, name] / r[best] for r in rounds]
        mine, share = (statistics.median(r["aloe", w, name] for r in rounds) for w in (work, work + " share"))
        print(f"| {work} {name} | {mine:.0f} | {share:.0%} | {best[0]} {best[2]} | {medians[best]:.0f} | {statistics.median(ratios):.2f} | "
              f"{', '.join(f'{ratio:.2f}' for ratio in ratios)} |")


if __name__ == "__main__":
    main()
