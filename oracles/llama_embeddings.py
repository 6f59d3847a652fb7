#!/usr/bin/env python3
"""Embeddings of llama-server's `/v1/embeddings` on a GGUF file, through our client, beside our own of the same weights.

The server pools the last token; the own embedder takes the last token of the folder that the file was dequantised to, in f32. On blocks the
server rounds activations to 8 bits (least cosine of 20 texts on Q4_1: 0.9988); on the same values in f32 (`oracles/gguf_to_f32.py`) it does not
(0.99999).

Pinned: python 3.11, xllamacpp 2026.10.11549. No seeds.
Run: V/bin/python oracles/llama_server.py MODEL.gguf 8413 4 4096 last &  then
     ALOE_DATA=... python oracles/llama_embeddings.py target/release/aloe FOLDER 8413 [--texts 200] [--characters 100]
Prints the least and the mean cosine, and how often the nearest neighbour is the same.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import tempfile


def embed(binary, model, texts):
    with tempfile.TemporaryDirectory() as folder:
        rows, out = pathlib.Path(folder) / "texts.jsonl", pathlib.Path(folder) / "vectors.jsonl"
        rows.write_text("".join(json.dumps({"id": str(at), "text": text}) + "\n" for at, text in enumerate(texts)))
        done = subprocess.run([binary, "embed", model, "--requests", str(rows), "--out", str(out)], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        return [json.loads(line)["embedding"] for line in open(out)]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("folder")
    parser.add_argument("port", type=int)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--characters", type=int, help="keep only so many of each text")
    options = parser.parse_args()
    path = pathlib.Path(os.environ["ALOE_DATA"]) / "medqa/phrases_no_exclude_test.jsonl"
    texts = [json.loads(line)["question"].replace("\n", " ")[:options.characters] for line in open(path)][:options.texts]
    ours = embed(options.binary, options.folder, texts)
    theirs = embed(options.binary, f"http://127.0.0.1:{options.port}/v1#model", texts)
    assert len(ours) == len(theirs) == len(texts)
    assert all(abs(math.sqrt(dot(v, v)) - 1) < 1e-4 for v in ours + theirs)
    cosines = [dot(a, b) for a, b in zip(ours, theirs)]
    nearest = lambda vectors, at: max((other for other in range(len(vectors)) if other != at), key=lambda other: dot(vectors[at], vectors[other]))
    same = sum(nearest(ours, at) == nearest(theirs, at) for at in range(len(texts)))
    print(f"{len(texts)} texts, {len(ours[0])} numbers: cosine with the own embedding at least {min(cosines):.5f}, mean {sum(cosines) / len(cosines):.5f}; "
          f"nearest neighbour the same for {same}")


if __name__ == "__main__":
    main()
