#!/usr/bin/env python3
"""8B and 70B on 1 to 16 nodes of four GPUs, on paper: memory, tokens a second, hours, failures and lost work. Prints the table of ARCHITECTURE.md.

Nothing here is measured by us. Every constant is named with its source; the formulas are the ones in ARCHITECTURE.md. Pinned: python 3.11
(standard library), no seeds. Run: python3 oracles/scale_on_paper.py
"""

import math

PEAK = 989e12  # H100 SXM, bf16 dense, FLOP/s (data sheet)
GPU_BYTES, GPUS_PER_NODE = 64e9, 4  # MareNostrum 5's H100 (Beta paper, table 5)
NODE_LINK = 100e9  # bytes/s of a node to the others: 4 x 200 Gb/s; an assumption, sites differ
WRITE = 2e9  # bytes/s of one node to the shared file system; an assumption
WRITE_CAP = 20e9  # bytes/s of the file system for one job; an assumption
# 419 unexpected interruptions in 54 days on 16,384 GPUs (The Llama 3 Herd of Models, section 3.3.4).
GPU_HOURS_PER_FAILURE = 16384 * 54 * 24 / 419
RESTART_S = 900  # queue, start, load of the checkpoint; an assumption
TOKENS, EPOCHS, T = 1.8e9, 4, 16384  # the Beta paper's set, epochs and length
NODE_W, KG_PER_KWH = 4 * 700 + 35, 0.158  # Beta paper, appendix D

SHAPES = {  # parameters, layers, hidden, feed-forward, vocabulary; MFU from the Beta paper's own hours (see check())
    "8B": (8.03e9, 32, 4096, 14336, 128256),
    "70B": (70.6e9, 80, 8192, 28672, 128256),
}
PUBLISHED = {"8B": (32, 15.30), "70B": (64, 79.12)}  # GPUs, hours (Beta paper, table 5)


def flops_per_token(shape):
    p, layers, hidden, _, _ = SHAPES[shape]
    return 6 * p + 6 * layers * hidden * T  # causal attention: half of 12 L D T


def mfu(shape):
    gpus, hours = PUBLISHED[shape]
    return TOKENS * EPOCHS / (gpus * hours * 3600) * flops_per_token(shape) / PEAK


def memory(shape, gpus):
    """Bytes of one GPU: (sharded state at 16 and at 18 bytes a parameter, what is not sharded)."""
    p, layers, hidden, wide, vocabulary = SHAPES[shape]
    layer = 4 * hidden * hidden + 3 * hidden * wide  # upper bound: all heads
    gathered = 2 * 2 * max(layer, vocabulary * hidden)  # two layers in bf16: the one computed and the one fetched
    kept = 2 * T * hidden * layers  # inputs of the layers, recomputation on
    working = 34 * T * hidden + 6 * T * wide  # one layer forward and backward (Korthikanti et al. 2022, without the attention matrix)
    loss = 3 * 4 * 2048 * vocabulary  # logits in chunks of 2,048 rows, f32, and their gradient
    return 16 * p / gpus, 18 * p / gpus, gathered + kept + working + loss


def row(shape, nodes):
    p = SHAPES[shape][0]
    gpus = nodes * GPUS_PER_NODE
    low, high, rest = memory(shape, gpus)
    compute_s = T * flops_per_token(shape) / (mfu(shape) * PEAK)
    # FSDP of one micro-batch: weights gathered forward and again backward, gradients scattered, 2 bytes each; inside a node it is hidden.
    exchange_s = 0 if nodes == 1 else 6 * p * (nodes - 1) / nodes / NODE_LINK
    # The published hours hold their own exchange at 8 and 16 nodes; only what exceeds the computation is added.
    speed = gpus * T / max(compute_s, exchange_s)
    hours = TOKENS * EPOCHS / speed / 3600
    mtbf_h = GPU_HOURS_PER_FAILURE / gpus
    checkpoint_s = 14 * p / min(nodes * WRITE, WRITE_CAP)  # f32 masters and two moments, bf16 weights
    interval_s = math.sqrt(2 * checkpoint_s * mtbf_h * 3600)  # Young 1974
    lost = lambda every_s: hours / mtbf_h * (every_s / 2 + RESTART_S) / 3600 + hours * checkpoint_s / every_s
    fits = "yes" if high + rest < 0.92 * GPU_BYTES else ("with 16 bytes" if low + rest < 0.92 * GPU_BYTES else "no")
    cells = [shape, nodes, gpus, f"{low / 1e9:.0f} to {high / 1e9:.0f}", f"{rest / 1e9:.0f}", fits, f"{speed:,.0f}", f"{hours:.1f}", f"{hours * nodes * NODE_W * KG_PER_KWH / 1000:.0f}",
             f"{hours / mtbf_h:.2f}", f"{checkpoint_s:.0f}", f"{interval_s / 60:.0f}", f"{lost(interval_s):.2f}", f"{lost(1800):.2f}", f"{lost(4 * 3600):.2f}"]
    return "| " + " | ".join(str(c) for c in cells) + " |"


def main():
    for shape in SHAPES:
        print(f"{shape}: {flops_per_token(shape) / 1e9:.0f} GFLOP a token at length {T}; the Beta paper's hours are {100 * mfu(shape):.0f} % of {PEAK / 1e12:.0f} TFLOP/s, "
              f"{mfu(shape) * PEAK / flops_per_token(shape):,.0f} tokens/s a GPU")
    print(f"one failure in {GPU_HOURS_PER_FAILURE:,.0f} GPU-hours\n")
    heads = ["model", "nodes", "GPUs", "state, GB a GPU", "rest, GB", "fits 64 GB", "tokens/s", "hours", "kg CO2", "failures", "checkpoint, s", "best interval, min", "lost h, best", "lost h, 30 min", "lost h, 4 h"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for shape in SHAPES:
        for nodes in (1, 2, 4, 8, 16):
            print(row(shape, nodes))


if __name__ == "__main__":
    main()
