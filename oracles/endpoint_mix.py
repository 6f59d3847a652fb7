#!/usr/bin/env python3
"""10,000 requests over four mock servers with faults and one real llama-server, by `aloe generate`: none lost, none doubled, the dead one
left alone, and the speed of the healthy ones kept (row S13).

The mocks answer 16 requests at once after 0.2 s each (80 a second), with the prompt's ids as text, and:
  busy      answers 2 % of its requests with 429 (retry-after 0) and 1 % with 503
  reset     breaks off 1 % of its answers in the middle
  silent    keeps every connection and says nothing from its 300th request on, for good; its list of models too
  garbage   answers 1 % with half a JSON and 1 % with a page
The canary's questions (seed 20261128) they pass on to the real server, as servers of one model must answer them alike.
The speeds of one mock without faults and of the real server are measured first, each alone; the sum of the healthy ones is three mocks
and the real one. Ends with 1 where a request is lost, doubled, unanswered or has another's answer, where the silent server is asked 5 s after it fell
silent, and below 90 % of that sum (the servers share this machine here: give the real one a core of its own with LLAMA_THREADS=1).

Pinned: python 3.11 (standard library), xllamacpp 2026.10.11549 for the real server (`oracles/llama_server.py`). No seeds: faults come by count.
Run: V/bin/python oracles/llama_server.py MODEL.gguf 8412 8 4096 &  then
     python oracles/endpoint_mix.py target/release/aloe MODEL.gguf 8412 [--requests 10000]
"""

import argparse
import asyncio
import json
import multiprocessing
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

SERVICE_S, CANARY_SEED = 0.2, 20261128
KINDS = ["plain", "busy", "reset", "silent", "garbage"]


class Mock:
    def __init__(self, kind, real, stats):
        self.kind, self.real, self.stats = kind, real, stats
        self.n, self.is_silent, self.slots = 0, False, asyncio.Semaphore(16)

    async def serve(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
                body = json.loads(await reader.readexactly(length)) if length else {}
                if not await self.answer(writer, head.split(" ")[1], body):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def answer(self, writer, path, body):
        if self.is_silent:
            if "models" not in path:
                self.stats["last_asked"] = time.time()
            await asyncio.sleep(3600)
        if path.endswith("/models"):
            return await self.send(writer, 200, json.dumps({"data": [{"id": "model"}]}))
        if body.get("seed") == CANARY_SEED:
            return await self.send(writer, 200, await asyncio.to_thread(ask, self.real, body))
        self.n += 1
        n = self.n
        if self.kind == "silent" and n >= 300:
            self.is_silent = True
            self.stats["silent_since"] = self.stats["last_asked"] = time.time()
            await asyncio.sleep(3600)
        if self.kind == "busy" and n % 50 == 7:
            return await self.send(writer, 429, "{}", "retry-after: 0\r\n")
        if self.kind == "busy" and n % 100 == 31:
            return await self.send(writer, 503, "{}")
        async with self.slots:
            await asyncio.sleep(SERVICE_S)
        text = json.dumps({"model": "model", "choices": [{"index": 0, "text": json.dumps(body["prompt"]), "finish_reason": "stop"}]})
        if self.kind == "garbage" and n % 100 in (11, 41):
            return await self.send(writer, 200, text[:len(text) // 2] if n % 100 == 11 else "<html>Welcome</html>")
        if self.kind == "reset" and n % 100 == 23:
            writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text[:40]}".encode())
            await writer.drain()
            return False
        self.stats["n_answered"] = self.stats.get("n_answered", 0) + 1
        return await self.send(writer, 200, text)

    async def send(self, writer, status, text, header=""):
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{header}content-length: {len(text.encode())}\r\n\r\n{text}".encode())
        await writer.drain()
        return True


def ask(base, body):
    request = urllib.request.Request(base + "/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=60).read().decode()


def mocks(real, ports, stats):
    async def run():
        for kind in KINDS:
            server = await asyncio.start_server(Mock(kind, real, stats[kind]).serve, "127.0.0.1", 0)
            ports[kind] = server.sockets[0].getsockname()[1]
        ports["ready"] = True
        await asyncio.sleep(36000)

    asyncio.run(run())


def generate(options, bases, n, folder):
    rows = [{"id": str(at), "prompt_ids": [1 + at % 500, 1 + at // 500, 7], "n": 1, "max_new_tokens": 4} for at in range(n)]
    path, out = folder / "requests.jsonl", folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = time.perf_counter()
    done = subprocess.run([options.aloe, "generate", ",".join(bases) + "#model", "--requests", str(path), "--out", str(out), "--tokenizer",
                           options.tokenizer], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(done.stderr[-3000:])
    answers = [json.loads(line) for line in open(out)]
    ids = [one["id"] for one in answers]
    lost = n - len(set(ids) & {row["id"] for row in rows})
    bad = sum("error" in one or len(one["completions"]) != 1 for one in answers)
    texts = [one["completions"][0]["text"] for one in answers if "completions" in one]
    by_mocks = [(one, text) for one, text in zip(answers, texts) if text.startswith("[")]
    mixed_up = sum(json.loads(text) != rows[int(one["id"])]["prompt_ids"] for one, text in by_mocks)
    return {"seconds": seconds, "rate": n / seconds, "lost": lost, "doubled": len(ids) - len(set(ids)), "without_answer": bad, "of_another_request": mixed_up,
            "by_mocks": len(by_mocks), "stderr_lines": len(done.stderr.splitlines())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aloe")
    parser.add_argument("tokenizer")
    parser.add_argument("port", type=int)
    parser.add_argument("--requests", type=int, default=10000)
    options = parser.parse_args()
    real = f"http://127.0.0.1:{options.port}/v1"
    manager = multiprocessing.Manager()
    ports, stats = manager.dict(), {kind: manager.dict() for kind in KINDS}
    process = multiprocessing.Process(target=mocks, args=(real, ports, stats), daemon=True)
    process.start()
    while "ready" not in ports:
        time.sleep(0.05)
    base = {kind: f"http://127.0.0.1:{ports[kind]}/v1" for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        mock_alone = generate(options, [base["plain"]], 1200, folder)["rate"]
        real_alone = generate(options, [real], 400, folder)["rate"]
        print(f"alone: a mock {mock_alone:.0f}, the real llama-server {real_alone:.0f} requests a second", flush=True)
        found = generate(options, [real] + [base[kind] for kind in KINDS[1:]], options.requests, folder)
    healthy = 3 * mock_alone + real_alone
    silent = stats["silent"]
    answered = sum(stats[kind].get("n_answered", 0) for kind in KINDS[1:])
    print(f"mix: {options.requests} requests in {found['seconds']:.1f} s; lost {found['lost']}, doubled {found['doubled']}, without an answer "
          f"{found['without_answer']}, with another request's {found['of_another_request']}")
    print(f"mix: {found['by_mocks']} answers by the mocks (they sent {answered} whole), {options.requests - found['by_mocks']} by the real server")
    print("mix: whole answers " + ", ".join(f"{kind} {stats[kind].get('n_answered', 0)}" for kind in KINDS[1:]))
    print(f"mix: the silent one was last asked {silent['last_asked'] - silent['silent_since']:.2f} s after it fell silent")
    print(f"mix: {found['rate']:.0f} requests a second, {100 * found['rate'] / healthy:.0f} % of the healthy ones' sum ({healthy:.0f})")
    process.kill()
    whole = not any(found[what] for what in ("lost", "doubled", "without_answer", "of_another_request"))
    holds = whole and silent["last_asked"] - silent["silent_since"] < 5 and found["rate"] >= 0.9 * healthy
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
