#!/usr/bin/env python3
"""Holds 200 packed SFT steps of `aloe sft` on SmolLM2-135M, f32, against TRL's SFTTrainer: every loss, and the movement of every tensor.

Rows: MedQuAD and GenMedGPT from $ALOE_DATA by turns, in file order, those of at most `--longest` tokens, until `--steps` packed rows of
`--max-len` tokens are full. They are rendered here by transformers' `apply_chat_template`; `aloe show-mask` must give the same ids and mask
(64 rows), and `aloe sft` the same tokens and targets in every step. Packing is first-fit-decreasing without a shuffle on both sides: TRL's own
packing (best fit) makes other rows, so SFTTrainer is fed the packed rows with their `seq_lengths`, which is the form its packing makes;
collator, mask by position ids, loss, clipping, AdamW and schedule are its own. Attention is eager: with `use_cache=False` it is exactly
block-diagonal (checked first: a packed row's loss equals that of its documents alone).

The model's config names token 2 (<|im_end|>) as padding, and `nn.Embedding` then drops that row's gradient; the padding index is unset here.

Parts, each its own process so that none holds a machine for long: `rows`, `ours`, `bf16`, `accumulate`, `reference` (TRL), `autocast` (TRL in
bf16 with f32 masters: what bf16 costs there), `lora` and `compare`.
    HF_HUB_OFFLINE=1 ALOE_DATA=... python oracles/sft_parity.py PART ALOE_BINARY MODEL_FOLDER WORK_FOLDER [--steps 200] [--max-len 224]
`reference --f64 N` does the first N steps with all of the model in f64 and no Trainer: the judge between two f32 sides.
`lora` does both sides with an adapter of rank 16 on all seven projections, lr 2e-4: aloe writes the start adapter (one step at a rate of 1e-30), which
PEFT loads and trains through SFTTrainer; losses, the movement of every A and B, and PEFT's loss with aloe's final adapter are compared.
`compare` exits with 1 when a loss differs by more than 1e-3 (relative) or a tensor's movement |dW - dW_ref| / |dW_ref| by more than 1e-2,
when a mean of 20 steps of the bf16 curve leaves 2 % of the f32 curve (a single loss may be 0.005), or when a split into micro-batches changes a bit.

Pinned: python 3.11, torch 2.15, transformers 5.23, trl 1.16, accelerate 1.15, safetensors 0.8. Two threads. Seeds: none are used.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
SETTINGS = dict(lr=2e-5, warmup_steps=10, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.1, clip=1.0)


def raw_rows():
    """Questions and answers of the two sets, by turns, in file order."""
    data = pathlib.Path(os.environ["ALOE_DATA"])
    medquad = (json.loads(line) for line in open(data / "medquad/medquad_sample.jsonl", encoding="utf-8"))
    medquad = [(row["question"], row["answer"]) for row in medquad if row.get("question") and row.get("answer")]
    chat = json.load(open(data / "genmedgpt_5k/chatdoctor5k.json", encoding="utf-8"))
    chat = [(f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"], row["output"]) for row in chat]
    return [pair for both in zip(medquad, chat) for pair in both]


def encode(tokenizer, question, answer):
    """ids and mask (1 on the answer and its end token); the newline that the template puts after the turn stands there untrained."""
    user = [{"role": "user", "content": question.strip()}]
    prompt = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(user + [{"role": "assistant", "content": answer.strip()}], tokenize=False)
    assert whole.startswith(prompt)
    end = whole.rindex("<|im_end|>") + len("<|im_end|>")
    found = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    mask = [int(start >= len(prompt) and stop <= end) for start, stop in found["offset_mapping"]]
    return found["input_ids"], mask


def first_fit_decreasing(lens, max_len):
    rows, room = [], []
    for at in sorted(range(len(lens)), key=lambda at: -lens[at]):
        row = next((r for r, left in enumerate(room) if left >= lens[at]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(max_len)
        rows[row].append(at)
        room[row] -= lens[at]
    return rows


def part_rows(options):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    documents = []
    for question, answer in raw_rows():
        ids, mask = encode(tokenizer, question, answer)
        if len(ids) <= options.longest:
            messages = [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer.strip()}]
            documents.append({"messages": messages, "ids": ids, "mask": mask})
            if sum(len(document["ids"]) for document in documents) > 0.9 * options.steps * options.max_len:
                rows = first_fit_decreasing([len(document["ids"]) for document in documents], options.max_len)
                if len(rows) >= options.steps:
                    break
    with open(options.work / "rows.jsonl", "w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"messages": document["messages"]}) + "\n")
    for at in range(0, len(documents), max(1, len(documents) // 64)):
        command = [options.aloe, "show-mask", options.model, "--data", options.work / "rows.jsonl", "--row", str(at), "--json"]
        shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        same = shown["ids"] == documents[at]["ids"] and [int(v) for v in shown["loss_mask"]] == documents[at]["mask"]
        assert same, f"row {at}: aloe encodes it otherwise:\n{shown}\n{documents[at]}"
    packed = [[documents[at] for at in row] for row in rows]
    (options.work / "packed.json").write_text(json.dumps([[{k: d[k] for k in ("ids", "mask")} for d in row] for row in packed]))
    n_tokens = sum(len(document["ids"]) for document in documents)
    print(f"{len(documents)} documents, {n_tokens} tokens, {len(rows)} packed rows of {options.max_len}, fill {n_tokens / len(rows) / options.max_len:.3f}")


def toml(value):
    """A setting as TOML; the one table is LoRA's."""
    return "{" + ", ".join(f"{key}={number}" for key, number in value.items()) + "}" if isinstance(value, dict) else json.dumps(value)


def sft(options, name, dtype, **settings):
    """Runs `aloe sft`; the lines of its metrics that are steps, and its seconds."""
    out = options.work / name
    shutil.rmtree(out, ignore_errors=True)
    settings = SETTINGS | dict(max_steps=options.steps, epochs=1, max_len=options.max_len, shuffle=False, checkpoint_every=0) | settings
    command = [options.aloe, "sft", "--model", options.model, "--data", options.work / "rows.jsonl", "--out", out, "--dtype", dtype]
    for key, value in settings.items():
        command += ["--set", f"{key}={toml(value)}"]
    started = time.time()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in open(out / "metrics.jsonl")]
    return [line for line in lines if "loss" in line], time.time() - started


def part_ours(options, name="ours", dtype="f32"):
    steps, seconds = sft(options, name, dtype, batch_size=1, micro_batch_size=1)
    print(f"aloe {dtype}: {len(steps)} steps, {seconds:.0f} s, loss {steps[0]['loss']:.6f} -> {steps[-1]['loss']:.6f}")


def part_accumulate(options):
    """Eight packed rows a step, one at a time and at once, f32, 5 steps: the digests of the masters."""
    found = {}
    for micro in (1, 8):
        sft(options, f"micro-{micro}", "f32", batch_size=8, micro_batch_size=micro, max_steps=5)
        found[micro] = sorted((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in (options.work / f"micro-{micro}/master").glob("*.safetensors"))
        shutil.rmtree(options.work / f"micro-{micro}")
    (options.work / "accumulate.json").write_text(json.dumps(found))
    print("gradient accumulation 1x8 and 8x1, masters:", found)


LORA = {"rank": 16, "alpha": 32}


def part_lora(options):
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file

    n_steps = options.lora_steps
    first, _ = sft(options, "lora-start", "f32", batch_size=1, micro_batch_size=1, lora=LORA, max_steps=1, lr=1e-30, warmup_steps=0)
    ours, seconds = sft(options, "lora-ours", "f32", batch_size=1, micro_batch_size=1, lora=LORA, lr=2e-4, max_steps=n_steps)
    print(f"aloe LoRA f32: {len(ours)} steps, {seconds:.0f} s", flush=True)
    adapter = PeftModel.from_pretrained(load(options, torch.float32), options.work / "lora-start/adapter", is_trainable=True)
    rows = json.loads((options.work / "packed.json").read_text())[:n_steps]
    theirs, seconds = train_with_trl(options, adapter, rows, lr=2e-4)
    print(f"TRL and PEFT f32: {len(theirs)} steps, {seconds:.0f} s", flush=True)
    adapter.save_pretrained(options.work / "lora-trl")
    loss = max((abs(a["loss"] - b["loss"]) / b["loss"], at + 1) for at, (a, b) in enumerate(zip(ours, theirs)))
    name = "adapter_model.safetensors"
    start, have, want = (load_file(options.work / folder / name) for folder in ("lora-start/adapter", "lora-ours/adapter", "lora-trl"))
    moved = {key: ((have[key] - want[key]).double().norm() / (want[key] - start[key]).double().norm()).item() for key in want}
    worst = max(moved.items(), key=lambda item: item[1])
    ids = torch.tensor([rows[0][0]["ids"]])
    found = []
    for folder in ("lora-ours/adapter", "lora-trl"):
        model = PeftModel.from_pretrained(load(options, torch.float32), options.work / folder).eval()
        with torch.no_grad():
            found.append(model(input_ids=ids, use_cache=False).logits)
    logits = (found[0] - found[1]).abs().max().item()
    good = have.keys() == want.keys() and loss[0] <= 1e-3 and worst[1] <= 1e-2
    print(f"{'ok  ' if good else 'MISS'} LoRA: {len(want)} tensors, worst loss {loss[0]:.2e} at step {loss[1]}, worst movement {worst[1]:.2e} ({worst[0]}), "
          f"median {sorted(moved.values())[len(moved) // 2]:.2e}; aloe's adapter in PEFT: largest difference of a logit {logits:.1e}")
    sys.exit(0 if good else 1)


def load(options, dtype):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, attn_implementation="eager")
    model.model.embed_tokens.padding_idx = None
    return model


def check_block_mask(model, row):
    """The mean loss of a packed row equals that of its documents alone."""
    import torch

    def nll(ids, mask, positions):
        logits = model(input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]), use_cache=False).logits[0]
        chosen = torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
        return -(chosen * torch.tensor(mask[1:])).sum().item()

    with torch.no_grad():
        alone = sum(nll(d["ids"], d["mask"], list(range(len(d["ids"])))) for d in row)
        ids, mask = sum((d["ids"] for d in row), []), sum(([0] + d["mask"][1:] for d in row), [])
        packed = nll(ids, mask, [p for d in row for p in range(len(d["ids"]))])
    assert abs(packed - alone) < 1e-4 * alone, (packed, alone)
    print(f"a row of {len(row)} documents: packed {packed:.6f}, alone {alone:.6f}", flush=True)


def train_with_trl(options, model, rows, lr, autocast=False):
    """One packed row a step through SFTTrainer, in the order given; the steps and the seconds."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    steps = []

    class Recorder(SFTTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            n_targets = int((inputs["labels"] != -100).sum())
            steps.append({"loss": loss.item(), "lr": self.optimizer.param_groups[0]["lr"], "n_targets": n_targets, "tokens": inputs["input_ids"].numel()})
            self.control.should_training_stop = len(steps) == options.only
            return loss

    examples = [
        {"input_ids": sum((d["ids"] for d in row), []), "labels": sum(([t if m else -100 for t, m in zip(d["ids"], d["mask"])] for d in row), []),
         "seq_lengths": [len(d["ids"]) for d in row]}
        for row in rows
    ]
    arguments = SFTConfig(
        output_dir=str(options.work / "trl"), max_steps=len(rows), per_device_train_batch_size=1, gradient_accumulation_steps=1, learning_rate=lr,
        lr_scheduler_type="cosine", warmup_steps=SETTINGS["warmup_steps"], adam_beta1=SETTINGS["betas"][0], adam_beta2=SETTINGS["betas"][1],
        adam_epsilon=SETTINGS["eps"], weight_decay=SETTINGS["weight_decay"], max_grad_norm=SETTINGS["clip"], bf16=autocast, use_cpu=True, packing=False,
        padding_free=True, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, train_sampling_strategy="sequential", logging_steps=50,
        save_strategy="no", report_to=[], disable_tqdm=True, gradient_checkpointing=False, shuffle_dataset=False,
    )
    trainer = Recorder(model=model, args=arguments, train_dataset=Dataset.from_list(examples), processing_class=AutoTokenizer.from_pretrained(options.model))
    assert trainer.model is model
    started = time.time()
    trainer.train()
    return steps, time.time() - started


def part_reference(options, autocast=False):
    import torch
    from safetensors.torch import save_file

    rows = json.loads((options.work / "packed.json").read_text())[: options.steps]
    if options.f64:
        return plain_f64(options, rows)
    model = load(options, torch.float32)
    if not autocast:
        check_block_mask(model, max(rows, key=len))
    steps, seconds = train_with_trl(options, model, rows, SETTINGS["lr"], autocast)
    name = "autocast" if autocast else "reference"
    print(f"TRL {name}: {len(steps)} steps, {seconds:.0f} s, loss {steps[0]['loss']:.6f} -> {steps[-1]['loss']:.6f}")
    (options.work / f"{name}.json").write_text(json.dumps(steps))
    if not autocast:
        save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, options.work / "reference.safetensors")


def plain_f64(options, rows):
    """The same steps by a plain loop in f64: documents alone, AdamW with two groups, clip_grad_norm_, the cosine."""
    import torch
    from safetensors.torch import save_file
    from transformers import get_cosine_schedule_with_warmup

    model = load(options, torch.float64)
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": SETTINGS["weight_decay"]},
              {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=SETTINGS["lr"], betas=SETTINGS["betas"], eps=SETTINGS["eps"])
    schedule = get_cosine_schedule_with_warmup(optimizer, SETTINGS["warmup_steps"], options.steps)
    losses = []
    for row in rows[: options.f64]:
        n_targets, total = sum(sum(d["mask"][1:]) for d in row), 0.0
        for document in row:
            ids = torch.tensor([document["ids"]])
            logps = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, :-1], dim=-1).gather(1, ids[0, 1:, None])[:, 0]
            loss = -(logps * torch.tensor(document["mask"][1:], dtype=torch.float64)).sum() / n_targets
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS["clip"])
        losses.append({"loss": total, "n_targets": n_targets})
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    (options.work / "reference64.json").write_text(json.dumps(losses))
    save_file({name: p.detach().float().contiguous() for name, p in model.named_parameters()}, options.work / "reference64.safetensors")


def movements(options, ours, reference):
    """Per tensor |dW - dW_ref| / |dW_ref| and |dW_ref|, in f64."""
    from safetensors import safe_open

    open_ = lambda path: safe_open(path, framework="pt")
    first = [open_(path) for path in sorted(pathlib.Path(options.model).glob("*.safetensors"))]
    ours = [open_(path) for path in sorted(pathlib.Path(ours).glob("*.safetensors"))]
    other = open_(reference)
    tensor = lambda files, name: next(file.get_tensor(name) for file in files if name in file.keys()).double()
    found = {}
    for name in other.keys():
        start = tensor(first, name)
        want, have = other.get_tensor(name).double() - start, tensor(ours, name) - start
        norm = want.norm().item()
        found[name] = ((have - want).norm().item() / norm, norm)
    return found


def part_compare(options):
    good = True

    def verdict(holds, text):
        nonlocal good
        good &= bool(holds)
        print("ok  " if holds else "MISS", text)

    read = lambda name: [line for line in map(json.loads, open(options.work / name / "metrics.jsonl")) if "loss" in line]
    ours, reference = read("ours"), json.loads((options.work / "reference.json").read_text())
    verdict(len(ours) == len(reference) == options.steps, f"{len(ours)} and {len(reference)} steps")
    verdict(all(a["n_targets"] == b["n_targets"] and a["tokens"] == b["tokens"] for a, b in zip(ours, reference)), "tokens and targets equal in every step")
    worst = lambda a, b: max((abs(x["loss"] - y["loss"]) / y["loss"], at + 1) for at, (x, y) in enumerate(zip(a, b)))
    loss = worst(ours, reference)
    verdict(loss[0] <= 1e-3, f"loss against TRL: worst relative difference {loss[0]:.2e} at step {loss[1]} (limit 1e-3)")
    rate = max(abs(a["lr"] - b["lr"]) for a, b in zip(ours, reference))
    verdict(rate <= 1e-12, f"learning rate: largest difference {rate:.1e}")
    moved = movements(options, options.work / "ours/master", options.work / "reference.safetensors")
    ranked = sorted(moved.items(), key=lambda item: -item[1][0])
    verdict(ranked[0][1][0] <= 1e-2, f"movement of {len(moved)} tensors: worst {ranked[0][1][0]:.2e} ({ranked[0][0]}), median {ranked[len(ranked) // 2][1][0]:.2e} (limit 1e-2)")
    for name, (ratio, norm) in ranked[:8]:
        print(f"       {name}: {ratio:.3e} of {norm:.3e}")
    verdict((options.work / "bf16").exists() and (options.work / "accumulate.json").exists(), "the parts bf16 and accumulate have run")
    if (options.work / "bf16").exists():
        bf16 = read("bf16")
        mean = lambda lines, at: sum(line["loss"] for line in lines[at : at + 20])
        means = max((abs(mean(bf16, at) / mean(ours, at) - 1), at + 1) for at in range(0, options.steps, 20))
        single = worst(bf16, ours)
        n_over = sum(abs(x["loss"] / y["loss"] - 1) > 2e-2 for x, y in zip(bf16, ours))
        verdict(means[0] <= 2e-2, f"bf16 against f32, means of 20 steps: worst relative difference {means[0]:.2e} from step {means[1]} on (limit 2e-2)")
        print(f"       single steps: {n_over} of {len(ours)} over 2e-2, worst {single[0]:.2e} at step {single[1]}, where the loss is {ours[single[1] - 1]['loss']:.4f}")
    if (options.work / "accumulate.json").exists():
        found = json.loads((options.work / "accumulate.json").read_text())
        verdict(found["1"] == found["8"] and found["1"], "accumulation 1x8 and 8x1: masters byte-identical")
    sys.exit(0 if good else 1)


def main():
    parts = {"rows": part_rows, "ours": part_ours, "bf16": lambda options: part_ours(options, "bf16", "bf16"), "accumulate": part_accumulate,
             "reference": part_reference, "autocast": lambda options: part_reference(options, autocast=True), "lora": part_lora, "compare": part_compare}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("aloe", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--max-len", type=int, default=224)
    parser.add_argument("--longest", type=int, default=160)
    parser.add_argument("--f64", type=int, default=0)
    parser.add_argument("--only", type=int, default=0, help="TRL stops after so many steps of the whole schedule; for a look at a curve")
    parser.add_argument("--lora-steps", type=int, default=100)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    parts[options.part](options)


if __name__ == "__main__":
    main()
