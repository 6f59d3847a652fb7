#!/usr/bin/env python3
"""Row S15: two million made rows with planted near duplicates, deduplicated in 1, 4 and 16 shards by `aloe data dedup`.

    python oracles/dedup_shards.py ALOE FOLDER [--rows 2000000] [--threads 2] [--minutes 5] [--parts rows,1,4,16,rate,judge]
Standard library only (Python 3.11). Every process is a step: making the rows (`dedup_rows.py`), each shard, each merge, the run that is
timed. FOLDER/state.json holds what each gave, so that a second call goes on behind the last step that ended; no step is begun after
`--minutes`, and the script ends with 2 then: call it again. The last part, `judge`, ends with 1 where a bound is missed. Bounds:

  same output    `duplicates.jsonl` and `dedup.json` of the merges of 1, 4 and 16 shards: the same bytes.
  peak memory    of each shard and merge and of the timed run, by wait4: at most 4 GiB.
  rows a second  of one core: the step `duplicates` of `aloe data run --threads 1` (exact duplicates off) on the first 200,000 rows, rows divided by
                 the step's processor seconds in its record: at least 20,000. Besides: the shards' whole processes, two readings of the file each.
  recall         of all planted pairs (a made row and the row that it is a copy of) whose exact Jaccard similarity is 0.85 or more, the
                 share in one cluster, that is with one and the same row that stays: at least 0.98. The similarity is that of the sets of
                 5-word shingles of question and answer, simplified as the program does (the made rows are words of small letters, of
                 which a question mark and a full stop are taken off).
  precision      of all rows dropped, the share whose exact Jaccard similarity with the row that stays in their place is 0.5 or more: at
                 least 0.99. Shares of 14 x 8 buckets are no threshold: pairs of 0.5 meet with a chance of 0.05, of 0.72 with 0.65. So
                 the shares of 0.72 and 0.85 are printed beside it, and the share of rows dropped beside a row of their own planted family.
"""
import argparse
import collections
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

SHARDS = (1, 4, 16)
N_TIMED = 200_000
GIB = 2**30

parser = argparse.ArgumentParser()
parser.add_argument("aloe")
parser.add_argument("folder")
parser.add_argument("--rows", type=int, default=2_000_000)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--minutes", type=float, default=5)
parser.add_argument("--parts", default="rows,1,4,16,rate,judge")
args = parser.parse_args()
folder = pathlib.Path(args.folder).resolve()
folder.mkdir(parents=True, exist_ok=True)
rows, state_file = folder / "rows.jsonl", folder / "state.json"
state = json.loads(state_file.read_text()) if state_file.exists() else {}
# A child's peak counts what this process held when it was started, so that nothing large is held before `judge`.
with open(args.aloe, "rb") as file:
    program = hashlib.file_digest(file, "sha256").hexdigest()
made_of = {"rows": args.rows, "aloe": program}
if state.setdefault("made_of", made_of) != made_of:
    sys.exit(f"{folder} holds steps of {state['made_of']['rows']} rows or of another program: give another folder")
started = time.monotonic()


def step(name, command):
    """Runs a command once: its seconds, processor seconds and peak memory are kept."""
    if name in state:
        return state[name]
    if time.monotonic() - started > 60 * args.minutes:
        print(f"{args.minutes:g} minutes are over before {name}: call again to go on")
        sys.exit(2)
    begun = time.monotonic()
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{name} ended with {code}: {' '.join(map(str, command))}")
    state[name] = {"s": time.monotonic() - begun, "processor_s": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss * 1024}
    state_file.write_text(json.dumps(state, indent=1))
    print(f"{name}: {state[name]['s']:.1f} s, {state[name]['processor_s']:.1f} s of processor, {state[name]['peak'] / 1e6:.0f} MB", flush=True)
    return state[name]


def config(name, path, more=""):
    file = folder / name
    file.write_text(f'sources = [{{ name = "rows", path = "{path}", licence = "MIT" }}]\n{more}\n')
    return file


def in_shards(n):
    settings = config("data.toml", rows)
    outs = [folder / f"shard-{index}-of-{n}" for index in range(1, n + 1)]
    for index, out in enumerate(outs, 1):
        command = [args.aloe, "data", "dedup", "--config", settings, "--shard", f"{index}/{n}", "--out", out, "--threads", args.threads]
        step(f"shard {index} of {n}", command)
    step(f"merge of {n}", [args.aloe, "data", "dedup", "--merge", *outs, "--out", folder / f"merged-{n}"])


def timed():
    some = folder / "some.jsonl"
    with open(rows, "rb") as file, open(some, "wb") as part:
        n_rows = sum(bool(part.write(line)) for line, _ in zip(file, range(N_TIMED)))
    settings = config("timed.toml", some, "dedup = { exact = false, minhash = true }")
    step("timed run", [args.aloe, "data", "run", "--config", settings, "--out", folder / "timed", "--threads", 1])
    record = json.loads((folder / "timed/record.json").read_text())
    [found] = [one for one in record["results"]["steps"] if one["name"] == "duplicates"]
    state["rate"] = n_rows / found["processor_s"]
    state_file.write_text(json.dumps(state, indent=1))


def shingles(row):
    words = (row["instruction"] + "\n" + row["output"]).replace("?", "").replace(".", "").split()
    return {" ".join(words[at:at + 5]) for at in range(len(words) - 4)}


def jaccard(a, b):
    return len(a & b) / max(len(a | b), 1)


def number(row_id):
    return int(row_id.rsplit(":", 1)[1]) - 1


def read():
    """The planted pairs, the rows dropped with the rows that stay for them, and the shingles of all of these as JSON lines."""
    with open(rows, "rb") as file:
        planted = {at: json.loads(line)["planted"] for at, line in enumerate(file) if b'"planted": null' not in line}
    with open(folder / f"merged-{SHARDS[0]}/duplicates.jsonl") as file:
        stays = {number(row["dropped"]): number(row["kept"]) for row in map(json.loads, file)}
    wanted = {*planted, *planted.values(), *stays, *stays.values()}
    with open(rows, "rb") as file:
        lines = {at: line for at, line in enumerate(file) if at in wanted}
    return planted, stays, lambda at: shingles(json.loads(lines[at]))


def judge():
    failures = []

    def bound(is_met, text):
        print(("  " if is_met else "MISSED ") + text)
        failures.extend([] if is_met else [text])

    digests = {n: [hashlib.sha256((folder / f"merged-{n}" / name).read_bytes()).hexdigest()[:16] for name in ("duplicates.jsonl", "dedup.json")]
               for n in SHARDS}
    bound(len({tuple(found) for found in digests.values()}) == 1, f"same output of {SHARDS} shards: {digests[1]}")
    peaks = {name: one["peak"] for name, one in state.items() if name.startswith(("shard", "merge", "timed"))}
    most = max(peaks, key=peaks.get)
    bound(peaks[most] <= 4 * GIB, f"largest peak: {peaks[most] / GIB:.2f} GiB ({most}) of {len(peaks)} processes")
    bound(state["rate"] >= 20_000, f"MinHash: {state['rate']:.0f} rows a second of one core")
    alone = state["shard 1 of 1"]
    print(f"  the whole of one shard of one: {args.rows / alone['s']:.0f} rows/s of wall time, {args.rows / alone['processor_s']:.0f} a second of processor")

    planted, stays, shingles_of = read()
    family = {}
    for copy, base in sorted(planted.items()):
        family[copy] = family.get(base, base)
    buckets = collections.Counter()
    for copy, base in planted.items():
        value = jaccard(shingles_of(copy), shingles_of(base))
        together = stays.get(copy, copy) == stays.get(base, base)
        for least in (0.85, 0.72, 0.0):
            buckets[least] += value >= least
            buckets[least, "found"] += value >= least and together
    recall = buckets[0.85, "found"] / max(buckets[0.85], 1)
    bound(buckets[0.85] > 0 and recall >= 0.98, f"recall: {recall:.4f} of {buckets[0.85]} planted pairs of Jaccard 0.85 or more are in one cluster")
    for least in (0.72, 0.0):
        print(f"  beside it: {buckets[least, 'found'] / max(buckets[least], 1):.4f} of {buckets[least]} of {least} or more")
    values = [jaccard(shingles_of(dropped), shingles_of(kept)) for dropped, kept in stays.items()]
    share = {least: sum(value >= least for value in values) / max(len(values), 1) for least in (0.5, 0.72, 0.85)}
    bound(len(values) > 0 and share[0.5] >= 0.99, f"precision: {share[0.5]:.4f} of {len(values)} dropped rows have a Jaccard of 0.5 or more with the row that stays")
    of_family = sum(family.get(dropped, dropped) == family.get(kept, kept) for dropped, kept in stays.items()) / max(len(stays), 1)
    print(f"  beside it: {share[0.72]:.4f} of 0.72 or more, {share[0.85]:.4f} of 0.85 or more; {of_family:.4f} of the row's own planted family")
    sys.exit(1 if failures else 0)


for part in args.parts.split(","):
    if part == "rows":
        step("rows", [sys.executable, pathlib.Path(__file__).with_name("dedup_rows.py"), args.rows, rows])
    elif part == "rate":
        if "rate" not in state:
            timed()
    elif part == "judge":
        judge()
    else:
        in_shards(int(part))
