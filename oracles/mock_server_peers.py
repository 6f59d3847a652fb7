#!/usr/bin/env python3
"""CPU seconds that an evaluation's client takes per request to a server: `aloe eval`, lm-evaluation-harness and inspect-ai, in turn.

The server is a mock of its own process on loopback, whose time does not count: it answers /v1/chat/completions and /v1/completions with one fixed text
after 5 ms, and prompt log-probabilities that depend on token and place alone (`echo` with `logprobs` as OpenAI has them, `prompt_logprobs` as vLLM).
It listens on 16 ports: a client that allows 16 connections to a server is given all of them (256 in all), the others the first with 256 connections.

Modes: `generate`, one worked answer a question (the harness on /v1/completions with text, `local-completions`, generate_until; inspect-ai `multiple_choice` and
aloe `--strategy cot` on /v1/chat/completions); `score`, one log-likelihood request per option (the harness and aloe; inspect-ai has none). Questions are the first
of MedMCQA and CareQA. CPU is user + system of the process and its children (wait4). `whole` has imports, loading and writing in it; `marginal` is the difference to
a run of --few questions, over the difference of requests. Requests are counted by the mock, repeats included, aloe's questions to know a server by
(canaries) not, though their CPU counts.

Pinned: python 3.11, lm-eval 0.4.13, inspect-ai 0.3.285, openai 3.57, aiohttp 3.14. No seeds.
Run: ALOE_DATA=.. python oracles/mock_server_peers.py target/release/aloe [--mode generate] [--requests 5000] [--few 200] [--rounds 3] [--clients aloe,harness,inspect]
     [--tokenizer FOLDER] [--addresses 16] [--aloe-args ".."] [--json FILE] [--lock FILE]
"""

import argparse
import asyncio
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

TEXT = "The first option fits the question best.\nANSWER: A\nAnswer: [A]"
N_NEW, DELAY_S, PORTS, CONNECTIONS = 18, 0.005, 16, 256


class Mock(asyncio.Protocol):
    """One connection: requests are read one after another and answered after the delay."""

    counts = {"requests": 0, "canaries": 0, "open": 0, "most_open": 0, "in_flight": 0, "most_in_flight": 0}

    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""
        self.counts["open"] += 1
        self.counts["most_open"] = max(self.counts["most_open"], self.counts["open"])

    def connection_lost(self, _):
        self.counts["open"] -= 1

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].decode("latin-1").split("\r\n")
            length = next((int(line[15:]) for line in head if line[:15].lower() == "content-length:"), 0)
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4:end + 4 + length], self.buffer[end + 4 + length:]
            self.answer(head[0].split(" ")[1], json.loads(body) if body else {})

    def answer(self, path, body):
        if path.endswith("/models"):
            return self.send({"object": "list", "data": [{"id": "mock", "object": "model", "max_model_len": 8192}]})
        if path == "/counts":
            self.send(self.counts)
            return self.counts.update(requests=0, canaries=0, most_open=0, most_in_flight=0)
        if not path.endswith("/completions"):
            return self.send({"error": {"message": "no such path"}}, "404 Not Found")
        self.counts["requests"] += 1
        self.counts["canaries"] += body.get("seed") == 20261128
        self.counts["in_flight"] += 1
        self.counts["most_in_flight"] = max(self.counts["most_in_flight"], self.counts["in_flight"])
        asyncio.get_running_loop().call_later(DELAY_S, self.reply, chat(body) if "messages" in body else completions(body))

    def reply(self, answer):
        self.counts["in_flight"] -= 1
        self.send(answer)

    def send(self, answer, status="200 OK"):
        text = json.dumps(answer).encode()
        self.transport.write(b"HTTP/1.1 " + status.encode() + b"\r\ncontent-type: application/json\r\ncontent-length: " + str(len(text)).encode() + b"\r\n\r\n" + text)


def usage(n_prompt, n_new):
    return {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}


def chat(body):
    n = body.get("n") or 1
    message = {"role": "assistant", "content": TEXT}
    choices = [{"index": at, "message": message, "logprobs": None, "finish_reason": "stop"} for at in range(n)]
    n_prompt = sum(len(str(one["content"])) // 4 + 4 for one in body["messages"])
    most = body.get("max_tokens") or body.get("max_completion_tokens") or N_NEW
    return {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": "mock", "choices": choices, "usage": usage(n_prompt, n * min(N_NEW, most))}


def completions(body):
    prompts = body["prompt"]
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        prompts = [prompts]
    n, most = body.get("n") or 1, N_NEW if body.get("max_tokens") is None else body["max_tokens"]
    choices, n_prompt = [], 0
    for prompt in prompts:
        ids = prompt if isinstance(prompt, list) else [len(word) for word in prompt.split(" ")]
        n_prompt += len(ids)
        for _ in range(n):
            choices.append(choice(len(choices), body, ids, most))
    return {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": "mock", "choices": choices, "usage": usage(n_prompt, len(choices) * min(N_NEW, most))}


def logp(at, token):
    return -0.05 - (token * 31 + at * 7) % 97 / 20


def choice(at, body, ids, most):
    found = {"index": at, "text": TEXT if most else "", "logprobs": None, "finish_reason": "stop" if most >= N_NEW else "length"}
    if body.get("echo"):
        new = [11] * min(most, 1)
        names = [f"token_id:{token}" for token in ids + new]
        values = [None] + [logp(i, token) for i, token in enumerate(ids + new)][1:]
        tops = [None] + [{name: value, "token_id:1": -0.05} for name, value in zip(names[1:], values[1:])]
        found["logprobs"] = {"tokens": names, "token_logprobs": values, "top_logprobs": tops, "text_offset": [0] * len(names)}
    if body.get("prompt_logprobs") is not None:
        found["prompt_logprobs"] = [None] + [{str(token): {"logprob": logp(i, token), "rank": 1, "decoded_token": ""}} for i, token in enumerate(ids)][1:]
    return found


def serve():
    async def run():
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(Mock, "127.0.0.1", 0, backlog=1024) for _ in range(PORTS)]
        print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
        await asyncio.sleep(1e9)

    asyncio.run(run())


def questions(n):
    """The first of MedMCQA's validation rows and of CareQA: (question, options, index of the right one)."""
    import pyarrow.parquet as parquet

    data = pathlib.Path(os.environ["ALOE_DATA"])
    first = parquet.read_table(data / "medmcqa/validation-00000-of-00001.parquet").slice(0, n // 2).to_pylist()
    second = json.load(open(data / "careqa/CareQA_en.json", encoding="utf-8"))[:n - n // 2]
    rows = [(d["question"], [d["op" + x] for x in "abcd"], d["cop"]) for d in first]
    return rows + [(d["question"], [d[f"op{i}"] for i in range(1, 5)], d["cop"] - 1) for d in second]


def harness_files(folder, mode, n):
    rows = []
    for question, options, right in questions(n):
        text = f"Question: {question}\n" + "".join(f"{x}. {option}\n" for x, option in zip("ABCD", options)) + "Answer:"
        rows.append({"text": text, "target": "ABCD"[right], "label": right})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"task": "mock_task", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}, "test_split": "test", "doc_to_text": "{{text}}"}
    if mode == "generate":
        pick = [{"name": "letter", "filter": [{"function": "regex", "regex_pattern": "ANSWER: ([A-D])"}, {"function": "take_first"}]}]
        task |= {"output_type": "generate_until", "doc_to_target": "{{target}}", "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 64, "do_sample": False},
                 "filter_list": pick, "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}
    else:
        task |= {"output_type": "multiple_choice", "doc_to_target": "label", "doc_to_choice": ["A", "B", "C", "D"],
                 "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
    (folder / "mock_task.yaml").write_text(json.dumps(task))  # JSON is YAML


def harness(options, ports, n, folder):
    harness_files(folder, options.mode, n)
    arguments = f"model=mock,base_url=http://127.0.0.1:{ports[0]}/v1/completions,num_concurrent={CONNECTIONS},max_retries=3"
    arguments += ",tokenizer_backend=None,tokenized_requests=False" if options.mode == "generate" else f",tokenizer_backend=huggingface,tokenizer={options.tokenizer},max_length=8192"
    return [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments, "--tasks", "mock_task", "--include_path", str(folder),
            "--output_path", str(folder / "out"), "--log_samples"]


INSPECT_TASK = """
import json
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import choice
from inspect_ai.solver import multiple_choice

@task
def mcq():
    rows = json.load(open(ROWS))
    samples = [Sample(input=q, choices=options, target="ABCD"[right]) for q, options, right in rows]
    return Task(dataset=MemoryDataset(samples), solver=multiple_choice(), scorer=choice())
"""


def inspect(options, ports, n, folder):
    (folder / "rows.json").write_text(json.dumps(questions(n)))
    (folder / "mcq.py").write_text(INSPECT_TASK.replace("ROWS", repr(str(folder / "rows.json"))))
    return [str(pathlib.Path(sys.executable).parent / "inspect"), "eval", "mcq.py", "--model", "openai-api/mock/mock", "--model-base-url", f"http://127.0.0.1:{ports[0]}/v1",
            "--max-connections", str(CONNECTIONS), "--max-samples", str(CONNECTIONS), "--max-tokens", "64", "--temperature", "0", "--display", "none", "--log-dir", str(folder / "logs")]


def aloe(options, ports, n, folder):
    address = ",".join(f"http://127.0.0.1:{port}/v1" for port in ports[:options.addresses]) + "#mock"
    form = ["--strategy", "cot", "--shots", "0", "--server-template", "--set", "max_new_tokens=64"]
    if options.mode == "score":
        form = ["--strategy", "loglikelihood", "--protocol", "lm-eval", "--tokenizer", options.tokenizer]
    return [options.aloe, "eval", address, "--tasks", "medmcqa,careqa_en", "--limit", str(n // 2), "--data", os.environ["ALOE_DATA"], "--out", str(folder / "out")] + form + shlex.split(options.aloe_args)


CLIENTS = {"aloe": aloe, "harness": harness, "inspect": inspect}


def counts(port):
    return json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/counts", timeout=30))


def measure(options, client, ports, n):
    """One process from start to end: its CPU and wall seconds, and what the mock counted."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        command = CLIENTS[client](options, ports, n, folder)
        environment = dict(os.environ, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_CACHE=str(folder / "datasets"), MOCK_API_KEY="none", OPENAI_API_KEY="none",
                           TOKENIZERS_PARALLELISM="false", ALOE_HOME=str(folder / "home"))
        counts(ports[0])
        start = time.perf_counter()
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
            _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"{client} failed:\n" + (folder / "log").read_text()[-4000:])
        found = counts(ports[0])
        found["requests"] -= found["canaries"]
        return {"client": client, "questions": n, "cpu_s": used.ru_utime + used.ru_stime, "wall_s": seconds, "peak_mib": used.ru_maxrss / 1024} | found


def a_round(options, ports, turn):
    clients = options.clients[turn % len(options.clients):] + options.clients[:turn % len(options.clients)]
    rows = []
    for client in clients:
        with held(options.lock):
            few, many = (measure(options, client, ports, n) for n in (options.few, options.requests // (4 if options.mode == "score" else 1)))
        row = {"round": turn, "client": client, "few": few, "many": many, "whole_ms": 1000 * many["cpu_s"] / many["requests"],
               "marginal_ms": 1000 * (many["cpu_s"] - few["cpu_s"]) / max(1, many["requests"] - few["requests"])}
        rows.append(row)
        print(f"round {turn} {client:8} {many['requests']:6} requests (and {many['canaries']} canaries), at most {many['most_in_flight']} at once on {many['most_open']} connections: "
              f"{many['cpu_s']:.2f} CPU s, {many['wall_s']:.1f} s; ms of CPU a request: {row['whole_ms']:.3f} whole, {row['marginal_ms']:.3f} marginal", flush=True)
    return rows


def held(path):
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
    from machine_lock import held

    return held(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aloe")
    parser.add_argument("--mode", choices=["generate", "score"], default="generate")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--few", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", default="aloe,harness,inspect")
    parser.add_argument("--tokenizer", default=os.path.expanduser("~/.cache/aloe/hf/smollm2-f32"))
    parser.add_argument("--addresses", type=int, default=PORTS)
    parser.add_argument("--aloe-args", default="")
    parser.add_argument("--json")
    parser.add_argument("--lock")
    options = parser.parse_args()
    options.aloe = str(pathlib.Path(options.aloe).resolve())
    options.clients = [client for client in options.clients.split(",") if not (options.mode == "score" and client == "inspect")]
    server = subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True)
    try:
        ports = json.loads(server.stdout.readline())
        rows = [row for turn in range(options.rounds) for row in a_round(options, ports, turn)]
    finally:
        server.kill()
    medians = {client: {key: statistics.median(row[key] for row in rows if row["client"] == client) for key in ("whole_ms", "marginal_ms")} for client in options.clients}
    print(f"\n{'client':10}{'whole ms':>10}{'marginal ms':>13}{'x aloe':>9}   medians of {options.rounds}, mode {options.mode}")
    for client, found in medians.items():
        ratio = found["marginal_ms"] / medians["aloe"]["marginal_ms"] if "aloe" in medians else float("nan")
        print(f"{client:10}{found['whole_ms']:10.3f}{found['marginal_ms']:13.3f}{ratio:9.1f}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"mode": options.mode, "medians": medians, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
