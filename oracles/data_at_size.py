#!/usr/bin/env python3
"""A data stage at size: reading and cleaning in MB/s, tokenising apart, overlaps with all shared benchmarks in seconds, memory by row.

    python oracles/dedup_rows.py 1000000 rows.jsonl
    ALOE_DATA=../shared/data ALOE_MODELS=MODELS python oracles/data_at_size.py ALOE rows.jsonl [--threads 2] [--rounds 3] [--parts read,tokens,overlaps,memory]
Standard library only (Python 3.11). Everything is taken from the steps of `record.json` (wall seconds, processor seconds of all threads,
peak of the process's resident memory at the end of each step) of `aloe data run` on the whole file. Megabytes are 10^6 bytes of the file.
  disk      the file read past the page cache (O_DIRECT), and from it: what reading can reach on this machine
  read      rules alone: no duplicates, no overlaps, no tokens. `reading` (every row is read and checked once, and the file hashed on the
            way) and `cleaning` (the rules) together are the figure; writing the result is apart
  tokens    the same with SmolLM2's tokenizer and template ($ALOE_MODELS/smollm2-135m-instruct-q4_1): step `rendering`
  overlaps  the same with all evaluation questions under $ALOE_DATA: steps `questions` (reading and indexing them) and `overlaps`
  memory    rules, duplicates (exact and MinHash) and overlaps on a tenth, a half and all of the rows: the peak after each step, and the line
            through them, carried on to 10^7 rows; then one share of a sixteenth (`aloe data dedup --shard 1/16`), which keeps no rows
"""
import argparse
import itertools
import json
import mmap
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

QUESTIONS = ("medqa/US_test.jsonl medqa/dev_4_options.jsonl medmcqa/dev.json pubmedqa/ori_pqal.json mmlu_medical/data/test mmlu_medical/data/val "
             "careqa/CareQA_en.json headqa/test_en.jsonl headqa/test_es.jsonl headqa/validation_en.jsonl openmedqa/openmedqa_test.json "
             "med_safety_bench/datasets/test bbq/data crows_pairs/crows_pairs_anonymized.csv ethics red_team").split()
OFF = "dedup = { exact = false, minhash = false }"

parser = argparse.ArgumentParser()
parser.add_argument("aloe")
parser.add_argument("path")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--parts", default="disk,read,tokens,overlaps,memory")
args = parser.parse_args()
path = pathlib.Path(args.path).resolve()
n_bytes = path.stat().st_size
parts = args.parts.split(",")


def run(folder, settings, rows=path):
    """The steps of one run, by name, its report and its result folder's size."""
    config, out = folder / "data.toml", folder / "out"
    config.write_text(f'sources = [{{ name = "rows", path = "{rows}", licence = "MIT" }}]\n{settings}\n')
    subprocess.run([args.aloe, "data", "run", "--config", config, "--out", out, "--threads", str(args.threads)], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    record = json.loads((out / "record.json").read_text())
    shutil.rmtree(out)
    steps = {step["name"]: step for step in record["results"]["steps"]}
    return steps, record["results"]["data"], record


def several(folder, settings, names, what):
    """The median wall and processor seconds of the named steps together."""
    walls, processors = [], []
    for _ in range(args.rounds):
        steps, data, _ = run(folder, settings)
        walls.append(sum(steps[name]["elapsed_s"] for name in names))
        processors.append(sum(steps[name]["processor_s"] for name in names))
        each = ", ".join(f"{name} {steps[name]['elapsed_s']:.2f} ({steps[name]['processor_s']:.2f})" for name in names)
        print(f"  {what}: {walls[-1]:.2f} s ({processors[-1]:.2f} s of processor): {each}", flush=True)
    return statistics.median(walls), statistics.median(processors), data


def direct_mb_s():
    buffer, n_read, start = mmap.mmap(-1, 8 << 20), 0, time.perf_counter()
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    while n := os.readv(file, [buffer]):
        n_read += n
    os.close(file)
    return n_read / 1e6 / (time.perf_counter() - start)


def cached_mb_s():
    buffer, start = bytearray(8 << 20), time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return n_bytes / 1e6 / (time.perf_counter() - start)


def memory(folder):
    with open(path, encoding="utf-8") as file:
        n_rows = sum(1 for _ in file)
    points = []
    for n in (n_rows // 10, n_rows // 2, n_rows):
        some = folder / "some.jsonl"
        with open(path, encoding="utf-8") as file, open(some, "w", encoding="utf-8") as part:
            part.writelines(itertools.islice(file, n))
        steps, _, record = run(folder, questions, some)
        peaks = ", ".join(f"{name} {step['peak_rss_bytes'] / 1e6:.0f}" for name, step in steps.items())
        points.append((n, record["peak_rss_bytes"]))
        print(f"  {n} rows ({some.stat().st_size / 1e6:.0f} MB): peak {points[-1][1] / 2**30:.3f} GiB in {record['elapsed_s']:.1f} s; MB after each step: {peaks}", flush=True)
        some.unlink()
    (n0, least), (n1, most) = points[0], points[-1]
    by_row = (most - least) / (n1 - n0)
    print(f"memory: {most / 2**30:.3f} GiB at {n1} rows, {by_row:.0f} bytes a row; carried on to 1e7 rows: {(least + by_row * (10**7 - n0)) / 2**30:.1f} GiB")
    out, config = folder / "shard", folder / "data.toml"
    config.write_text(f'sources = [{{ name = "rows", path = "{path}", licence = "MIT" }}]\n')
    start = time.perf_counter()
    child = subprocess.Popen([args.aloe, "data", "dedup", "--config", config, "--out", out, "--shard", "1/16", "--threads", str(args.threads)],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    print(f"one shard of 16 of {n_rows} rows: {used.ru_maxrss * 1024 / 1e6:.0f} MB, {time.perf_counter() - start:.1f} s, "
          f"{used.ru_utime + used.ru_stime:.1f} s of processor, exit {os.waitstatus_to_exitcode(status)}")


with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    folder = pathlib.Path(folder)
    print(f"{path.name}: {n_bytes / 1e6:.1f} MB, {args.threads} threads")
    listed = [str(pathlib.Path(os.environ.get("ALOE_DATA", "../shared/data")).resolve() / name) for name in QUESTIONS]
    questions = f"decontaminate = {json.dumps(listed)}"
    if "disk" in parts:
        print(f"disk: {direct_mb_s():.0f} MB/s past the page cache, {cached_mb_s():.0f} MB/s from it")
    if "read" in parts:
        wall, processor, data = several(folder, OFF, ["reading", "cleaning"], "reading and cleaning")
        n_rows = data["account"]["n_read"]
        print(f"reading and cleaning: {n_bytes / 1e6 / wall:.0f} MB/s, {n_rows / wall:.0f} rows/s ({n_bytes / 1e6 / processor:.0f} MB a second of processor)")
    if "tokens" in parts:
        packaged = pathlib.Path(os.environ["ALOE_MODELS"]).resolve() / "smollm2-135m-instruct-q4_1/model.gguf"
        tokenizer = folder / "model"
        subprocess.run([args.aloe, "pull", packaged, "--out", tokenizer], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall, processor, data = several(folder, f'{OFF}\ntokenizer = "{tokenizer}"', ["rendering"], "tokenising")
        n_tokens = sum(source["n_tokens"] for source in data["sources"])
        print(f"tokenising: {n_tokens} tokens, {n_tokens / wall:.0f} tokens/s, {n_bytes / 1e6 / wall:.1f} MB/s ({n_bytes / 1e6 / processor:.1f} MB a second of processor)")
    if "overlaps" in parts:
        wall, processor, data = several(folder, f"{OFF}\n{questions}", ["questions", "overlaps"], "overlaps")
        print(f"overlaps: {data['account']['n_read']} rows against {data['n_held_apart_questions']} questions in {wall:.1f} s ({processor:.1f} s of processor); "
              f"{data['n_overlaps']} overlap")
    if "memory" in parts:
        memory(folder)
