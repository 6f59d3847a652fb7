#!/usr/bin/env python3
"""Rows a second of near-duplicate search on the rows of `dedup_rows.py`: rensa and datatrove at our parameters, one process, one thread.

Versions: rensa 0.5.0, datatrove 0.6.0, xxhash 3.5.0 (version 4 refuses text; datatrove's 64-bit hash: `hash_fc="xxhash"`), numpy as datatrove wants it.
    python -m venv v && v/bin/pip install rensa==0.5.0 datatrove==0.6.0 xxhash==3.5.0 regex numpy tokenizers
    v/bin/python oracles/dedup_peers.py rows.jsonl rensa|datatrove [--rows N]
Parameters: 5-word shingles of the simplified text, 14 x 8 (112 permutations). Reading and parsing of the file is not in the time of
either; simplification is in both, by datatrove's function for datatrove and by lower case and split for rensa, which has none. What is
timed for datatrove is simplification, shingles and signatures alone, without its writing and clustering: less than it must do.
"""
import argparse
import json
import time

parser = argparse.ArgumentParser()
parser.add_argument("path")
parser.add_argument("peer", choices=["rensa", "datatrove"])
parser.add_argument("--rows", type=int, default=100_000)
args = parser.parse_args()
texts = []
with open(args.path, encoding="utf-8") as file:
    for line in file:
        if len(texts) == args.rows:
            break
        row = json.loads(line)
        texts.append(row["instruction"] + "\n" + row["output"])

start, started = time.perf_counter(), time.process_time()
n_found = None
if args.peer == "rensa":
    from rensa import RMinHash, RMinHashLSH

    lsh = RMinHashLSH(threshold=0.72, num_perm=112, num_bands=14)
    n_found = 0
    for key, text in enumerate(texts):
        words = text.lower().split()
        made = RMinHash(num_perm=112, seed=1)
        made.update([" ".join(words[i:i + 5]) for i in range(len(words) - 4)])
        n_found += bool(lsh.query(made))
        lsh.insert(key, made)
else:
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig, create_hash_func

    class Spaces:
        def word_tokenize(self, text):
            return text.split()

    step = MinhashDedupSignature.__new__(MinhashDedupSignature)
    step.config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, seed=1, hash_config=HashConfig(precision=64, hash_fc="xxhash"))
    step.num_hashes, step._parameters, step.word_tokenizer = 112, None, Spaces()
    step._hash_func = create_hash_func(step.config.hash_config)
    for text in texts:
        shingles = step.get_shingles(text)
        if shingles.size:
            step.get_signature(shingles)
seconds = time.perf_counter() - start
processor = time.process_time() - started
print(f"{args.peer}: {len(texts)} rows in {seconds:.2f} s, {processor:.2f} s of processor: {len(texts) / processor:.0f} rows/s of processor, found {n_found}")
