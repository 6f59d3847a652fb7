"""A fixture for `aloe parity CHECKPOINT --fixture FILE`: what transformers says about a checkpoint, in f32.

Pinned: python 3.11+, torch 2.15, transformers 5.23. No randomness. The format is described in crates/aloe/src/parity/fixture.rs.
Run: python oracles/parity_fixture.py MODEL FIXTURE, where MODEL is a Hugging Face folder or a folder's .gguf file.
crates/aloe/tests/golden/parity_stories260k.json is made from $ALOE_DATA/models/stories260K.
"""

import json
import pathlib
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = [
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
    "The patient has had a fever of 38.5 for two days.\nWhat should be done first?",
]
MESSAGES = [{"role": "user", "content": "What is type 2 diabetes?"}]
N_TOP, N_ROWS = 5, 12


def rows(model, ids):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
    step = max(1, len(ids) // N_ROWS)
    found = []
    for position in range(0, len(ids), step):
        top = torch.topk(logits[position], N_TOP)
        others = [id for id in (3, logits.shape[1] // 2, logits.shape[1] - 1) if id not in top.indices.tolist()]
        wanted = top.indices.tolist() + others
        found.append(
            {
                "position": position,
                "log_sum_exp": round(float(torch.logsumexp(logits[position].double(), 0)), 6),
                "ids": wanted,
                "logits": [round(float(logits[position, id]), 6) for id in wanted],
            }
        )
    return found


def main():
    source, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    folder, more = (source.parent, {"gguf_file": source.name}) if source.suffix == ".gguf" else (source, {})
    tokenizer = AutoTokenizer.from_pretrained(folder, **more)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **more).eval()
    cases = [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    if tokenizer.chat_template:
        ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
        cases.append({"messages": MESSAGES, "ids": ids})
    for case in cases:
        case["rows"] = rows(model, case["ids"])
    made_with = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, float32"
    fixture = {"format": "aloe-parity/1", "made_with": made_with, "model": source.name, "cases": cases}
    target.write_text(json.dumps(fixture) + "\n")
    print(target, target.stat().st_size)


main()
