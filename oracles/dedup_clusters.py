#!/usr/bin/env python3
"""Near duplicates found by `aloe data run` beside datatrove's own four steps and beside every pair's exact Jaccard similarity.

Rows: `dedup_rows.py N rows.jsonl` (seeded), and any JSON lines with `instruction` and `output`. Parameters of both: 5-word shingles of
datatrove's simplified text, 14 x 8, its 64-bit xxHash. datatrove splits words by spaces here, as ours does (its spaCy tokenizer splits
a few more, such as `cannot`). Compared:
  - rows that stay: datatrove keeps one row of a cluster as ours does, but may keep another one; so the partition into clusters is compared,
    pair by pair of rows in one cluster, and the number of rows that stay.
  - brute force: all pairs that share a shingle, exact Jaccard. Recall: pairs of at least 0.85 (and 0.72) that are in one cluster.
    Precision: pairs that share a bucket (a dropped row and the row written beside it) whose similarity is at least 0.5.

Pinned: python 3.11, datatrove 0.6.0, xxhash 3.5.0 (version 4 refuses text), numpy as datatrove wants it. No seeds beyond the rows'.
Run: V/bin/python oracles/dedup_clusters.py ALOE rows.jsonl     (20,000 rows: about a minute)
Ends with 1 when the clusters differ, recall at 0.85 is below 0.98 or precision is below 0.99.
"""
import collections
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile

import xxhash
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.text import simplify_text


class Spaces:
    def word_tokenize(self, text):
        return text.split()


class Clusters:
    def __init__(self, n):
        self.parent = list(range(n))

    def root(self, at):
        while self.parent[at] != at:
            self.parent[at] = self.parent[self.parent[at]]
            at = self.parent[at]
        return at

    def join(self, a, b):
        a, b = self.root(a), self.root(b)
        self.parent[max(a, b)] = min(a, b)

    def roots(self):
        return [self.root(at) for at in range(len(self.parent))]


def datatrove_clusters(texts):
    """Its signatures, its buckets (rows that share one are linked, as `MinhashDedupBuckets` does), union-find as `MinhashDedupCluster`."""
    step = MinhashDedupSignature.__new__(MinhashDedupSignature)
    step.config, step.num_hashes, step._parameters, step.word_tokenizer = MinhashConfig(), 112, None, Spaces()
    step._hash_func = create_hash_func(step.config.hash_config)
    found, first = Clusters(len(texts)), {}
    for at, text in enumerate(texts):
        shingles = step.get_shingles(text)
        if not shingles.size:
            continue
        for bucket, hashes in enumerate(step.get_signature(shingles)):
            found.join(at, first.setdefault((bucket, tuple(int(h) for h in hashes)), at))
    return found.roots()


def our_clusters(aloe, path, texts, folder):
    settings = folder / "data.toml"
    settings.write_text(f"""sources = [{{ name = "rows", path = "{path}", licence = "MIT" }}]
dedup = {{ exact = false, minhash = true }}
""")
    subprocess.run([aloe, "data", "run", "--config", settings, "--out", folder / "out"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found, links = Clusters(len(texts)), []
    for line in open(folder / "out/duplicates.jsonl"):
        row = json.loads(line)
        a, b = (int(row[side].rsplit(":", 1)[1]) - 1 for side in ("dropped", "kept"))
        found.join(a, b)
        links.append((a, b))
    return found.roots(), links


def pairs_of(roots):
    rows = collections.defaultdict(list)
    for at, root in enumerate(roots):
        rows[root].append(at)
    return {pair for members in rows.values() for pair in itertools.combinations(members, 2)}


def main():
    aloe, path = sys.argv[1], pathlib.Path(sys.argv[2]).resolve()
    texts = [row["instruction"] + "\n" + row["output"] for row in map(json.loads, open(path, encoding="utf-8"))]
    with tempfile.TemporaryDirectory() as folder:
        ours, links = our_clusters(aloe, path, texts, pathlib.Path(folder))
    theirs = datatrove_clusters(texts)
    found, wanted = pairs_of(ours), pairs_of(theirs)
    print(f"{len(texts)} rows; ours keeps {len(set(ours))}, datatrove {len(set(theirs))}; pairs in one cluster {len(found)} and {len(wanted)}, "
          f"{len(found ^ wanted)} in one of the two alone")

    shingles, holders = [], collections.defaultdict(list)
    for at, text in enumerate(texts):
        words = simplify_text(text).split()
        shingles.append({xxhash.xxh64_intdigest(" ".join(words[i:i + 5])) for i in range(len(words) - 4)})
        for shingle in shingles[at]:
            holders[shingle].append(at)
    common = collections.Counter()
    for members in holders.values():
        common.update(itertools.combinations(members, 2))
    jaccard = {(a, b): n / (len(shingles[a]) + len(shingles[b]) - n) for (a, b), n in common.items()}
    is_right = found == wanted
    for least in [0.85, 0.72]:
        alike = [pair for pair, value in jaccard.items() if value >= least]
        recall = sum(pair in found for pair in alike) / max(len(alike), 1)
        print(f"{len(alike)} pairs of Jaccard {least} or more, {recall:.4f} of them in one cluster")
        is_right &= least < 0.85 or recall >= 0.98
    values = [jaccard.get((min(pair), max(pair)), 0.0) for pair in links]
    for least in [0.5, 0.72]:
        share = sum(value >= least for value in values) / max(len(values), 1)
        print(f"{len(values)} rows dropped, {share:.4f} of them with a similarity of {least} or more to the row that stays")
        is_right &= least > 0.5 or share >= 0.99
    sys.exit(0 if is_right else 1)


main()
