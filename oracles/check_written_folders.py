"""Small random models saved by transformers, read and written again by aloe, loaded by transformers: logits must be equal.

Pinned: transformers 5.23.0, torch 2.15.0; seed 0. Covers Llama with Llama-3.1 and linear RoPE scaling, Qwen2 with and without a tied
head, Mistral without a window, in float32 (difference 0) and bfloat16 (both sides rounded the same way: difference 0).

Usage: cargo build --release -p aloe-model --example convert
       python oracles/check_written_folders.py target/release/examples/convert
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

SIZES = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
CASES = {
    "llama 3.1": LlamaConfig(**SIZES, rope_parameters=LLAMA3, tie_word_embeddings=False),
    "llama linear": LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
                                tie_word_embeddings=True),
    "llama wide heads": LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=False),
    "qwen2 tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None, tie_word_embeddings=False),
}


def main():
    convert, failed = sys.argv[1], False
    ids = torch.arange(200)[None, :] * 31 % 96
    for name, config in CASES.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        for kind, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            with tempfile.TemporaryDirectory() as scratch:
                model.save_pretrained(Path(scratch) / "in")
                subprocess.run([convert, f"{scratch}/in", f"{scratch}/out", kind], check=True)
                written = AutoModelForCausalLM.from_pretrained(f"{scratch}/out", dtype="auto")
                source = AutoModelForCausalLM.from_pretrained(f"{scratch}/in", dtype=dtype)
                assert written.dtype == dtype, written.dtype
                with torch.no_grad():
                    difference = float((written(ids).logits - source(ids).logits).abs().max())
            print(f"{name:18} {kind:5} largest difference of logits {difference}")
            failed |= difference != 0.0
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
