"""A real llama-server on a GGUF file, to drive `aloe eval`, `aloe redteam` and `aloe bench` against it.

Pinned: python 3.11, xllamacpp 2026.10.11549 (llama.cpp's server in a wheel). No seed: the requests carry theirs.
Run: python oracles/llama_server.py MODEL.gguf [PORT] [SLOTS] [CONTEXT] [last|mean]; with a pooling it embeds and does nothing else.
LLAMA_THREADS: 2 unless said; threads of llama.cpp wait by turning, which on a machine that is not idle costs minutes.
Then: aloe redteam ... --set judge='"http://127.0.0.1:PORT/v1#judge"'
"""

import os
import sys
import time

import xllamacpp

model, port, slots, context, pooling = (sys.argv[1:] + ["8080", "4", "8192", ""][len(sys.argv) - 2 :])[:5]
params = xllamacpp.CommonParams()
params.model.path = model
params.hostnames = ["127.0.0.1"]
params.model_alias = {"model"}
params.port = int(port)
params.n_parallel = int(slots)
params.n_ctx = int(context)
n_threads = int(os.environ.get("LLAMA_THREADS", "2"))
params.cpuparams.n_threads = n_threads
params.cpuparams_batch.n_threads = n_threads
if pooling:
    params.embedding = True
    kinds = xllamacpp.llama_pooling_type
    params.pooling_type = kinds.LLAMA_POOLING_TYPE_LAST if pooling == "last" else kinds.LLAMA_POOLING_TYPE_MEAN
server = xllamacpp.Server(params)
print(f"listening: {server.listening_address}", flush=True)
while True:
    time.sleep(3600)
