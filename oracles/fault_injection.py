#!/usr/bin/env python3
"""Fails every single file operation of a tiny supervised run in turn, and checks what is left on the disk.

What it does: one training run of stories260K with three checkpoints is traced with strace; then, for every call of the kinds
below that touches the output folder, the same run is repeated with exactly that call answered by an error. After each:
  - the exit code must be 4 (storage), and the message must name a file (with `--errors KILL` the process is killed in that call);
  - every folder `state/step-*` (a name without a leading dot counts as valid) must pass the sums of its own manifest, which are
    computed here and not by the program;
  - the stage's folder must be absent, or the earlier finished one, or the new one, byte for byte;
  - the same command without a fault must end with code 0 and the bytes of a run that was never disturbed.
Two scenes: `new` (no earlier output) and `again` (an earlier output of another seed, which the run replaces).

Needs: strace 6 (fault injection by `when=N`), an `aloe` binary, the stories260K folder. Python 3.9 or newer, no packages. Not part of
the gate (it takes some minutes); the gate's own faults are in crates/aloe/tests/it/faults.rs.

    python3 oracles/fault_injection.py target/release/aloe $ALOE_DATA/models/stories260K [--calls write,fsync] [--errors EIO]

Prints one line per scene, call and error: injected, ended with 4, newest checkpoint valid, resumed byte-identical, leftovers taken as
valid (must be 0). Exits with 1 when any check fails.
"""
import argparse
import collections
import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

CALLS = ["write", "fsync", "fdatasync", "rename", "openat", "mkdir", "unlinkat", "ftruncate"]
# What the program may ask for and be refused without harm: a probe whose failure is an answer.
LINE = re.compile(r"^(\d+)\s+(\w+)\((.*)$")


def command(binary, model, rows, out, seed):
    settings = ['chat_template="alpaca"', "lr=1e-3", "max_steps=6", "max_len=160", "batch_size=1", "checkpoint_every=2",
                "keep_last=1", "held_out_share=0.0"]
    args = [str(binary), "sft", "--model", str(model), "--data", str(rows), "--out", str(out), "--dtype", "f32",
            "--threads", "1", "--seed", str(seed)]
    return args + [part for setting in settings for part in ("--set", setting)]


def write_rows(path):
    with open(path, "w") as file:
        for i in range(24):
            answer = f"Once upon a time there was a {i}. " * 3
            turns = [{"role": "user", "content": f"Tell a story about {i}."}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(folder):
    """Every file but the record, which holds times. Names that begin with a dot are working files."""
    timed = ("record.json", "timing.jsonl")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in timed and "tensorboard" not in path.parts]
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def is_whole(checkpoint):
    manifest = checkpoint / "manifest"
    if not manifest.exists():
        return False
    total, body = manifest.read_text().split("\n", 1)
    if hashlib.sha256(body.encode()).hexdigest() != total:
        return False
    entries = json.loads(body)
    return all((checkpoint / name).exists() and sha256(checkpoint / name) == entry["sha256"] for name, entry in entries.items())


def traced(args, log, inject=None):
    trace = ["strace", "-f", "-y", "-o", str(log), "-e", "trace=" + ",".join(CALLS)]
    if inject:
        trace += ["-e", "inject=" + inject]
    return subprocess.run(trace + args, capture_output=True, text=True, timeout=120)


def planned(log, work, calls=CALLS):
    """For each kind of call the ordinals, counted per thread as strace counts, of those that touch the work folder."""
    count, wanted, main = collections.Counter(), collections.defaultdict(list), None
    for line in open(log, errors="replace"):
        found = LINE.match(line)
        if not found:
            continue
        thread, call, rest = found.groups()
        main = main or thread
        if thread != main or call not in calls:
            continue
        count[call] += 1
        if str(work) in rest and "= -1" not in rest:
            wanted[call].append(count[call])
    return wanted


class Scene:
    def __init__(self, name, options, base):
        self.name, self.options, self.base = name, options, base
        self.work = base / f"{name}-work"
        self.earlier = base / "earlier"

    def fresh(self):
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        if self.name == "again":
            shutil.copytree(self.earlier, self.work / "out")

    def args(self):
        return command(self.options.binary, self.options.model, self.base / "rows.jsonl", self.work / "out", 1)

    def inject(self, call, error, n):
        """One run with one fault; the failed checks."""
        self.fresh()
        kills = error == "KILL"
        found = traced(self.args(), self.base / "log", f"{call}:signal=KILL:when={n}" if kills else f"{call}:error={error}:when={n}")
        marks = ("+++ killed",) if kills else ("INJECTED",)
        hit = [line.strip() for line in open(self.base / "log", errors="replace") if any(mark in line for mark in marks)]
        failed = {}
        if found.returncode != (-9 if kills else 4):
            failed["code"] = f"exit code {found.returncode}"
        elif not kills and str(self.work) not in found.stderr:
            failed["message"] = "the message names no file"
        if "panicked" in found.stderr:
            failed["panic"] = "panicked"
        visible = list(self.work.glob(".out.partial/state/step-*"))
        if not all(is_whole(checkpoint) for checkpoint in visible):
            failed["leftover"] = "a visible checkpoint is not whole"
        out = self.work / "out"
        if out.exists() and self.not_hidden(digests(out)) not in (self.expected, self.before):
            failed["output"] = "the stage folder is neither the old nor the new one"
        aside = self.work / ".out.old"
        if self.name == "again" and not out.exists() and not (kills and aside.exists()):
            failed["output"] = "the earlier output is gone"
        again = subprocess.run(self.args(), capture_output=True, text=True, timeout=120)
        if again.returncode != 0 or self.not_hidden(digests(out)) != self.expected:
            failed["resume"] = f"the second run ended with {again.returncode}: {again.stderr.strip()[-200:]}"
        if failed:
            print(f"  {self.name} {call} {n} {error}: {failed}\n    {hit[0][:220] if hit else 'not hit'}\n    {found.stderr.strip()[-300:]}")
        return failed, bool(hit), bool(visible)

    @staticmethod
    def not_hidden(found):
        return {name: digest for name, digest in found.items() if not name.startswith(".")}

    def run(self):
        self.fresh()
        log = self.base / "log"
        whole = traced(self.args(), log)
        assert whole.returncode == 0, whole.stderr
        self.expected = self.not_hidden(digests(self.work / "out"))
        self.before = digests(self.earlier) if self.name == "again" else None
        wanted, bad = planned(log, self.work), 0
        for call in self.options.calls:
            for error in self.options.errors:
                results = [self.inject(call, error, n) for n in wanted[call]]
                lost = collections.Counter(key for failed, _, _ in results for key in failed)
                n = sum(hit for _, hit, _ in results)
                print(f"| {self.name} | {call} | {error} | {n} | {n - lost['code']} | {n - lost['leftover']} | "
                      f"{sum(visible for _, _, visible in results)} | {n - lost['resume']} | {lost['leftover']} | {lost['output']} |", flush=True)
                bad += sum(lost.values())
        return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("model", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--calls", type=lambda text: text.split(","), default=CALLS)
    parser.add_argument("--errors", type=lambda text: text.split(","), default=["ENOSPC", "EIO"])
    parser.add_argument("--scenes", type=lambda text: text.split(","), default=["new", "again"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        base = pathlib.Path(base)
        write_rows(base / "rows.jsonl")
        done = subprocess.run(command(options.binary, options.model, base / "rows.jsonl", base / "earlier", 2), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        print("| scene | call | error | injected | exit 4 | checkpoints whole | of these with one on disk | resumed byte-identical | leftovers "
              "taken as valid | output harmed |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        bad = sum(Scene(name, options, base).run() for name in options.scenes)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
