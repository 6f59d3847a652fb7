#!/usr/bin/env python3
"""Times a full fine-tuning step against a bare PyTorch loop, in turn, on the same weights and two threads.

Each measurement is a process of its own, so that its peak resident memory (VmHWM) is that of the work alone: the program of
`crates/aloe-train/examples/step.rs`, and PyTorch in the settings named by --peers. A PyTorch step is forward with
`attn_implementation="sdpa"` and the model's own loss, backward, `clip_grad_norm_(1.0)`, `AdamW(fused=True)` and
`zero_grad(set_to_none=True)`:
  autocast   f32 weights, moments and gradients; forward under torch.autocast(cpu, bfloat16)
  bf16       weights, gradients and moments in bf16 (no masters: an update below half a step of bf16 is lost)
  f32        all in f32
each with `+compile` for torch.compile, `+checkpoint` for gradient checkpointing.
A measurement runs --warmup steps and then --steps timed ones, and reports their median. Rounds alternate ours and the peers.

Pinned: python 3.11, torch 2.15, transformers 5.23. Random token ids on both sides; no seeds.
Run: python oracles/training_peers.py STEP_BINARY MODEL_FOLDER [--shape 2x512] [--peers autocast,bf16,autocast+compile]
     [--rounds 5] [--dtype bf16] [--recompute]
Prints one line a peer with the medians, the median of the rounds' ratios and the peaks.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time


def peak_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024


def child(folder, peer, rows, tokens, warmup, steps):
    """One PyTorch measurement, printed as JSON."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    kind, *options = peer.split("+")
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").train()
    model.config.use_cache = False
    if "checkpoint" in options:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    step_model = torch.compile(model) if "compile" in options else model
    seconds = []
    for i in range(warmup + steps):
        ids = torch.randint(0, model.config.vocab_size, (rows, tokens))
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
            loss = step_model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())
        if i >= warmup:
            seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": statistics.median(seconds), "peak_mb": peak_mb()}))


def run(command):
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("folder")
    parser.add_argument("--shape", default="2x512", help="rows x tokens of a step")
    parser.add_argument("--peers", default="autocast,bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    rows, tokens = (int(n) for n in args.shape.split("x"))
    if args.child:
        return child(args.folder, args.child, rows, tokens, args.warmup, args.steps)
    ours = [args.binary, args.folder, f"dtype={args.dtype}", f"rows={rows}", f"tokens={tokens}", f"warmup={args.warmup}",
            f"steps={args.steps}", "json", *(["recompute"] if args.recompute else [])]
    peers = args.peers.split(",")
    found = {name: [] for name in ["aloe", *peers]}
    for _ in range(args.rounds):
        found["aloe"].append(run(ours))
        for peer in peers:
            found[peer].append(run([sys.executable, __file__, args.binary, args.folder, "--shape", args.shape, "--child", peer, "--warmup",
                                    str(args.warmup), "--steps", str(args.steps)]))
    rate = {name: [rows * tokens / one["seconds"] for one in runs] for name, runs in found.items()}
    peak = {name: statistics.median(one["peak_mb"] for one in runs) for name, runs in found.items()}
    share = statistics.median(one["share"] for one in found["aloe"])
    print(f"aloe, {args.shape}: {statistics.median(rate['aloe']):.0f} tok/s, {100 * share:.0f} % of the product probe, {peak['aloe']:.0f} MB")
    for peer in peers:
        ratio = statistics.median(a / b for a, b in zip(rate["aloe"], rate[peer]))
        print(f"{peer}: {statistics.median(rate[peer]):.0f} tok/s, {peak[peer]:.0f} MB; aloe is {ratio:.2f}x as fast (rounds: "
              + ", ".join(f"{a / b:.2f}" for a, b in zip(rate["aloe"], rate[peer])) + f") in {peak['aloe'] / peak[peer]:.2f} of the memory")


if __name__ == "__main__":
    main()
