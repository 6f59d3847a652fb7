"""Golden blocks for the GGUF dequantisation: crafted random blocks of every supported type and what `gguf` makes of them.

Pinned: gguf 0.19.0, numpy; seed 20261122. Scales are random halves (never NaN) plus the edge cases zero, negative zero, smallest
and largest subnormal, largest normal; the other bytes are uniform, so that every bit position of every field is exercised.

Usage: python oracles/gguf_dequant.py > crates/aloe-model/tests/golden/gguf_dequant.json
"""

import json

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

# Type: byte offsets of the halves within a block.
HALVES = {
    T.F32: [], T.F16: [0], T.BF16: [], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
EDGES = [0x0000, 0x8000, 0x0001, 0x03FF, 0x7BFF, 0xFBFF]


def random_half(rng):
    while True:
        bits = int(rng.integers(0, 1 << 16))
        if bits & 0x7C00 != 0x7C00:
            return bits


def blocks_of(kind, rng):
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    n_blocks = 3 if block_len == 256 else 8 if block_len == 32 else 64
    data = rng.integers(0, 256, size=(n_blocks, block_bytes), dtype=np.uint8)
    for i in range(n_blocks):
        for offset in HALVES[kind]:
            bits = EDGES[i] if block_len < 256 and i < len(EDGES) else random_half(rng)
            data[i, offset:offset + 2] = [bits & 255, bits >> 8]
    if kind in (T.F32, T.BF16):
        high = data[:, block_bytes - 2:].copy().view(np.uint16)
        high[(high & 0x7F80) == 0x7F80] ^= 0x4000
        data[:, block_bytes - 2:] = high.view(np.uint8)
    return data


def main():
    rng = np.random.default_rng(20261122)
    cases = []
    for kind in HALVES:
        data = blocks_of(kind, rng)
        values = dequantize(data.reshape(1, -1), kind).astype(np.float32).reshape(-1)
        assert not np.isnan(values).any()
        cases.append({"type": kind.name, "bytes": data.tobytes().hex(), "f32_le": values.astype("<f4").tobytes().hex()})
    print(json.dumps({"source": "gguf 0.19.0, oracles/gguf_dequant.py, seed 20261122", "cases": cases}, indent=0))


if __name__ == "__main__":
    main()
