"""Losses, gradient norms and trained tensors of LoRA runs by PEFT on the tiny decoders, for crates/aloe-train.

Pinned: torch 2.15, transformers 5.23, peft 0.21. No seed: base weights and A come from a formula (A is uniform within PEFT's bound
1 / sqrt(K)), B is zero, order is that of the file. Each document runs alone through transformers, as in sft_losses.py, so the packed
batch of the implementation is judged against separate documents. AdamW of torch, clip_grad_norm_, cosine schedule.

  python oracles/lora_steps.py    writes crates/aloe-train/tests/golden/lora_steps.json
"""

import json
import pathlib

import peft
import torch
from transformers import get_cosine_schedule_with_warmup

import tiny_decoders

GOLDEN = pathlib.Path(__file__).parent.parent / "crates/aloe-train/tests/golden/lora_steps.json"
N_STEPS = 15
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


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


def adapted(model, lora):
    """The model with updates, and its trained tensors by the name aloe gives them."""
    config = peft.LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=lora["targets"], lora_dropout=0.0)
    model = peft.get_peft_model(model, config)
    trained = {}
    for name, p in model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".default", "").replace(".base_layer", "")
        if "embed_tokens" in name or "lm_head" in name:
            p.requires_grad_(lora["train_embeddings"])
        if not p.requires_grad:
            continue
        trained[plain] = p
        with torch.no_grad():
            if "lora_A" in name:
                p.copy_(torch.tensor(tiny_decoders.fill("lora " + plain, p.numel()) / p.shape[1] ** 0.5).reshape(p.shape))
            elif "lora_B" in name:
                assert not p.any()
    return model, trained


def run(model, documents, config, lora):
    model, trained = adapted(model, lora)
    model.train()
    parameters = list(trained.values())
    optimizer = torch.optim.AdamW(parameters, lr=config["lr"], betas=config["betas"], eps=config["eps"], weight_decay=config["weight_decay"])
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
        norm = torch.nn.utils.clip_grad_norm_(parameters, config["clip"]).item()
        steps.append({"loss": total, "grad_norm": norm})
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print(step, steps[-1], flush=True)
    tensors = {name: [float(f"{v:.7g}") for v in p.detach().flatten().tolist()] for name, p in trained.items()}
    return {"lora": lora, "steps": steps, "tensors": tensors}


torch.set_num_threads(2)
lens = [5 + (11 * d) % 23 for d in range(26)]
documents = []
for d, n in enumerate(lens):
    mask = [int(v > -0.2) for v in tiny_decoders.fill(f"sft mask {d}", n)]
    documents.append({"ids": tiny_decoders.tokens(f"sft document {d}", n), "mask": mask})
config = dict(
    lr=2e-2, max_steps=N_STEPS, max_len=48, batch_size=3, warmup_steps=3, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, clip=1.0
)
cases = {
    "llama": run(tiny_decoders.llama(), documents, config, dict(rank=2, alpha=3.0, targets=ALL, train_embeddings=False)),
    "qwen2": run(tiny_decoders.qwen2(), documents, config, dict(rank=3, alpha=6.0, targets=["q_proj", "v_proj"], train_embeddings=True)),
}
GOLDEN.write_text(json.dumps({"config": config, "documents": documents, "cases": cases}))
