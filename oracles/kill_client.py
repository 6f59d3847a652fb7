#!/usr/bin/env python3
"""Which requests an evaluation sends again after a kill at half: those a server had answered, and those that were under way.

    ALOE_DATA=.. python oracles/kill_client.py ALOE generate|score [--requests 5000] [--connections 256] [--tokenizer FOLDER]
`aloe eval` asks the mock of `mock_server_peers.py` (5 ms an answer, fixed text) and gets SIGKILL with its half-th answer; the same command then
goes on. A request counts as answered once its answer was handed to the socket, so that those which the client had not read yet are among them.
Prints, of the second process: requests sent before that had been answered, those that had not, and new ones, each with the noise floor's
second asking in it (100 questions a task; the questions are of two tasks). Ends with 1 when more than `--connections` answered requests beside
the noise floor are sent again. Standard library only (Python 3.11).
"""
import argparse
import asyncio
import hashlib
import json
import os
import pathlib
import signal
import tempfile

import mock_server_peers as peers

parser = argparse.ArgumentParser()
parser.add_argument("aloe")
parser.add_argument("mode", choices=["generate", "score"])
parser.add_argument("--requests", type=int, default=5000)
parser.add_argument("--connections", type=int, default=256)
parser.add_argument("--tokenizer", default=os.path.expanduser("~/.cache/aloe/hf/smollm2-bf16"))
args = parser.parse_args()
CANARY_SEED = 20261128


class Run:
    """What was sent and answered before the kill, and what is sent after it."""
    sent, answered, again = set(), set(), {"answered": 0, "under way": 0, "new": 0}
    client, is_first = None, True


class Mock(peers.Mock):
    def answer(self, path, body):
        if not path.endswith("completions"):
            return super().answer(path, body)
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        if body.get("seed") != CANARY_SEED:
            if Run.is_first:
                Run.sent.add(key)
            else:
                Run.again["answered" if key in Run.answered else "under way" if key in Run.sent else "new"] += 1
        answer = peers.chat(body) if "messages" in body else peers.completions(body)
        asyncio.get_running_loop().call_later(peers.DELAY_S, self.give, key, answer, Run.is_first)

    def give(self, key, answer, is_first):
        if self.transport.is_closing():
            return
        self.send(answer)
        if is_first and Run.client:
            Run.answered.add(key)
            if len(Run.answered) >= args.requests // 2:
                Run.client.send_signal(signal.SIGKILL)
                Run.client = None


async def main(folder):
    server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    form = {
        "generate": ["--strategy", "cot", "--shots", "0", "--server-template", "--set", "max_new_tokens=64"],
        "score": ["--strategy", "loglikelihood", "--protocol", "lm-eval", "--tokenizer", args.tokenizer],
    }[args.mode]
    n_questions = args.requests if args.mode == "generate" else args.requests // 4
    command = [args.aloe, "eval", f"http://127.0.0.1:{port}/v1#mock", "--tasks", "medmcqa,careqa_en", "--limit", str(n_questions // 2),
               "--data", os.environ["ALOE_DATA"], "--out", str(folder / "out"), "--set", f"connections={args.connections}"] + form
    for Run.is_first in (True, False):
        client = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
                                                      env=dict(os.environ, ALOE_HOME=str(folder / "home")))
        if Run.is_first:
            Run.client = client
        code = await client.wait()
        assert code == (-signal.SIGKILL if Run.is_first else 0), f"exit code {code}"
    per_question = 1 if args.mode == "generate" else 4
    # Asked twice on purpose: 100 questions of each task, the first task's answered before the kill.
    n_floor = 100 * per_question
    n_again = Run.again["answered"] - n_floor
    print(f"{args.mode}: {len(Run.answered)} answered at the kill; sent again {Run.again}; {n_again} answered ones beside the noise floor's {n_floor}")
    return 0 if n_again <= args.connections else 1


with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as scratch:
    raise SystemExit(asyncio.run(main(pathlib.Path(scratch))))
