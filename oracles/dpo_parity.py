#!/usr/bin/env python3
"""Holds 50 DPO steps of `aloe dpo` on SmolLM2-135M, f32, against TRL's DPOTrainer: losses, rewards and margins of every step.

Pairs: from $ALOE_DATA, dpo_pairs first and then the single-turn ones of hh_rlhf's harmless-base test set, in file order, those whose prompt and
two answers are together at most `--longest` tokens; `--batch` pairs a step. Ids are made here by transformers (TRL's own tokenisation is
switched off) and go to TRL; aloe gets the messages, and equal log-probabilities at step 1 show that it made the same ids. Dropout off,
sequential order, reference log-probabilities computed before. TRL applies label smoothing to the robust loss only. The NLL term is TRL's
loss_type [.., "sft"] with loss_weights [1, `NLL`].

A variant is LOSS or LOSS+nll, LOSS one of sigmoid, ipo, hinge, robust, sigmoid_norm, apo_zero. Parts, each its own process: `ours`, `reference`, `compare`:
    HF_HUB_OFFLINE=1 ALOE_DATA=... python oracles/dpo_parity.py PART ALOE_BINARY MODEL_FOLDER WORK_FOLDER [--variants sigmoid,ipo+nll]
`compare` exits with 1 when a loss differs by more than 1e-3 (relative) or a reward or margin by more than 1e-3 of the run's largest one.

Pinned: python 3.11, torch 2.15, transformers 5.23, trl 1.16. Two threads. Seeds: none are used.
"""

import argparse
import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
CONFIG = dict(lr=5e-6, warmup_steps=5, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.0, clip=1.0, beta=0.1)
NLL, SMOOTHING = 0.2, 0.1
REWARDS = ["rewards/chosen", "rewards/rejected", "rewards/margins"]
VARIANTS = [name + nll for nll in ("", "+nll") for name in ("sigmoid", "ipo", "hinge", "robust")]


def raw_pairs():
    """(prompt messages, chosen text, rejected text)."""
    data = pathlib.Path(os.environ["ALOE_DATA"])
    for line in open(data / "dpo_pairs/dpo_mix_7k_schema.jsonl", encoding="utf-8"):
        row = json.loads(line)
        if row["chosen"][:-1] == row["rejected"][:-1]:
            yield row["chosen"][:-1], row["chosen"][-1]["content"], row["rejected"][-1]["content"]
    for line in gzip.open(data / "hh_rlhf/harmless-base/test.jsonl.gz", "rt", encoding="utf-8"):
        row = json.loads(line)
        sides = [row[side].split("\n\nAssistant: ") for side in ("chosen", "rejected")]
        if all(len(side) == 2 and side[0].count("\n\nHuman: ") == 1 for side in sides) and sides[0][0] == sides[1][0]:
            question = sides[0][0].removeprefix("\n\nHuman: ").strip()
            yield [{"role": "user", "content": question}], sides[0][1].strip(), sides[1][1].strip()


def encoded_pairs(options):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    rows, ids = [], []
    for prompt, chosen, rejected in raw_pairs():
        if not chosen or not rejected or chosen == rejected or max(map(len, (chosen, rejected, str(prompt)))) > 8 * options.longest:
            continue
        pair = {"prompt_ids": encode(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)),
                "chosen_ids": encode(chosen + "<|im_end|>"), "rejected_ids": encode(rejected + "<|im_end|>")}
        if sum(map(len, pair.values())) <= options.longest:
            answer = lambda text: [{"role": "assistant", "content": text}]
            rows.append({"prompt": prompt, "chosen": answer(chosen), "rejected": answer(rejected)})
            ids.append(pair)
        if len(ids) == options.batch * options.steps:
            return rows, ids
    sys.exit(f"only {len(ids)} pairs of at most {options.longest} tokens")


def ours(options, variant, rows):
    loss, _, nll = variant.partition("+")
    out, file = options.work / f"ours-{variant}", options.work / "pairs.jsonl"
    shutil.rmtree(out, ignore_errors=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = CONFIG | dict(loss=loss, max_steps=options.steps, batch_size=options.batch, micro_batch_size=1, shuffle=False, checkpoint_every=0, max_len=options.longest)
    settings |= {"label_smoothing": SMOOTHING} if loss == "robust" else {}
    settings |= {"nll_weight": NLL} if nll else {}
    command = [options.aloe, "dpo", "--model", options.model, "--data", file, "--out", out, "--dtype", "f32"]
    for key, value in settings.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    steps = [line for line in map(json.loads, open(out / "metrics.jsonl")) if "loss" in line]
    (options.work / f"ours-{variant}.json").write_text(json.dumps(steps))
    shutil.rmtree(out)
    return steps


def reference(options, variant, ids):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(2)
    loss, _, nll = variant.partition("+")
    steps = []

    class Recorder(DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

        def _compute_loss(self, model, inputs, return_outputs):
            found = super()._compute_loss(model, inputs, return_outputs)
            kept = {name: self._metrics["train"][name][-1] for name in REWARDS + ["logps/chosen", "logps/rejected"]}
            steps.append({"loss": (found[0] if return_outputs else found).item(), **kept})
            return found

    load = lambda: AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation="eager")
    with tempfile.TemporaryDirectory() as out:
        arguments = DPOConfig(
            output_dir=out, max_steps=options.steps, per_device_train_batch_size=options.batch, gradient_accumulation_steps=1, learning_rate=CONFIG["lr"],
            lr_scheduler_type="cosine", warmup_steps=CONFIG["warmup_steps"], adam_beta1=CONFIG["betas"][0], adam_beta2=CONFIG["betas"][1],
            adam_epsilon=CONFIG["eps"], weight_decay=CONFIG["weight_decay"], max_grad_norm=CONFIG["clip"], beta=CONFIG["beta"],
            loss_type=[loss, "sft"] if nll else [loss], loss_weights=[1.0, NLL] if nll else None, label_smoothing=SMOOTHING if loss == "robust" else 0.0,
            max_length=None, bf16=False, use_cpu=True, precompute_ref_log_probs=True, train_sampling_strategy="sequential", logging_steps=50,
            save_strategy="no", report_to=[], disable_tqdm=True, gradient_checkpointing=False,
        )
        model = load()
        trainer = Recorder(model=model, ref_model=None, args=arguments, train_dataset=Dataset.from_list(ids), processing_class=AutoTokenizer.from_pretrained(options.model))
        # The config names <|im_end|> as padding, and nn.Embedding would drop that row's gradient.
        model.model.embed_tokens.padding_idx = None
        trainer.train()
    (options.work / f"reference-{variant}.json").write_text(json.dumps(steps))
    return steps


def compare(options, variant):
    ours, other = (json.loads((options.work / f"{side}-{variant}.json").read_text()) for side in ("ours", "reference"))
    same = len(ours) == len(other) == options.steps
    first = max(abs(ours[0][name] - other[0][name]) / abs(other[0][name]) for name in ("logps/chosen", "logps/rejected"))
    loss = max(abs(a["loss"] - b["loss"]) / max(abs(b["loss"]), 1e-12) for a, b in zip(ours, other))
    largest = max(abs(step[name]) for step in other for name in REWARDS)
    reward = {name: max(abs(a[name] - b[name]) for a, b in zip(ours, other)) / largest for name in REWARDS}
    good = same and first < 1e-5 and loss <= 1e-3 and max(reward.values()) <= 1e-3
    print(f"{'ok  ' if good else 'MISS'} | {variant} | {len(ours)} | {loss:.1e} | {max(reward.values()):.1e} of {largest:.3g} | {first:.0e} | {other[0]['loss']:.4f} -> {other[-1]['loss']:.4f}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["ours", "reference", "compare"])
    parser.add_argument("aloe", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--variants", type=lambda text: text.split(","), default=VARIANTS)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--longest", type=int, default=130)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part == "compare":
        print("     | variant | steps | worst loss, relative | worst reward or margin, of the largest | log-probabilities at step 1 | TRL's loss")
        sys.exit(0 if all([compare(options, variant) for variant in options.variants]) else 1)
    rows, ids = encoded_pairs(options)
    print(f"{len(ids)} pairs, {sum(len(v) for pair in ids for v in pair.values())} tokens", flush=True)
    for variant in options.variants:
        started = time.time()
        steps = ours(options, variant, rows) if options.part == "ours" else reference(options, variant, ids)
        print(f"{options.part} {variant}: {time.time() - started:.0f} s, loss {steps[0]['loss']:.6f} -> {steps[-1]['loss']:.6f}, margin {steps[-1]['rewards/margins']:.4f}", flush=True)


if __name__ == "__main__":
    main()
