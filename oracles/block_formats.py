"""Golden blocks for aloe-tensor: random blocks of each GGUF format and what the `gguf` package dequantises them to.

Run: python oracles/block_formats.py crates/aloe-tensor/tests/golden/blocks.bin
Versions: gguf 0.19.0, numpy 2.x; seed 11. For each format in the order below: 4 rows of 256 elements as stored bytes, then the same
as little-endian f32. At the end 2 rows of 256 random f32 and their Q8_0 bytes as `gguf.quants.quantize` makes them.
"""
import sys

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

FORMATS = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q4_K, T.Q5_K, T.Q6_K]
# Byte offsets of the half-precision numbers in a block: they get finite values, the rest any bytes.
HALVES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
ROWS, K = 4, 256

rng = np.random.default_rng(11)
with open(sys.argv[1], "wb") as out:
    for t in FORMATS:
        elements, size = __import__("gguf").GGML_QUANT_SIZES[t]
        raw = rng.integers(0, 256, (ROWS, K // elements, size), dtype=np.uint8)
        for at in HALVES[t]:
            d = (rng.standard_normal((ROWS, K // elements)) * 0.02).astype(np.float16)
            raw[:, :, at : at + 2] = d.view(np.uint8).reshape(ROWS, K // elements, 2)
        raw = raw.reshape(ROWS, -1)
        values = quants.dequantize(raw, t).astype("<f4")
        assert values.shape == (ROWS, K) and np.isfinite(values).all()
        out.write(raw.tobytes())
        out.write(values.tobytes())
    x = (rng.standard_normal((2, K)) * 0.05).astype("<f4")
    out.write(x.tobytes())
    out.write(quants.quantize(x, T.Q8_0).tobytes())
