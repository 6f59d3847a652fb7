"""A server with OpenAI's paths for the tests of served stages: python3 mock_server.py PORT MODEL FOLDER BEHAVIOUR.

It scores and continues by a rule of the token ids, alike in every process. In FOLDER it leaves PORT.pid, and PORT.asked with a byte for each
request that is no canary (seed 20261128). BEHAVIOUR: good; early (the first to start dies before it listens), late (the first to start dies at
its fourth request), other (it serves another model), slow (half a second for each answer),
heavy (it loads for two seconds)."""

import http.server
import json
import os
import sys
import time

PORT, MODEL, FOLDER, BEHAVIOUR = int(sys.argv[1]), *sys.argv[2:5]
CANARY = 20261128
# Long enough to count as reasoning where solutions are made, and in the three parts that are asked for.
REASONING = (
    "What decides here is told by the course of the structure that is named in the case, and every choice must be held against it in turn "
    "before one can be taken.\n"
    + "".join(f"{letter}. This one is weighed against the course that was told above.\n" for letter in "ABCD")
    + "Held against each other, one of them fits the whole of the case best.\n"
)


def is_first():
    try:
        os.mkdir(os.path.join(FOLDER, "first"))
    except FileExistsError:
        return False
    return True


def logps(ids):
    return [None] + [-((31 * b + 17 * a) % 101) / 25 - 0.01 for a, b in zip(ids, ids[1:])]


def scored(ids):
    values = logps(ids)
    tops = [None if value is None else {"x": value + 0.005} for value in values]
    names = [f"token_id:{one}" for one in ids]
    return {"text": "", "logprobs": {"token_logprobs": values, "top_logprobs": tops, "tokens": names}}


def answer(body):
    ids = body["prompt"]
    if body.get("echo") and body.get("max_tokens") == 0:
        choices = [scored(ids)]
    else:
        letter = "ABCD"[(sum(ids) + (body.get("seed") or 0)) % 4]
        text = f" {REASONING} Answer: {letter}"
        choices = [{"index": at, "text": text, "finish_reason": "stop"} for at in range(body.get("n", 1))]
    return {"model": MODEL, "choices": choices, "usage": {"prompt_tokens": len(ids)}}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        model = "/other/model" if BEHAVIOUR == "other" else MODEL
        self.reply({"data": [{"id": model, "root": model}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if body.get("seed") != CANARY:
            asked = os.path.join(FOLDER, f"{PORT}.asked")
            with open(asked, "ab") as file:
                file.write(b".")
            if DIES_LATE and os.path.getsize(asked) > 3:
                print("the GPU fell off the bus", flush=True)
                os._exit(9)
            if BEHAVIOUR == "slow":
                time.sleep(0.5)
        self.reply(answer(body))

    def log_message(self, *_):
        pass


with open(os.path.join(FOLDER, f"{PORT}.pid"), "w") as file:
    file.write(str(os.getpid()))
with open(os.path.join(FOLDER, f"{PORT}.gpus"), "w") as file:
    file.write(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
if BEHAVIOUR == "early" and is_first():
    for line in range(20):
        print(f"loading shard {line}", flush=True)
    sys.exit("torch.OutOfMemoryError: CUDA out of memory")
if BEHAVIOUR == "heavy":
    time.sleep(2)
DIES_LATE = BEHAVIOUR == "late" and is_first()
http.server.ThreadingHTTPServer.daemon_threads = True
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
