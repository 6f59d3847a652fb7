#!/usr/bin/env python3
"""Kills `aloe sft` and `aloe dpo` (-9) at random moments, again and again until they end, and holds what they leave against runs that were
never disturbed.

Each run is killed after a random share (up to `--share`) of an undisturbed run's seconds, started again, killed again, and so on until it
ends by itself; then every file, hidden ones too, must be there with the bytes of the undisturbed run (record.json, which holds times, must
be there but is not compared). A checkpoint is written after every step, so that many kills fall inside a save. Runs of the two stages, f32
and bf16, one and two threads take turns until `--kills` kills have struck a living process.

Needs the stories260K folder and the repository's starter rows. Python 3.9 or newer, no packages.
    python3 oracles/kill_training.py target/release/aloe $ALOE_DATA/models/stories260K [--kills 100] [--seed 1]
Prints one line a run. Exits with 1 when any run leaves other bytes. Extra settings of a stage: --set sft:KEY=VALUE.
"""
import argparse
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

from kill_road import contents

ROOT = pathlib.Path(__file__).resolve().parent.parent


def rows(folder):
    """Short starter rows and pairs, as a data stage writes them."""
    sft, pairs = [], []
    for at in range(160):
        turn = lambda role, text: {"role": role, "content": text}
        question, answer = f"Tell a story about a dog and {at} cats.", "Once upon a time there was a little dog. " * (1 + at % 5)
        sft.append({"messages": [turn("user", question), turn("assistant", answer.strip())]})
        pairs.append({"prompt": [turn("user", question)], "chosen": [turn("assistant", answer.strip())], "rejected": [turn("assistant", f"No {at}.")]})
    for name, found in (("sft", sft), ("dpo", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


def command(options, folder, kind, dtype, threads, out):
    settings = ["lr=1e-3", "chat_template=alpaca", "max_len=256", "batch_size=2", "checkpoint_every=1", "held_out_share=0.1"]
    settings += ["epochs=1"] + (["reference=chunk_start", "chunks=2"] if kind == "dpo" else ["eval_every=7"])
    settings += [text.partition(":")[2] for text in options.set if text.startswith(kind + ":")]
    parts = [options.binary, kind, "--model", options.model, "--data", folder / f"{kind}.jsonl", "--out", out, "--dtype", dtype, "--threads", threads]
    return [str(part) for part in parts] + [part for setting in settings for part in ("--set", setting)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("model", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    draw = random.Random(options.seed)
    undisturbed, kills, runs, bad = {}, 0, 0, 0
    with tempfile.TemporaryDirectory() as base:
        base = pathlib.Path(base)
        rows(base)
        while kills < options.kills:
            kind, dtype, threads = ("sft", "dpo")[runs % 2], ("f32", "bf16")[runs // 2 % 2], (2, 1)[runs // 4 % 2]
            if (kind, dtype) not in undisturbed:
                out, started = base / "whole", time.time()
                subprocess.run(command(options, base, kind, dtype, 2, out), check=True, capture_output=True)
                undisturbed[kind, dtype] = (contents(out), time.time() - started)
                shutil.rmtree(out)
            expected, seconds = undisturbed[kind, dtype]
            out, struck = base / "killed", 0
            while True:
                child = subprocess.Popen(command(options, base, kind, dtype, threads, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                try:
                    child.wait(timeout=draw.uniform(0.0, options.share) * seconds if kills < options.kills else None)
                    break
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.communicate()
                    kills, struck = kills + (child.returncode == -9), struck + (child.returncode == -9)
            found, stderr = contents(out), child.stderr.read()
            differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            good = child.returncode == 0 and not differing
            bad += not good
            runs += 1
            print(f"{'same' if good else 'OTHER'}: {kind} {dtype} {threads} threads ({seconds:.1f} s undisturbed), killed {struck} times, {len(found)} files {differing} {'' if good else stderr[-300:]}", flush=True)
            shutil.rmtree(out)
    print(f"{kills} kills in {runs} runs, {runs - bad} ended with the bytes of an undisturbed run")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
