#!/usr/bin/env python3
"""Times 20-sample self-consistency chains of thought over shared questions against llama-server, in turn, on the same token ids.

Work: `--questions` MedQA questions (chat template, one system prompt), 20 samples each, at most `--tokens` new tokens, temperature 0.7,
top-k 40, the model's own end of turn stops a sample. The figure is drawn tokens a second over the whole run, since samples differ in
length. `aloe generate` is timed as a whole process, loading included; llama-server is up and warm before its clock starts.
llama-server gets prompt caching, flash attention, continuous batching, and one request a question with `n_cmpl` 20, so that it runs a
prompt once and copies its cache; `--slots` tries several numbers of slots (`--inflight` questions at once) and the best counts.

Pinned: python 3.11, transformers 5.23; llama.cpp of the llama-cpp-python 0.3.36 source package, built with GGML_NATIVE. Two threads.
Run: ALOE_DATA=... python oracles/sc_cot_peers.py ALOE MODEL_FOLDER LLAMA_SERVER MODEL.gguf [--questions 50] [--rounds 3]
     [--slots 20,40] [--lock FILE]
Prints one line a round and the medians of the ratios.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
import urllib.request

from machine_lock import held
from transformers import AutoTokenizer

SYSTEM = "You are a medical expert. Think step by step about the question and its options, then name the letter of the right option."


def prompts(folder, n):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in open(pathlib.Path(os.environ["ALOE_DATA"]) / "medqa/phrases_no_exclude_test.jsonl")][:n]
    for row in rows:
        question = row["question"] + "\n" + "\n".join(f"{letter}. {text}" for letter, text in sorted(row["options"].items()))
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
        yield list(ids["input_ids"] if hasattr(ids, "keys") else ids)


def ours(binary, model, extra, all_ids, options, folder):
    rows = [{"id": str(i), "prompt_ids": ids, "n": 20, "max_new_tokens": options.tokens, "temperature": 0.7, "top_k": 40}
            for i, ids in enumerate(all_ids)]
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = time.perf_counter()
    subprocess.run([binary, "generate", model, *extra, "--requests", str(folder / "r.jsonl"), "--out", str(folder / "a.jsonl")], check=True,
                   capture_output=True)
    seconds = time.perf_counter() - start
    answers = [json.loads(line) for line in open(folder / "a.jsonl")]
    assert all(len(a["completions"]) == 20 for a in answers)
    return seconds, sum(len(c["ids"]) for a in answers for c in a["completions"])


class Server:
    def __init__(self, binary, model, slots, inflight, context):
        self.inflight = inflight
        # The cache is shared by the slots (unified), so a child's copy of a prompt costs no memory traffic.
        self.process = subprocess.Popen([binary, "-m", model, "--port", "8765", "-t", "2", "-tb", "2", "-np", str(slots), "-c", str(context),
                                         "-kvu", "-fa", "on", "--no-webui", "-lv", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                if urllib.request.urlopen("http://127.0.0.1:8765/health", timeout=1).status == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise SystemExit("llama-server does not come up")

    def ask(self, ids, tokens):
        body = {"prompt": ids, "n_predict": tokens, "temperature": 0.7, "top_k": 40, "top_p": 1.0, "min_p": 0.0, "cache_prompt": True,
                "n_cmpl": 20, "samplers": ["top_k", "temperature"], "seed": -1}
        request = urllib.request.Request("http://127.0.0.1:8765/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
        found = json.load(urllib.request.urlopen(request, timeout=3600))
        found = found if isinstance(found, list) else [found]
        assert len(found) == 20, len(found)
        return sum(one["tokens_predicted"] for one in found)

    def run(self, all_ids, tokens):
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(self.inflight) as pool:
            total = sum(pool.map(lambda ids: self.ask(ids, tokens), all_ids))
        return time.perf_counter() - start, total

    def stop(self):
        self.process.kill()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("server")
    parser.add_argument("gguf")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=lambda text: [int(n) for n in text.split(",")], default=[20, 40])
    parser.add_argument("--aloe-args", default="")
    parser.add_argument("--lock", help="file whose lock is held during a round")
    options = parser.parse_args()
    all_ids = list(prompts(options.model, options.questions))
    longest = max(map(len, all_ids)) + options.tokens
    print(f"{len(all_ids)} prompts of {statistics.median(map(len, all_ids))} tokens (median)", flush=True)
    server = lambda slots: Server(options.server, options.gguf, slots, slots // 20, slots * longest)
    rates = {}
    for slots in options.slots:
        with held(options.lock):
            running = server(slots)
            running.run(all_ids[:2], 16)
            seconds, total = running.run(all_ids[:6], options.tokens)
            running.stop()
        rates[slots] = total / seconds
        print(f"llama-server with {slots} slots: {rates[slots]:.0f} tokens a second on 6 questions", flush=True)
    best = max(rates, key=rates.get)
    ratios, ours_rate, theirs_rate = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            def aloe():
                return ours(options.binary, options.model, options.aloe_args.split(), all_ids, options, pathlib.Path(folder))

            def peer():
                running = server(best)
                running.run(all_ids[:1], 8)
                found = running.run(all_ids, options.tokens)
                running.stop()
                return found

            with held(options.lock):
                found = {work.__name__: work() for work in ([aloe, peer] if number % 2 == 0 else [peer, aloe])}
            rate = {name: total / seconds for name, (seconds, total) in found.items()}
            ours_rate.append(rate["aloe"])
            theirs_rate.append(rate["peer"])
            ratios.append(rate["aloe"] / rate["peer"])
            print("  ".join(f"{name} {found[name][0]:.1f} s, {found[name][1]} tokens, {rate[name]:.0f}/s" for name in found) +
                  f"  ratio {ratios[-1]:.2f}", flush=True)
    print(f"aloe {statistics.median(ours_rate):.0f}, llama-server ({best} slots) {statistics.median(theirs_rate):.0f} tokens a second; "
          f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
