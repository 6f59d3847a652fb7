"""The first 20 losses, gradient norms and learning rates of supervised runs, for crates/aloe-train.

Pinned: torch 2.15, transformers 5.23. No seed: tiny weights come from a formula, order is that of the file.
Packing is first-fit-decreasing by a plain search; each document runs alone through transformers, so the packed batch of the
implementation is judged against separate documents. AdamW of torch with two groups (1-d parameters do not decay),
clip_grad_norm_, get_cosine_schedule_with_warmup.

  python oracles/sft_losses.py                     writes crates/aloe-train/tests/golden/sft_losses.json
  python oracles/sft_losses.py GGUF ROWS.jsonl     writes crates/aloe-train/tests/golden/sft_losses_smollm2.json
(GGUF: SmolLM2-135M-Instruct Q4_1; ROWS: any chat rows; ids and masks are stored in the golden file.)
"""

import json
import pathlib
import sys

import torch
from transformers import get_cosine_schedule_with_warmup

import tiny_decoders

GOLDEN = pathlib.Path(__file__).parent.parent / "crates/aloe-train/tests/golden"
N_STEPS = 20


def pack(documents, max_len):
    rows = []
    for at in sorted(range(len(documents)), key=lambda at: -len(documents[at]["ids"])):
        need = len(documents[at]["ids"])
        for row in rows:
            if sum(len(documents[other]["ids"]) for other in row) + need <= max_len:
                row.append(at)
                break
        else:
            rows.append([at])
    return rows


def run(model, documents, config):
    model.train()
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": config["weight_decay"]}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config["lr"], betas=config["betas"], eps=config["eps"])
    schedule = get_cosine_schedule_with_warmup(optimizer, config["warmup_steps"], config["max_steps"])
    rows = pack(documents, config["max_len"])
    per_epoch = -(-len(rows) // config["batch_size"])
    steps = []
    for step in range(config["max_steps"]):
        first = step % per_epoch * config["batch_size"]
        batch = [documents[at] for row in rows[first : first + config["batch_size"]] for at in row]
        n_targets = sum(sum(document["mask"][1:]) for document in batch)
        total = 0.0
        for document in batch:
            ids = torch.tensor([document["ids"]])
            logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1)
            chosen = logps.gather(1, ids[0, 1:, None])[:, 0]
            loss = -(chosen * torch.tensor(document["mask"][1:], dtype=torch.float32)).sum() / n_targets
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config["clip"]).item()
        steps.append({"loss": total, "grad_norm": norm, "lr": optimizer.param_groups[0]["lr"], "n_targets": n_targets})
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print(step, steps[-1], flush=True)
    return steps


def tiny():
    lens = [5 + (11 * d) % 23 for d in range(26)]
    documents = []
    for d, n in enumerate(lens):
        mask = [int(v > -0.2) for v in tiny_decoders.fill(f"sft mask {d}", n)]
        documents.append({"ids": tiny_decoders.tokens(f"sft document {d}", n), "mask": mask})
    config = dict(
        lr=3e-3, max_steps=N_STEPS, max_len=48, batch_size=3, warmup_steps=4, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, clip=1.0
    )
    cases = {name: run(make(), documents, config) for name, make in [("llama", tiny_decoders.llama), ("qwen2", tiny_decoders.qwen2)]}
    (GOLDEN / "sft_losses.json").write_text(json.dumps({"config": config, "documents": documents, "cases": cases}))


def smollm2(gguf, rows):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = pathlib.Path(gguf)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager")
    documents = []
    for line in open(rows):
        messages = json.loads(line)["messages"]
        prompt = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages[:-1]) + "<|im_start|>assistant\n"
        prompt, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, messages[-1]["content"] + "<|im_end|>"))
        if len(prompt) + len(answer) <= 96:
            documents.append({"ids": prompt + answer, "mask": [0] * len(prompt) + [1] * len(answer)})
        if len(documents) == 24:
            break
    config = dict(
        lr=2e-5, max_steps=N_STEPS, max_len=128, batch_size=2, warmup_steps=4, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, clip=1.0
    )
    steps = run(model, documents, config)
    (GOLDEN / "sft_losses_smollm2.json").write_text(json.dumps({"config": config, "documents": documents, "cases": {"smollm2": steps}}))


torch.set_num_threads(2)
tiny() if len(sys.argv) == 1 else smollm2(*sys.argv[1:])
