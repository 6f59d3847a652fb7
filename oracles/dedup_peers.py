#!/usr/bin/env python3
"""Near duplicates in rows a second: `aloe data run` beside rensa and datatrove at equal parameters, in turn, on the same rows.

    python -m venv v && v/bin/pip install rensa==0.5.0 datatrove==0.6.0 xxhash==3.5.0 regex numpy tokenizers
    v/bin/python oracles/dedup_rows.py 100000 rows.jsonl
    v/bin/python oracles/dedup_peers.py ALOE rows.jsonl [--rows N] [--pairs 5] [--arms aloe,rensa,rensa_rows,datatrove,aloe2]
Versions: rensa 0.5.0, datatrove 0.6.0 with its 64-bit xxHash (`HashConfig(precision=64, hash_fc="xxhash")`; xxhash 3.5.0, version 4
refuses text), numpy as datatrove wants it.

Parameters of all: 5-word shingles, 14 x 8 (112 permutations), threshold 0.72. Each arm is a process of its own with one thread (`aloe2`:
ours with two), one after the other in the order of `--arms`, and that `--pairs` times. What is timed, by the wall clock:
  aloe        the step `duplicates` of its record (exact duplicates off): from parsed rows in memory to the list of duplicates: joining
              question and answer, simplification, shingles, signatures, buckets, clusters, the exact Jaccard similarity of each pair found.
              Reading, parsing, rules and writing are other steps.
  rensa       from texts in memory (joined) to a flag for every row that shares a band with another one: lower case and split (rensa has no
              simplification of its own), shingles, `digest_matrix_from_token_sets` and `insert_matrix_and_query_duplicate_flags`: its
              fastest way over whole sets of shingles (the rho sketches sample them), without clusters.
  rensa_rows  the same by one `RMinHash` a row, `query` and `insert`: the rows that share a band with an earlier one.
  datatrove   from texts in memory (joined) to signatures: its simplification, shingles and signatures alone, without writing, buckets and
              clusters: less than it must do. Its buckets and clusters are made afterwards, untimed, to compare what is found.
The garbage collector of Python is off while a peer is timed. Reading and parsing of the file are in none of the times.

Answers: ours and datatrove must drop the same number of rows (`dedup_clusters.py` compares the clusters themselves). rensa has other
permutations and keeps punctuation: the number of rows that share a band may differ from ours by a tenth. Else the script ends with 1.
"""
import argparse
import gc
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time


def texts_of(path):
    with open(path, encoding="utf-8") as file:
        return [row["instruction"] + "\n" + row["output"] for row in map(json.loads, file)]


def shingles_of(text):
    words = text.lower().split()
    return [" ".join(words[i:i + 5]) for i in range(len(words) - 4)]


def rensa(texts):
    from rensa import RMinHash, RMinHashLSH

    lsh = RMinHashLSH(threshold=0.72, num_perm=112, num_bands=14)
    yield
    matrix = RMinHash.digest_matrix_from_token_sets(map(shingles_of, texts), 112, 1)
    flags = lsh.insert_matrix_and_query_duplicate_flags(matrix)
    yield {"alike": sum(flags)}


def rensa_rows(texts):
    from rensa import RMinHash, RMinHashLSH

    lsh = RMinHashLSH(threshold=0.72, num_perm=112, num_bands=14)
    yield
    n_found = 0
    for key, text in enumerate(texts):
        made = RMinHash(num_perm=112, seed=1)
        made.update(shingles_of(text))
        n_found += bool(lsh.query(made))
        lsh.insert(key, made)
    yield {"dropped": n_found}


def datatrove(texts):
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig, create_hash_func

    class Spaces:
        def word_tokenize(self, text):
            return text.split()

    step = MinhashDedupSignature.__new__(MinhashDedupSignature)
    step.config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, seed=1, hash_config=HashConfig(precision=64, hash_fc="xxhash"))
    step.num_hashes, step._parameters, step.word_tokenizer = 112, None, Spaces()
    step._hash_func = create_hash_func(step.config.hash_config)
    yield
    signatures = []
    for text in texts:
        shingles = step.get_shingles(text)
        signatures.append(step.get_signature(shingles) if shingles.size else [])
    yield
    parent, first = list(range(len(texts))), {}

    def root(at):
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    for at, signature in enumerate(signatures):
        for bucket, hashes in enumerate(signature):
            other = first.setdefault((bucket, tuple(int(h) for h in hashes)), at)
            a, b = sorted((root(at), root(other)))
            parent[b] = a
    yield {"dropped": sum(parent[at] != at for at in range(len(texts)))}


def peer(name, path):
    """One arm in this process: what is before the first `yield` is its start, what follows is timed."""
    texts = texts_of(path)
    steps = {"rensa": rensa, "rensa_rows": rensa_rows, "datatrove": datatrove}[name](texts)
    next(steps)
    gc.collect()
    gc.disable()
    wall, processor = time.perf_counter(), time.process_time()
    found = next(steps)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(json.dumps({"rows": len(texts), "seconds": wall, "processor": processor, **(found or next(steps))}))


def aloe(program, path, n_threads, folder):
    settings, out = folder / "data.toml", folder / f"out{n_threads}"
    settings.write_text(f"""sources = [{{ name = "rows", path = "{path}", licence = "MIT" }}]
dedup = {{ exact = false, minhash = true }}
""")
    subprocess.run([program, "data", "run", "--config", settings, "--out", out, "--threads", str(n_threads)], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = json.loads((out / "record.json").read_text())["results"]
    [step] = [step for step in results["steps"] if step["name"] == "duplicates"]
    found = [json.loads(line) for line in open(out / "duplicates.jsonl")]
    subprocess.run(["rm", "-r", out], check=True)
    return {"rows": results["data"]["account"]["n_read"], "seconds": step["elapsed_s"], "processor": step["processor_s"],
            "dropped": len(found), "alike": len({row[side] for row in found for side in ("dropped", "kept")})}


def arm(name, program, path, folder):
    if name.startswith("aloe"):
        return aloe(program, path, 2 if name == "aloe2" else 1, folder)
    command = [sys.executable, __file__, "--peer", name, program, path]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "RAYON_NUM_THREADS": "1"})
    return json.loads(told.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("aloe")
    parser.add_argument("path")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--arms", default="aloe,rensa,rensa_rows,datatrove,aloe2")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    path = pathlib.Path(args.path).resolve()
    if args.peer:
        return peer(args.peer, path)
    arms = args.arms.split(",")
    runs = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if args.rows:
            with open(path, encoding="utf-8") as rows, open(folder / "rows.jsonl", "w", encoding="utf-8") as part:
                part.writelines(itertools.islice(rows, args.rows))
            path = folder / "rows.jsonl"
        for number, name in itertools.product(range(args.pairs), arms):
            run = arm(name, args.aloe, path, folder)
            runs[name].append(run)
            print(f"{number + 1} {name:<10} {run['rows']} rows in {run['seconds']:.2f} s ({run['processor']:.2f} s of processor): "
                  f"{run['rows'] / run['seconds']:.0f} rows/s", flush=True)
    rate = {name: [run["rows"] / run["seconds"] for run in done] for name, done in runs.items()}
    found = {name: {key: run[key] for key in ("dropped", "alike") if key in run} for name, (run, *_) in runs.items()}
    is_right = True
    for name in arms:
        line = f"{name:<10} median {statistics.median(rate[name]):.0f} rows/s ({min(rate[name]):.0f} to {max(rate[name]):.0f}), found {found[name]}"
        if name != "aloe" and "aloe" in arms:
            ratios = [ours / theirs for ours, theirs in zip(rate["aloe"], rate[name])]
            line += f"; aloe is {statistics.median(ratios):.2f} times as fast: " + ", ".join(f"{ratio:.2f}" for ratio in ratios)
            for key in found[name].keys() & found["aloe"].keys():
                off = abs(found[name][key] - found["aloe"][key]) / max(found["aloe"][key], 1)
                is_right &= off == 0 if not name.startswith("rensa") else off <= 0.1
        print(line)
    if not is_right:
        sys.exit("the arms do not find the same rows")


main()
