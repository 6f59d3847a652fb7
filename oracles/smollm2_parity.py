"""Golden logits of a 512-token prompt and gradients of a packed SFT batch: SmolLM2-135M-Instruct (Q4_1 GGUF) dequantised to f32.

Pinned: python 3.11+, torch 2.15, transformers 5.23 (which reads the GGUF and undoes its q/k permutation by itself). No randomness.
Reads $ALOE_MODELS/smollm2-135m-instruct-q4_1/model.gguf (sha256 b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53).
The gradients are taken with f64 weights and products (transformers keeps norms, softmax and RoPE in f32): PyTorch's own f32
gradients of this batch are up to 2.5e-4 from them (layers.27.input_layernorm), so f32 could not judge a tolerance of 1e-4.
Writes crates/aloe-model/tests/golden/smollm2_parity.json and, outside the repository, all 512 x 49152 logits as little-endian f32:
$ALOE_MODELS/../golden/smollm2_logits.f32. Run: ALOE_MODELS=... python oracles/smollm2_parity.py
"""

import json
import os
import pathlib

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

N_PROJECTIONS = 16
PROMPT = """The patient is a 54-year-old man who comes to the emergency department because of severe chest pain for the past two hours. The pain
started while he was climbing stairs, is located behind the breastbone and radiates to the left arm and the jaw. He has had hypertension for
twelve years and type 2 diabetes mellitus for eight years. He smoked one pack of cigarettes daily for thirty years. Current medications are
metformin, lisinopril and atorvastatin. His temperature is 37.1 C, pulse is 102/min, respirations are 20/min, and blood pressure is 152/94 mm Hg.
Examination shows diaphoresis. The lungs are clear. Heart sounds are normal, without murmurs or gallops. An electrocardiogram shows ST-segment
elevation in leads II, III and aVF. Serum troponin is raised. Aspirin, clopidogrel and heparin are given, and oxygen is started by mask. The
catheterisation laboratory is informed. Ten minutes later the patient becomes pale, his blood pressure falls to 84/50 mm Hg, and the jugular
veins are distended while the lungs remain clear. A right-sided electrocardiogram shows ST elevation in lead V4R. Which of the following is the
most appropriate next step in management? A. Intravenous nitroglycerin. B. Bolus of isotonic saline. C. Intravenous furosemide. D. Oral
metoprolol. Right ventricular infarction makes cardiac output depend on preload. Nitrates, diuretics and beta blockers lower preload or
contractility and may cause collapse, so fluid is given first and the occluded right coronary artery is opened without delay. The answer is B.
Scurvy is caused by a lack of vitamin C, which is needed for the hydroxylation of proline and lysine in collagen; the walls of small vessels
become weak, and patients bleed from the gums and into the skin. Pellagra is caused by a lack of niacin and shows dermatitis, diarrhoea and
dementia. Beriberi is caused by a lack of thiamine; wet beriberi shows high-output heart failure, dry beriberi shows a symmetrical neuropathy.
Rickets in children and osteomalacia in adults are caused by a lack of vitamin D. Night blindness is an early sign of a lack of vitamin A."""
TURNS = [
    ("What is type 2 diabetes?", "Type 2 diabetes is a long-term condition in which cells respond poorly to insulin and blood glucose rises."),
    (
        "Which vitamin deficiency causes scurvy?\nA. Vitamin A\nB. Vitamin B12\nC. Vitamin C\nD. Vitamin D",
        "Scurvy comes from a lack of vitamin C, which collagen synthesis needs. The answer is C.",
    ),
    ("Name one sign of appendicitis.", "Pain that moves from the navel to the right lower abdomen, with tenderness at McBurney's point."),
]


def name_hash(name):
    h = 2166136261
    for byte in name.encode():
        h = ((h ^ byte) * 16777619) & 0xFFFFFFFF
    return h


def fill(name, n):
    """As in decoder_grads.py: n values in [-1, 1), multiples of 2^-15."""
    i = np.arange(n, dtype=np.uint64)
    m = np.uint64(0xFFFFFFFF)
    h = (i * np.uint64(2654435761) + np.uint64(name_hash(name))) & m
    h ^= h >> np.uint64(15)
    h = (h * np.uint64(2246822519)) & m
    h ^= h >> np.uint64(13)
    h = (h * np.uint64(3266489917)) & m
    h ^= h >> np.uint64(16)
    return ((h >> np.uint64(16)).astype(np.float64) - 32768.0) / 32768.0


def summary(name, g):
    g = g.detach().double().flatten().numpy()
    projections = [float(g @ fill(f"projection {j} {name}", g.size)) for j in range(N_PROJECTIONS)]
    return {"norm": float(np.linalg.norm(g)), "projections": [float(f"{p:.9g}") for p in projections]}


def forward_case(model, tokenizer, golden_dir):
    ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"][:512]
    assert len(ids) == 512, len(ids)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
    golden_dir.mkdir(parents=True, exist_ok=True)
    logits.numpy().astype("<f4").tofile(golden_dir / "smollm2_logits.f32")
    rows = []
    for t in range(0, 512, 16):
        top = torch.topk(logits[t], 8)
        rows.append(
            {
                "position": t,
                "log_sum_exp": round(float(torch.logsumexp(logits[t].double(), 0)), 6),
                "ids": [int(v) for v in top.indices] + [17, 4711, 30000, 49151],
                "logits": [round(float(v), 5) for v in top.values] + [round(float(logits[t, v]), 5) for v in (17, 4711, 30000, 49151)],
            }
        )
    logp = torch.log_softmax(logits, dim=-1)
    nlls = [round(-float(logp[t, ids[t + 1]]), 6) for t in range(511)]
    return {"ids": ids, "rows": rows, "token_nll": nlls}


def sft_case(model, tokenizer):
    documents, masks = [], []
    for question, answer in TURNS:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        a = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        b = tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
        documents.append(a + b)
        masks.append([0] * len(a) + [1] * len(b))
    n_targets = sum(sum(m[1:]) for m in masks)
    total = 0.0
    for ids, mask in zip(documents, masks):
        logp = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], dim=-1)
        loss = sum(-logp[t - 1, ids[t]] for t in range(1, len(ids)) if mask[t]) / n_targets
        loss.backward()
        total += float(loss.detach())
    gradients = {name: summary(name, p.grad) for name, p in model.named_parameters()}
    return {"documents": documents, "masks": masks, "loss": total, "gradients": gradients}


def main():
    torch.set_num_threads(1)
    models = pathlib.Path(os.environ["ALOE_MODELS"])
    folder = models / "smollm2-135m-instruct-q4_1"
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager").eval()
    # Its config names <|im_end|> as padding, and nn.Embedding gives the padding row no gradient from the input side. That is a
    # side effect of padding, not the derivative; here nothing is padded, so the true gradient is asked for.
    model.model.embed_tokens.padding_idx = None
    out = {
        "config": {k: v for k, v in model.config.to_dict().items() if isinstance(v, (int, float, str, bool, dict))},
        "forward": forward_case(model, tokenizer, models.parent / "golden"),
        "sft": sft_case(model.double(), tokenizer),
    }
    target = pathlib.Path(__file__).parent.parent / "crates/aloe-model/tests/golden/smollm2_parity.json"
    target.write_text(json.dumps(out))
    print(target, target.stat().st_size, out["sft"]["loss"], np.mean(out["forward"]["token_nll"]))


main()
