"""Learning-rate curves of transformers for crates/aloe-train/src/schedule.rs.

Run with transformers 5.23.0 and torch 2.15.0; writes crates/aloe-train/tests/golden/schedules.json. No randomness.
"""

import json
from pathlib import Path

import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)


def curve(decay, peak, warmup, total, floor):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=peak)
    if decay == "cosine" and floor > 0:
        schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, total, min_lr_rate=floor)
    elif decay == "cosine":
        schedule = get_cosine_schedule_with_warmup(optimizer, warmup, total)
    elif decay == "linear" and floor > 0:
        # Power 1 is the straight line to `lr_end`.
        schedule = get_polynomial_decay_schedule_with_warmup(optimizer, warmup, total, lr_end=floor * peak, power=1.0)
    elif decay == "linear":
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, total)
    else:
        schedule = get_constant_schedule_with_warmup(optimizer, warmup)
    values = []
    for _ in range(total):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return {"decay": decay, "peak": peak, "warmup_steps": warmup, "total_steps": total, "floor": floor, "lr": values}


cases = [
    curve("cosine", 2e-5, 10, 57, 0.0),
    curve("cosine", 2e-7, 0, 9, 0.0),
    curve("cosine", 1e-3, 3, 20, 0.1),
    curve("linear", 5e-5, 4, 21, 0.0),
    curve("linear", 3e-4, 3, 17, 0.25),
    curve("constant", 1e-4, 5, 12, 0.0),
    curve("cosine", 1.0, 1, 1, 0.0),
]
target = Path(__file__).parent.parent / "crates/aloe-train/tests/golden/schedules.json"
target.write_text(json.dumps({"cases": cases}, indent=1) + "\n")
