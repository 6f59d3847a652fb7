#!/usr/bin/env python3
"""Writes a GGUF file's tensors as f32, its metadata kept: llama.cpp then computes with the values that the blocks stand for, without
rounding activations to 8 bits.

Pinned: python 3.11, gguf 0.19.0, numpy. No seeds.
Run: python oracles/gguf_to_f32.py IN.gguf OUT.gguf
"""

import sys

import gguf
import numpy as np
from gguf.quants import dequantize


def main():
    source, target = sys.argv[1:]
    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name == gguf.Keys.General.ARCHITECTURE or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        value = 0 if field.name == gguf.Keys.General.FILE_TYPE else field.contents()
        writer.add_key_value(field.name, value, kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
