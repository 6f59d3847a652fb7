#!/usr/bin/env python3
"""Times prefill and decoding against llama.cpp and PyTorch at their best, in turn, on the same weights and two threads.

The peers' settings, all timed once before the rounds (decoding of 16 streams at a quarter of its length):
- llama.cpp, by its own llama-bench (512 and 2048 tokens of prompt; 128 drawn at a depth of 128, as `aloe bench` draws them) and
  llama-batched-bench (16 streams of 128 tokens after one shared prompt of 512): flash attention on and off, parts of 512 and of 2048
  tokens, the file mapped, or read into memory in large pages (`-lm none` with GLIBC_TUNABLES=glibc.malloc.hugetlb=1), and for 16 streams
  a bf16, a Q8_0 and a Q4_0 file;
- PyTorch (bf16, sdpa, logits of the last position only, keys and values kept): eager, torch.compile, and torch.compile with weights that
  are laid out anew once (inductor's `freezing`).
The two fastest settings for each work are timed in each round, and the one with the better median is the peer. One that fails is named and
left out. A round runs, in an order that rotates, `aloe bench --runs 1` in bf16 and in 4-bit, llama.cpp and PyTorch; it takes about two
minutes. llama.cpp's tools draw no tokens from the logits, `aloe bench` does.
`--only-cpu avx2` runs `aloe` with ALOE_CPU=avx2 against a llama.cpp that was built without AVX-512, and leaves PyTorch out.

Pinned: python 3.11, torch 2.15, transformers 5.23, g++ 12 or newer; llama.cpp of the llama-cpp-python 0.3.36 source package, built with
GGML_NATIVE (or with -DGGML_NATIVE=OFF and AVX2, FMA, F16C and BMI2 alone). Random token ids on all sides; no seeds.
Run: python oracles/engine_peers.py ALOE MODEL_FOLDER LLAMA_BIN_FOLDER GGUF_PREFIX [--rounds 5] [--lock FILE]
GGUF_PREFIX-bf16.gguf, -Q8_0.gguf and -Q4_0.gguf are the same weights. Prints one line a work with the medians and the median ratio.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from machine_lock import held

FORMATS = ["bf16", "Q8_0", "Q4_0"]

# (work, our form of the weights): the peers' forms that it is set against.
WORKS = {
    ("prefill 512", "bf16"): ["bf16"],
    ("prefill 2048", "bf16"): ["bf16"],
    ("decode 1", "bf16"): ["bf16"],
    ("decode 1", "q4"): ["Q4_0"],
    ("decode 16", "bf16"): FORMATS,
    ("decode 16", "q4"): FORMATS,
}

MEMORY = {"mapped": (["-lm", "mmap"], {}), "large pages": (["-lm", "none"], {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"})}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A way in which a peer does a work; `run` gives tokens a second, of a shorter run where it is asked for one."""

    peer: str
    work: str
    format: str
    name: str
    run: Callable[[bool], float] = dataclasses.field(compare=False)

    def __str__(self):
        return f"{self.peer} {self.format} ({self.name})"


def output(command, environment):
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment).stdout


def llama_bench(folder, model, work, arguments, environment):
    out = output([f"{folder}/llama-bench", "-m", model, "-t", "2", "-r", "1", "-o", "json", *work, *arguments], environment)
    return json.loads(out)[0]["avg_ts"]


def llama_batched(folder, model, arguments, environment, is_short):
    out = output([f"{folder}/llama-batched-bench", "-m", model, "-t", "2", "-tb", "2", "-c", "16384", "-b", "2048", "-ub", "512", "-kvu", "-npp",
                  "512", "-ntg", "32" if is_short else "128", "-npl", "16", "-pps", "--output-format", "jsonl", *arguments], environment)
    return next(json.loads(line) for line in out.splitlines() if line.startswith("{"))["speed_tg"]


def llama_settings(folder, prefix):
    prefill = ("-n", "0", "-b", "2048", "-p")
    works = {
        ("prefill 512", "ub 512"): (["bf16"], [*prefill, "512", "-ub", "512"]),
        ("prefill 2048", "ub 512"): (["bf16"], [*prefill, "2048", "-ub", "512"]),
        ("prefill 2048", "ub 2048"): (["bf16"], [*prefill, "2048", "-ub", "2048"]),
        ("decode 1", "depth 128"): (["bf16", "Q4_0"], ["-p", "0", "-n", "128", "-d", "128"]),
    }
    found = []
    for (memory, (arguments, environment)), flash in itertools.product(MEMORY.items(), ["on", "off"]):
        name, how = f"{memory}, flash attention {flash}", [*arguments, "-fa", flash]
        for (work, part), (formats, asked) in works.items():
            for form in formats:
                def run(_, form=form, asked=asked, how=how, environment=environment):
                    return llama_bench(folder, f"{prefix}-{form}.gguf", asked, how, environment)
                found.append(Setting("llama.cpp", work, form, f"{name}, {part}", run))
        for form in FORMATS:
            def run(is_short, form=form, how=how, environment=environment):
                return llama_batched(folder, f"{prefix}-{form}.gguf", how, environment, is_short)
            found.append(Setting("llama.cpp", "decode 16", form, name, run))
    return found


def torch_settings(model_folder):
    # Large pages for PyTorch's own buffers too.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    models = {
        "eager": model,
        "compiled": torch.compile(model, dynamic=False),
        "compiled, frozen weights": torch.compile(model, dynamic=False, options={"freezing": True}),
    }

    def prefill(model, n):
        ids = torch.randint(0, 49152, (1, n))
        with torch.inference_mode():
            start = time.perf_counter()
            model(ids, use_cache=True, logits_to_keep=1)
            return n / (time.perf_counter() - start)

    # The first call compiles, and is slow of course; the best of three counts.
    return [Setting("PyTorch", f"prefill {n}", "bf16", name, lambda _, model=model, n=n: max(prefill(model, n) for _ in range(3)))
            for name, model in models.items() for n in [512, 2048]]


def fastest(settings, lock):
    """The two fastest settings for each of our works; a work that is no peer's is an error."""
    rates = {}
    for _, group in itertools.groupby(sorted(settings, key=lambda s: (s.peer, s.work)), key=lambda s: (s.peer, s.work)):
        with held(lock):
            for setting in group:
                try:
                    rates[setting] = setting.run(True)
                except Exception as error:  # noqa: BLE001: whatever a peer cannot do is named, and the others are timed
                    told = (getattr(error, "stderr", None) or str(error)).strip() or repr(error)
                    print(f"{setting.work}, {setting}: not timed: {told.splitlines()[-1]}", flush=True)
                    continue
                print(f"{setting.work}, {setting}: {rates[setting]:.1f} tokens/s", flush=True)
    kept = {(work, form): sorted((s for s in rates if s.work == work and s.format in formats), key=rates.get)[-2:]
            for (work, form), formats in WORKS.items()}
    if not all(kept.values()):
        sys.exit(f"no peer does {' nor '.join(work for (work, _), settings in kept.items() if not settings)}")
    return kept


def ours(options, environment):
    starts = {"prefill 512": "prefill, 512", "prefill 2048": "prefill, 2048", "decode 1": "decode, one stream", "decode 16": "decode, 16"}
    rates = {}
    for form, arguments in [("bf16", []), ("q4", ["--quantize", "q4"])]:
        report = json.loads(output([options.binary, "bench", options.model, "--runs", "1", "--json", *arguments], environment))
        for work, start in starts.items():
            row = next(row for row in report["rows"] if row["work"].startswith(start))
            rates["aloe", work, form] = (row["tokens_per_s"], row["share_of_limit"])
    return rates


def timed(peer, kept):
    return lambda: {setting: setting.run(False) for setting in sorted({s for some in kept.values() for s in some}, key=str)
                    if setting.peer == peer}


def table(rounds, kept):
    print("| work | aloe, tokens/s | share of the limit | fastest peer | its tokens/s | median ratio | ratios |\n|---|---|---|---|---|---|---|")
    for (work, form), settings in kept.items():
        medians = {setting: statistics.median(found[setting] for found in rounds) for setting in settings}
        best = max(medians, key=medians.get)
        mine, share = (statistics.median(found["aloe", work, form][at] for found in rounds) for at in (0, 1))
        ratios = [found["aloe", work, form][0] / found[best] for found in rounds]
        print(f"| {work} {form} | {mine:.0f} | {share:.0%} | {best} | {medians[best]:.0f} | {statistics.median(ratios):.2f} | "
              f"{', '.join(f'{ratio:.2f}' for ratio in ratios)} |")


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
    settings = llama_settings(options.llama, options.gguf)
    if not options.only_cpu:
        settings += torch_settings(options.model)
    kept = fastest(settings, options.lock)
    runs = [lambda: ours(options, environment), timed("llama.cpp", kept), timed("PyTorch", kept)]
    rounds = []
    for number in range(options.rounds):
        found, start = {}, time.perf_counter()
        with held(options.lock):
            for run in runs[number % 3:] + runs[: number % 3]:
                found |= run()
        rounds.append(found)
        told = {" ".join(key) if isinstance(key, tuple) else f"{key.work}, {key}": rate for key, rate in found.items()}
        print(f"round {number + 1} ({time.perf_counter() - start:.0f} s)", told, flush=True)
    table(rounds, kept)


if __name__ == "__main__":
    main()
