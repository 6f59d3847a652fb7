#!/usr/bin/env python3
"""Times few-shot scoring of MedQA against lm-evaluation-harness and against a hand-written transformers loop, in turn, on the same prompts.

Work: `--questions` questions x 4 options of MedQA (4 options) after the same first 5 training questions, prompts and option texts as
lm-evaluation-harness makes them (its own task, `fewshot_config.sampler: first_n`), bf16.
Each round runs, in an order that rotates: `aloe score` (whole process, loading included), the harness (`hf` backend, bf16, batch size
`--batch`; its model load and imports not counted), and a loop that keeps the shots' `past_key_values` for all questions and a question's
for its options (load not counted). Answers are compared first: sums of log-probabilities and the chosen options.

Pinned: python 3.11, torch 2.15, transformers 5.23, lm-eval 0.4.13. Two threads. Seeds: none are used.
Run: ALOE_DATA=... ALOE_MODELS=... python oracles/scoring_peers.py target/release/aloe [--questions 200] [--rounds 3] [--batch 8]
     [--skip harness] [--lock FILE]
The model is the f32 folder that lm_eval_parity.py makes. Prints one line a round and the medians of the ratios.
"""

import argparse
import contextlib
import copy
import io
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import lm_eval
import lm_eval_parity as parity
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from machine_lock import held
from transformers import AutoModelForCausalLM, AutoTokenizer

TASK = "medqa_4options"


def harness(root, model, questions):
    manager = TaskManager(include_path=str(root / TASK), include_defaults=False)
    with contextlib.redirect_stdout(io.StringIO()):
        return lm_eval.simple_evaluate(model=model, tasks=[TASK], num_fewshot=5, limit=questions, log_samples=True, bootstrap_iters=0,
                                       task_manager=manager)


def first_n(root):
    path = root / TASK / "medqa.yaml"
    path.write_text(path.read_text() + "\nfewshot_config:\n  sampler: first_n\n")


def requests_of(result):
    rows = []
    for sample in sorted(result["samples"][TASK], key=lambda s: s["doc_id"]):
        pairs = [tuple(r.values())[:2] if isinstance(r, dict) else tuple(r)[:2]
                 for r in (sample["arguments"].values() if isinstance(sample["arguments"], dict) else sample["arguments"])]
        rows.append({"id": str(sample["doc_id"]), "prompt": pairs[0][0], "continuations": [p[1] for p in pairs]})
    return rows


class Ours:
    def __init__(self, binary, rows, folder):
        self.command = [binary, "score", parity.model_folder(), "--dtype", "bf16", "--requests", str(folder / "requests.jsonl"), "--out",
                        str(folder / "scored.jsonl")]
        self.out = folder / "scored.jsonl"
        (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self):
        start = time.perf_counter()
        subprocess.run(self.command, check=True, capture_output=True)
        seconds = time.perf_counter() - start
        return seconds, [[c["sum"] for c in json.loads(line)["continuations"]] for line in open(self.out)]


class Harness:
    def __init__(self, root, questions, batch):
        self.model = HFLM(pretrained=parity.model_folder(), dtype="bfloat16", batch_size=batch, device="cpu")
        self.root, self.questions = root, questions

    def run(self):
        start = time.perf_counter()
        result = harness(self.root, self.model, self.questions)
        seconds = time.perf_counter() - start
        samples = sorted(result["samples"][TASK], key=lambda s: s["doc_id"])
        return seconds, [[float(r[0][0]) for r in s["resps"]] for s in samples]


class Loop:
    """The shots once, each question once, its options as one batch over copies of the question's cache."""

    def __init__(self, rows):
        self.tokenizer = AutoTokenizer.from_pretrained(parity.model_folder())
        self.model = AutoModelForCausalLM.from_pretrained(parity.model_folder(), dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        self.rows = rows

    @torch.inference_mode()
    def run(self):
        start = time.perf_counter()
        encode = lambda text: self.tokenizer(text)["input_ids"]
        prompts = [encode(row["prompt"]) for row in self.rows]
        shared = min(len(p) for p in prompts) - 1
        while any(p[:shared] != prompts[0][:shared] for p in prompts):
            shared -= 1
        shots = self.model(torch.tensor([prompts[0][:shared]]), use_cache=True, logits_to_keep=1).past_key_values
        answers = []
        for row, prompt in zip(self.rows, prompts):
            options = [encode(row["prompt"] + text)[len(prompt):] for text in row["continuations"]]
            found = self.model(torch.tensor([prompt[shared:]]), past_key_values=copy.deepcopy(shots), use_cache=True, logits_to_keep=1)
            first = torch.log_softmax(found.logits[0, -1].float(), -1)
            cache = found.past_key_values
            width = max(len(o) for o in options)
            sums = [first[o[0]].item() for o in options]
            if width > 1:
                cache.batch_repeat_interleave(len(options))
                ids = torch.tensor([o + [0] * (width - len(o)) for o in options])
                logps = torch.log_softmax(self.model(ids[:, :-1], past_key_values=cache).logits.float(), -1)
                for at, option in enumerate(options):
                    sums[at] += sum(logps[at, i, token].item() for i, token in enumerate(option[1:]))
            answers.append(sums)
        return time.perf_counter() - start, answers


def compare(name, ours, theirs):
    largest = max(abs(a - b) for x, y in zip(ours, theirs) for a, b in zip(x, y))
    mean = statistics.mean(abs(a - b) for x, y in zip(ours, theirs) for a, b in zip(x, y))
    same = sum(max(range(4), key=x.__getitem__) == max(range(4), key=y.__getitem__) for x, y in zip(ours, theirs))
    print(f"{name}: largest difference of a sum {largest:.3f} nat, mean {mean:.4f}; the same option on {same} of {len(ours)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", default="8")
    parser.add_argument("--skip", action="append", default=[])
    parser.add_argument("--lock", help="file whose lock is held during a round")
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        with held(options.lock):
            parity.local_task(TASK, root)
            first_n(root)
            rows = requests_of(harness(root, "dummy", options.questions))
            works = {"aloe": Ours(options.binary, rows, root), "loop": Loop(rows)}
            if "harness" not in options.skip:
                works["harness"] = Harness(root, options.questions, int(options.batch) if options.batch.isdigit() else options.batch)
        seconds = {name: [] for name in works}
        for number in range(options.rounds):
            names = list(works)
            names = names[number % len(names):] + names[: number % len(names)]
            with held(options.lock):
                found = {name: works[name].run() for name in names}
            if number == 0:
                for name in found.keys() - {"aloe"}:
                    compare(name, found["aloe"][1], found[name][1])
            for name in works:
                seconds[name].append(found[name][0])
            print("  ".join(f"{name} {found[name][0]:.2f} s" for name in works), flush=True)
        for name in works:
            ratios = [theirs / ours for ours, theirs in zip(seconds["aloe"], seconds[name])]
            print(f"{name}: median {statistics.median(seconds[name]):.2f} s, {options.questions / statistics.median(seconds[name]):.2f} "
                  f"questions a second, {statistics.median(ratios):.2f} times aloe's time")


if __name__ == "__main__":
    sys.exit(main())
