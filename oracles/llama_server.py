"""A real llama-server on a GGUF file, to drive `aloe eval`, `aloe redteam` and `aloe bench` against it.

Pinned: python 3.11, xllamacpp 2026.10.11549 (llama.cpp's server in a wheel). No seed: the requests carry theirs.
Run: python oracles/llama_server.py MODEL.gguf [PORT] [SLOTS] [CONTEXT] [last|mean]; with a pooling it embeds and does nothing else.
Then: aloe redteam ... --set judge='"http://127.0.0.1:PORT/v1#judge"'
"""

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
params.cpuparams.n_threads = 2
params.cpuparams_batch.n_threads = 2
if pooling:
    params.embedding = True
    kinds = xllamacpp.llama_pooling_type
    params.pooling_type = kinds.LLAMA_POOLING_TYPE_LAST if pooling == "last" else kinds.LLAMA_POOLING_TYPE_MEAN
server = xllamacpp.Server(params)
print(f"listening: {server.listening_address}", flush=True)
while True:
    time.sleep(3600)
