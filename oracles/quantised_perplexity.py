#!/usr/bin/env python3
"""Perplexity of SmolLM2's stored 4-bit blocks against llama.cpp's on the same GGUF file and token ids, and of our other weight formats.

Texts: the first 1,000 characters of 200 MedQuAD answers, drawn by seed 7; every token but the first is scored. `aloe score` gives the ids;
llama.cpp (the library of the llama-cpp-python 0.3.36 source package, called through that package's ctypes bindings) gets the same ones,
two threads. Bound, set before: llama.cpp's perplexity and ours on the stored blocks differ by less than 2 %; with `--q4-file`, so do
llama.cpp's on that file (the same weights in bf16, rounded to Q4_0 by llama-quantize) and ours on what `--quantize q4` makes of the folder.

Pinned: python 3.11, numpy 2; llama.cpp of llama-cpp-python 0.3.36.
Run: ALOE_DATA=... python oracles/quantised_perplexity.py ALOE MODEL.gguf LLAMA_LIB_FOLDER BINDINGS_FOLDER [--texts 200] [--q4-file Q4_0.gguf]
LLAMA_LIB_FOLDER holds libllama.so, BINDINGS_FOLDER the package's `llama_cpp`. Prints one line a format; ends with 1 outside the bound.
"""

import argparse
import ctypes
import importlib
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import types

import numpy as np


def texts(n):
    rows = [json.loads(line) for line in open(pathlib.Path(os.environ["ALOE_DATA"]) / "medquad/medquad_sample.jsonl")]
    answers = [row["answer"][:1000] for row in rows if row["answer"] and len(row["answer"]) > 100]
    return random.Random(7).sample(answers, n)


def ours(binary, model, rows, folder, arguments):
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    subprocess.run([binary, "score", model, "--requests", str(folder / "r.jsonl"), "--out", str(folder / "out.jsonl"), *arguments], check=True)
    return [json.loads(line) for line in open(folder / "out.jsonl")]


def perplexity(logps):
    return math.exp(-sum(logps) / len(logps))


def llama_logps(lib_folder, bindings, model_path, all_ids):
    os.environ["LLAMA_CPP_LIB_PATH"] = lib_folder
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(pathlib.Path(bindings) / "llama_cpp")]
    sys.modules["llama_cpp"] = package
    c = importlib.import_module("llama_cpp.llama_cpp")
    c.llama_backend_init()
    model = c.llama_model_load_from_file(model_path.encode(), c.llama_model_default_params())
    params = c.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = 2
    context = c.llama_init_from_model(model, params)
    n_vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    logps = []
    for ids in all_ids:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        batch = c.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for at, token in enumerate(ids):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, at, 1, 1
            batch.seq_id[at][0] = 0
        assert c.llama_decode(context, batch) == 0
        logits = np.ctypeslib.as_array(ctypes.cast(c.llama_get_logits(context), ctypes.POINTER(ctypes.c_float)), (len(ids), n_vocab))
        logits = logits[:-1].astype(np.float64)
        top = logits.max(axis=1)
        norm = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        logps.extend((logits[np.arange(len(ids) - 1), ids[1:]] - norm).tolist())
        c.llama_batch_free(batch)
    return logps


def main():
    parser = argparse.ArgumentParser()
    for name in ["aloe", "gguf", "llama_lib_folder", "bindings_folder"]:
        parser.add_argument(name)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--q4-file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows = [{"id": str(at), "prompt": text, "continuations": []} for at, text in enumerate(texts(args.texts))]
        model_folder = str(folder / "model")
        subprocess.run([args.aloe, "pull", args.gguf, "--out", model_folder], check=True, capture_output=True)
        found = {}
        for label, model, arguments in [
            ("stored blocks", args.gguf, []), ("f32 of the blocks", args.gguf, ["--dtype", "f32"]), ("bf16", args.gguf, ["--dtype", "bf16"]),
            ("--quantize q8", model_folder, ["--quantize", "q8"]), ("--quantize q4", model_folder, ["--quantize", "q4"]),
        ]:
            scored = ours(args.aloe, model, rows, folder, arguments)
            found[label] = perplexity([logp for row in scored for logp in row["continuations"][0]["logps"]])
        ids = [row["prompt_ids"] for row in scored]
        peers = {path: perplexity(llama_logps(args.llama_lib_folder, args.bindings_folder, path, ids)) for path in [args.gguf, args.q4_file] if path}
    print(f"{sum(map(len, ids))} tokens of {len(ids)} answers; llama.cpp " + ", ".join(f"{peer:.4f} on {path}" for path, peer in peers.items()))
    for label, value in found.items():
        print(f"{label}: {value:.4f}, " + ", ".join(f"{100 * (value / peer - 1):+.2f} %" for peer in peers.values()) + " of llama.cpp")
    twins = [("stored blocks", args.gguf)] + ([("--quantize q4", args.q4_file)] if args.q4_file else [])
    sys.exit(any(abs(found[label] / peers[path] - 1) > 0.02 for label, path in twins))


if __name__ == "__main__":
    main()
