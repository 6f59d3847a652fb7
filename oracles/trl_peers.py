#!/usr/bin/env python3
"""Times whole training runs of `aloe` and of TRL on the same real rows, in turn, and their peak memory.

Works (SmolLM2-135M, bf16, 2 threads):
- `sft`: rows of MedQuAD and GenMedGPT by turns, of mixed length, `--tokens` in all, packed to 1,024, 4 packed rows a step (SFTTrainer, packing "bfd");
- `lora`: the same rows, rank 16, alpha 32, all seven projections (TRL with PEFT);
- `dpo`: the first `--pairs` pairs of dpo_pairs that fit 1,024 tokens, 8 pairs a step, reference log-probabilities computed first (DPOTrainer,
  `precompute_ref_log_probs`).

What is timed. aloe: the whole process (reading, tokenising, loading, training, writing masters, export and record). TRL: building the
trainer (packing, reference), training and saving; not its imports (10 s), the model's load or the tokenising. Peak: the process's largest
resident set. The runs count as the same work when tokens agree within 1 % and steps within 2 % or one (packings differ; both stand in the line),
pairs with equal steps. TRL's settings to choose from, `--setting WEIGHTS-BATCH[-compile]`: weights `autocast` (f32 masters, bf16 autocast) or `pure` (all in
bf16: no masters); rows (pairs) a forward pass, the rest of the step by accumulation; torch.compile. sdpa and fused AdamW always.

    HF_HUB_OFFLINE=1 ALOE_DATA=... python oracles/trl_peers.py WORK ALOE_BINARY MODEL_FOLDER --probe pure-1,pure-2,autocast-1
        times TRL's settings alone, once each
    HF_HUB_OFFLINE=1 ALOE_DATA=... python oracles/trl_peers.py WORK ALOE_BINARY MODEL_FOLDER --setting pure-1 [--rounds 5] [--tokens 25000] [--pairs 12]
        one line a pair, and the median ratio

Pinned: python 3.11, torch 2.15, transformers 5.23, trl 1.16, peft 0.21, accelerate 1.15. Seeds: none matter, no dropout.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
import dpo_parity
import sft_parity

MAX_LEN, ROWS_A_STEP, PAIRS_A_STEP = 1024, 4, 8
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_rows(options, folder):
    """Writes messages for aloe and ids for TRL; returns how many rows and tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    messages, encoded, n_tokens = [], [], 0
    if options.work == "dpo":
        encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        for prompt, chosen, rejected in dpo_parity.raw_pairs():
            pair = {"prompt_ids": encode(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)),
                    "chosen_ids": encode(chosen + "<|im_end|>"), "rejected_ids": encode(rejected + "<|im_end|>")}
            lens = [len(ids) for ids in pair.values()]
            if lens[0] + max(lens[1:]) <= MAX_LEN and chosen != rejected and len(encoded) < options.pairs:
                answer = lambda text: [{"role": "assistant", "content": text}]
                messages.append({"prompt": prompt, "chosen": answer(chosen), "rejected": answer(rejected)})
                encoded.append(pair)
                n_tokens += 2 * lens[0] + lens[1] + lens[2]
    else:
        for question, answer in sft_parity.raw_rows():
            ids, mask = sft_parity.encode(tokenizer, question, answer)
            if len(ids) <= MAX_LEN and n_tokens + len(ids) <= options.tokens:
                messages.append({"messages": [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer.strip()}]})
                encoded.append({"input_ids": ids, "labels": [token if trained else -100 for token, trained in zip(ids, mask)]})
                n_tokens += len(ids)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messages))
    (folder / "encoded.json").write_text(json.dumps(encoded))
    return len(encoded), n_tokens


def ours(options, folder):
    out = folder / "ours"
    shutil.rmtree(out, ignore_errors=True)
    kind = "dpo" if options.work == "dpo" else "sft"
    settings = ["lr=1e-5", f"max_len={MAX_LEN}", "checkpoint_every=0", "epochs=1", f"micro_batch_size={options.micro}", f"batch_size={PAIRS_A_STEP if kind == 'dpo' else ROWS_A_STEP}"]
    settings += ["lora={rank=16, alpha=32}"] if options.work == "lora" else []
    settings += options.set
    command = [str(options.aloe), kind, "--model", str(options.model), "--data", str(folder / "rows.jsonl"), "--out", str(out), "--dtype", "bf16", "--threads", "2"]
    command += [part for setting in settings for part in ("--set", setting)]
    started = time.time()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.time() - started
    assert status == 0, command
    steps = [line for line in map(json.loads, open(out / "metrics.jsonl")) if "loss" in line]
    found = {"seconds": seconds, "peak_mib": used.ru_maxrss / 1024, "steps": len(steps), "tokens": sum(step["tokens"] for step in steps)}
    return found | {"loss": statistics.mean(step["loss"] for step in steps[-3:])}


def theirs(options, setting, folder):
    command = [sys.executable, __file__, options.work, str(options.aloe), str(options.model), "--worker", str(folder), "--setting", setting]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return {"seconds": float("nan"), "peak_mib": float("nan"), "steps": 0, "tokens": 0, "loss": float("nan"), "error": done.stderr.strip()[-300:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def worker(options, setting, folder):
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    torch.set_num_threads(2)
    weights, batch, *rest = setting.split("-")
    rows = Dataset.from_list(json.loads((folder / "encoded.json").read_text()))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    dtype = torch.bfloat16 if weights == "pure" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, attn_implementation="sdpa")
    a_step = PAIRS_A_STEP if options.work == "dpo" else ROWS_A_STEP
    shared = dict(
        output_dir=str(folder / "trl"), num_train_epochs=1, per_device_train_batch_size=int(batch), gradient_accumulation_steps=a_step // int(batch), learning_rate=1e-5,
        lr_scheduler_type="cosine", bf16=weights == "autocast", use_cpu=True, optim="adamw_torch_fused", torch_compile="compile" in rest, max_length=MAX_LEN,
        logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, gradient_checkpointing=False, dataloader_num_workers=0,
    )
    losses, started = [], time.time()

    def noting(trainer):
        class Noting(trainer):
            def log(self, logs, *args, **kwargs):
                losses.extend([float(logs["loss"])] if "loss" in logs else [])

            def _prepare_dataset(self, dataset, *args, **kwargs):
                return dataset if options.work == "dpo" else super()._prepare_dataset(dataset, *args, **kwargs)

        return Noting

    if options.work == "dpo":
        arguments = DPOConfig(beta=0.1, loss_type=["sigmoid"], precompute_ref_log_probs=True, precompute_ref_batch_size=int(batch), **shared)
        trainer = noting(DPOTrainer)(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    else:
        adapter = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM") if options.work == "lora" else None
        arguments = SFTConfig(packing=True, packing_strategy="bfd", **shared)
        trainer = noting(SFTTrainer)(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, peft_config=adapter)
    result = trainer.train()
    trainer.save_model(str(folder / "trl"))
    counted = {"steps": result.global_step, "tokens": int(trainer._total_train_tokens)}
    found = counted | {"seconds": time.time() - started, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "loss": statistics.mean(losses[-3:])}
    print(json.dumps(found))


def incomparable(work, mine, other):
    """Why two runs are not the same work, or "". Every row is trained on once by both; first-fit and best-fit decreasing may pack them into one step more
    or less. A pair's prompt is counted once by one and twice by the other, so that pairs are held to the steps."""
    if "error" in other:
        return "the peer failed"
    apart = abs(mine["steps"] - other["steps"])
    if apart > (0 if work == "dpo" else max(1, 0.02 * other["steps"])):
        return f"{mine['steps']} and {other['steps']} steps"
    if work != "dpo" and abs(mine["tokens"] - other["tokens"]) > 0.01 * other["tokens"]:
        return f"{mine['tokens']} and {other['tokens']} tokens"
    return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["sft", "lora", "dpo"])
    parser.add_argument("aloe", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--setting", default="pure-1")
    parser.add_argument("--probe", type=lambda text: text.split(","), default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=25000)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--micro", type=int, default=1)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--worker", type=pathlib.Path)
    options = parser.parse_args()
    if options.worker:
        return worker(options, options.setting, options.worker)
    with tempfile.TemporaryDirectory(dir=pathlib.Path.home() / ".cache") as folder:
        folder = pathlib.Path(folder)
        n_rows, n_tokens = make_rows(options, folder)
        print(f"{options.work}: {n_rows} rows, {n_tokens} tokens", flush=True)
        show = lambda name, found: f"{name} {found['seconds']:.1f} s, {found['peak_mib']:.0f} MiB, {found['steps']} steps of {found['tokens']} tokens, loss {found['loss']:.3f} {found.get('error', '')}"
        for setting in options.probe:
            print(show(setting, theirs(options, setting, folder)), flush=True)
        if options.probe:
            print(show("aloe", ours(options, folder)), flush=True)
            return
        ratios = []
        for _ in range(options.rounds):
            mine, other = ours(options, folder), theirs(options, options.setting, folder)
            if reason := incomparable(options.work, mine, other):
                sys.exit(f"no comparison ({reason}): {show('aloe', mine)} | {show(options.setting, other)}")
            ratios.append((other["seconds"] / mine["seconds"], mine["peak_mib"] / other["peak_mib"]))
            print(show("aloe", mine), "|", show(options.setting, other), f"| {ratios[-1][0]:.2f} times, memory {ratios[-1][1]:.2f}", flush=True)
        speeds, memory = zip(*ratios)
        print(f"median {statistics.median(speeds):.2f} times ({', '.join(f'{r:.2f}' for r in speeds)}), memory {statistics.median(memory):.2f}")


if __name__ == "__main__":
    main()
