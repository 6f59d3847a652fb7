"""Losses, rewards and margins of DPO steps by TRL's DPOTrainer, for crates/aloe-train: 50 steps of every loss, with and without the NLL
term, on both tiny decoders; 10 on SmolLM2 (50 on real pairs: dpo_parity.py).

Pinned: torch 2.15, transformers 5.23, trl 1.16. No seed: weights and pairs come from a formula, the order is that of the file.
The pairs enter as ids (TRL's own tokenisation is switched off), dropout is off, all in f32. TRL 1.16 applies label smoothing
to the robust loss only, so the smoothed sigmoid is not among the cases. The NLL term is TRL's loss type "sft", a mean over the chosen
tokens of a batch, with its weight in loss_weights.

  python oracles/dpo_steps.py                      writes crates/aloe-train/tests/golden/dpo_steps.json
  python oracles/dpo_steps.py GGUF PAIRS.jsonl     writes crates/aloe-train/tests/golden/dpo_steps_smollm2.json
(GGUF: SmolLM2-135M-Instruct Q4_1; PAIRS: rows with prompt, chosen, rejected messages; ids are stored in the golden file.)
"""

import json
import pathlib
import sys
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

import tiny_decoders

GOLDEN = pathlib.Path(__file__).parent.parent / "crates/aloe-train/tests/golden"
N_STEPS = {"tiny": 50, "smollm2": 10}
KEPT = ["rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"]


class Recorder(DPOTrainer):
    steps: dict

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _compute_loss(self, model, inputs, return_outputs):
        out = super()._compute_loss(model, inputs, return_outputs)
        loss = (out[0] if return_outputs else out).item()
        for name, value in {"loss": loss, **{name: self._metrics["train"][name][-1] for name in KEPT}}.items():
            self.steps.setdefault(name, []).append(float(f"{value:.8g}"))
        return out


def run(model, reference, pairs, config, loss_type, label_smoothing, nll_weight=0.0):
    losses = {"loss_type": [loss_type, "sft"], "loss_weights": [1.0, nll_weight]} if nll_weight else {"loss_type": [loss_type]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>")), pad_token="<pad>", eos_token="<pad>")
    with tempfile.TemporaryDirectory() as out:
        arguments = DPOConfig(
            output_dir=out, max_steps=config["max_steps"], per_device_train_batch_size=config["batch_size"], gradient_accumulation_steps=1,
            learning_rate=config["lr"], lr_scheduler_type="cosine", warmup_steps=config["warmup_steps"], adam_beta1=config["betas"][0],
            adam_beta2=config["betas"][1], adam_epsilon=config["eps"], weight_decay=config["weight_decay"], max_grad_norm=config["clip"],
            beta=config["beta"], label_smoothing=label_smoothing, **losses, max_length=None, bf16=False, use_cpu=True,
            train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
            gradient_checkpointing=False,
        )
        Recorder.steps = {}
        trainer = Recorder(model=model, ref_model=reference, args=arguments, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
        trainer.train()
        return Recorder.steps


def tiny():
    pairs = []
    for p in range(24):
        lens = {"prompt_ids": 3 + 5 * p % 13, "chosen_ids": 2 + 7 * p % 11, "rejected_ids": 1 + 3 * p % 14}
        pairs.append({name: tiny_decoders.tokens(f"dpo {name} {p}", n) for name, n in lens.items()})
    config = dict(lr=1e-3, batch_size=4, warmup_steps=2, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, clip=1.0, beta=0.1, max_steps=N_STEPS["tiny"])
    cases = []
    for name, make in [("llama", tiny_decoders.llama), ("qwen2", tiny_decoders.qwen2)]:
        for loss_type in ["sigmoid", "robust", "hinge", "ipo", "sigmoid_norm", "apo_zero"]:
            for nll_weight in [0.0, 0.3]:
                smoothing = 0.1 if loss_type == "robust" else 0.0
                steps = run(make(), make(), pairs, config, loss_type, smoothing, nll_weight)
                cases.append({"model": name, "loss": loss_type, "label_smoothing": smoothing, "nll_weight": nll_weight, "steps": steps})
    (GOLDEN / "dpo_steps.json").write_text(json.dumps({"config": config, "pairs": pairs, "cases": cases}))


def smollm2(gguf, path):
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    gguf = pathlib.Path(gguf)

    def load():
        # A fresh model with the dequantised weights: the Trainer refuses what it takes for a quantised model.
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = LlamaConfig(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
        model = LlamaForCausalLM._from_config(config, attn_implementation="eager").float()
        model.load_state_dict(read.state_dict())
        return model

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    pairs = []
    for line in open(path):
        row = json.loads(line)
        prompt = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in row["prompt"]) + "<|im_start|>assistant\n"
        ids = {"prompt_ids": encode(prompt), **{f"{side}_ids": encode(row[side][-1]["content"] + "<|im_end|>") for side in ("chosen", "rejected")}}
        if sum(map(len, ids.values())) <= 200:
            pairs.append(ids)
        if len(pairs) == 2 * N_STEPS["smollm2"]:
            break
    config = dict(lr=1e-6, batch_size=2, warmup_steps=2, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.0, clip=1.0, beta=0.1, max_steps=N_STEPS["smollm2"])
    steps = run(load(), load(), pairs, config, "sigmoid", 0.0)
    cases = [{"model": "smollm2", "loss": "sigmoid", "label_smoothing": 0.0, "nll_weight": 0.0, "steps": steps}]
    (GOLDEN / "dpo_steps_smollm2.json").write_text(json.dumps({"config": config, "pairs": pairs, "cases": cases}))


torch.set_num_threads(2)
tiny() if len(sys.argv) == 1 else smollm2(*sys.argv[1:])
