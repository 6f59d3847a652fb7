"""Adapters trained by `aloe sft`, loaded by PEFT: its logits, those of the merged master and aloe's own must be the same.

Trains SmolLM2-135M for a few f32 steps on rows written here, once with embeddings frozen, once with them trained; then compares, over
three texts and every position, PEFT (base folder + adapter/) with transformers on master/, both in float64 so that only what was written
can differ, and PEFT's log-probabilities with `aloe score` of master/ in f32. Limit 1e-4 (at most 60 tokens). How far transformers' own f32
is from its float64 is printed beside: an adapter that was trained hot makes logits on which f32 itself is off by more than the limit.

Pinned: torch 2.15, transformers 5.23, peft 0.21. No seeds but aloe's own.
    HF_HUB_OFFLINE=1 python oracles/check_lora_folder.py ALOE_BINARY MODEL_FOLDER
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = [
    ("What lowers a fever?", "Paracetamol lowers a fever; rest and drink enough."),
    ("How is a sprained ankle treated?", "Rest it, cool it, wrap it and keep it raised for two days."),
    ("What is anaemia?", "Too little haemoglobin in the blood, often from a lack of iron."),
    ("Why wash hands?", "It removes germs before they reach the mouth, the eyes or a wound."),
]
LIMIT = 1e-4


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def train(aloe, model, work, train_embeddings):
    rows = work / "rows.jsonl"
    turns = lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    rows.write_text("".join(json.dumps(turns(q, a)) + "\n" for q, a in QUESTIONS))
    out = work / f"embeddings-{train_embeddings}"
    settings = ["max_steps=6", "epochs=6", "batch_size=1", "max_len=128", "lr=1e-3", "lora.rank=8", f"lora.train_embeddings={str(train_embeddings).lower()}"]
    command = [aloe, "sft", "--model", model, "--data", rows, "--out", out, "--dtype", "f32"]
    for setting in settings:
        command += ["--set", setting]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return out


def ours(aloe, work, folder, texts):
    requests = work / "requests.jsonl"
    rows = [{"id": str(at), "prompt_ids": ids[:1], "continuations": [ids[1:]]} for at, ids in enumerate(texts)]
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [aloe, "score", folder, "--requests", requests, "--dtype", "f32", "--out", work / "scores.jsonl"]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line)["continuations"][0]["logps"] for line in open(work / "scores.jsonl")]


def main():
    aloe, model = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [tokenizer(f"{q} {a} {q}")["input_ids"][:60] for q, a in QUESTIONS[:3]]
    failed = False
    with tempfile.TemporaryDirectory() as work, torch.no_grad():
        work = pathlib.Path(work)
        for train_embeddings in (False, True):
            out = train(aloe, model, work, train_embeddings)
            base, master = load(model), load(out / "master")
            plain = [base(torch.tensor([ids])).logits[0] for ids in texts]
            adapted = peft.PeftModel.from_pretrained(base, out / "adapter").eval()
            found = [adapted(torch.tensor([ids])).logits[0] for ids in texts]
            single = [master(torch.tensor([ids])).logits[0] for ids in texts]
            adapted, master = adapted.double(), master.double()
            exact = [adapted(torch.tensor([ids])).logits[0] for ids in texts]
            merged = [master(torch.tensor([ids])).logits[0] for ids in texts]
            logps = [torch.log_softmax(l[:-1], -1).gather(1, torch.tensor(ids)[1:, None])[:, 0] for l, ids in zip(exact, texts)]
            scored = [torch.tensor(l) for l in ours(aloe, work, out / "master", texts)]
            largest = lambda a, b: max(float((x - y).abs().max()) for x, y in zip(a, b))
            moved, to_master, to_ours = largest(plain, found), largest(merged, exact), largest(scored, logps)
            print(f"embeddings trained: {train_embeddings}; the adapter moves logits by up to {moved:.3f}; PEFT against the merged master "
                  f"{to_master:.2e}, against aloe's log-probabilities {to_ours:.2e}; transformers' f32 against its float64: PEFT "
                  f"{largest(found, exact):.2e}, the merged master {largest(single, merged):.2e}")
            failed |= moved < 0.1 or to_master > LIMIT or to_ours > LIMIT
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
