"""Golden sentence embeddings of all-MiniLM-L6-v2: mean pooling over all tokens, then L2 normalisation.

Pinned: python 3.11+, torch 2.15, transformers 5.23. No randomness. Model folder: $ALOE_MODELS/all-minilm-l6-v2
(model.safetensors sha256 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db).
Writes crates/aloe-model/tests/golden/minilm.json (ids with [CLS] and [SEP], embeddings). Run: ALOE_MODELS=... python oracles/minilm.py
"""

import json
import os
import pathlib

import torch
from transformers import AutoModel, AutoTokenizer

SENTENCES = [
    "A 54-year-old man has chest pain that radiates to the left arm.",
    "Fever.",
    "Which vitamin deficiency causes scurvy? Vitamin C is found in citrus fruits, and its lack weakens the walls of small vessels.",
    "The capital of France is Paris.",
    "Metformin lowers hepatic glucose production; lactic acidosis is a rare adverse effect in severe renal failure.",
]


def main():
    torch.set_num_threads(1)
    folder = pathlib.Path(os.environ["ALOE_MODELS"]) / "all-minilm-l6-v2"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    cases = []
    with torch.no_grad():
        for text in SENTENCES:
            ids = tokenizer(text)["input_ids"]
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            embedding = torch.nn.functional.normalize(hidden.mean(dim=0), dim=0)
            cases.append({"text": text, "ids": ids, "embedding": [round(float(v), 7) for v in embedding]})
    target = pathlib.Path(__file__).parent.parent / "crates/aloe-model/tests/golden/minilm.json"
    target.write_text(json.dumps({"cases": cases}))
    print(target, target.stat().st_size)


main()
