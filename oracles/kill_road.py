#!/usr/bin/env python3
"""Kills a whole recipe in every file operation that changes its folder, in turn, and holds the resumed run against one that was never
disturbed.

What it does: the tiny recipe of crates/aloe/tests/it/tiny.toml runs once under strace. Then, for every `rename`, `unlink`, `unlinkat`,
`rmdir`, `mkdir` and `ftruncate` below the output folder (or every K-th of them with `--every K`), the recipe is started again, killed
(-9) on entering exactly that call, and run once more to its end. After that every file, hidden ones too, must be there with the bytes
of the undisturbed run; records and the card, which hold times, must be there too but are not compared.

Needs: strace 6 (fault injection by `when=N`), an `aloe` binary, the stories260K folder. Python 3.9 or newer, no packages. Not part of
the gate: each kill takes some 3 seconds, and there are about 1,300.

    python3 oracles/kill_road.py target/release/aloe $ALOE_DATA/models/stories260K [--every K] [--calls rename,unlink]

Prints one line per failed check and a table at the end. Exits with 1 when any check fails.
"""
import argparse
import collections
import hashlib
import pathlib
import shutil
import subprocess
import sys
import tempfile

from fault_injection import planned

CALLS = ["rename", "unlink", "unlinkat", "rmdir", "mkdir", "ftruncate"]
ROOT = pathlib.Path(__file__).resolve().parent.parent


def contents(folder):
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(folder))
            if "tensorboard" in path.parts:
                continue
            timed = path.name in ("record.json", "timing.jsonl") or name.startswith("card/")
            found[name] = "" if timed else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("model", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--calls", type=lambda text: text.split(","), default=CALLS)
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        base = pathlib.Path(base)
        text = (ROOT / "crates/aloe/tests/it/tiny.toml").read_text()
        recipe, out = base / "tiny.toml", base / "out"
        recipe.write_text(text.replace("@STORIES@", str(options.model)).replace("@STARTER@", str(ROOT / "starter")))
        command = [str(options.binary), "run", str(recipe), "--out", str(out)]
        strace = ["strace", "-f", "-y", "-o", str(base / "log"), "-e", "trace=" + ",".join(CALLS)]
        subprocess.run(strace + command, check=True, capture_output=True)
        expected, wanted = contents(out), planned(base / "log", out, CALLS)
        table, bad = collections.defaultdict(collections.Counter), 0
        for call in options.calls:
            for n in wanted[call][:: options.every]:
                shutil.rmtree(out)
                ended = subprocess.run(strace + ["-e", f"inject={call}:signal=KILL:when={n}"] + command, capture_output=True)
                again = subprocess.run(command, capture_output=True, text=True)
                found = contents(out)
                differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
                table[call]["killed"] += ended.returncode in (-9, 137)
                table[call]["same"] += again.returncode == 0 and not differing
                if again.returncode != 0 or differing or ended.returncode not in (-9, 137):
                    bad += 1
                    last = open(base / "log", errors="replace").read().splitlines()
                    print(f"{call} {n}: killed run {ended.returncode}, resumed {again.returncode}, differing {differing}\n"
                          f"    {[line for line in last if call in line][-1][:240]}\n    {again.stderr.strip()[-300:]}", flush=True)
        print("| call | kills | resumed to the same bytes |\n| --- | --- | --- |")
        for call, row in table.items():
            print(f"| {call} | {row['killed']} | {row['same']} |")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
