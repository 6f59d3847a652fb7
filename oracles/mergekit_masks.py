"""mergekit's DARE and DELLA with our masks in place of torch's, for crates/aloe-merge: what remains must be equal element by element.

Made with mergekit 0.1.5, torch 2.15 (CPU), transformers 5.23, numpy, Python 3.11.
Run: python oracles/mergekit_masks.py [crates/aloe-merge/tests/golden]
The masks are computed here from what the documentation of aloe-merge says of them, by code of its own: Philox 4x32-10 keyed by the first two
words of SHA-256 of "SEED/dare-mask/TENSOR/0:/MODEL" (`della-mask` for DELLA); element i looks at value i of the stream and is kept where that
lies below round(p 2^32). p is the density, or for DELLA density - epsilon + 2 epsilon rank / (n - 1), ranks being those of magnitudes in a row, of
equal ones the lower index ranking higher. `torch.bernoulli` returns this mask; where a file says `rescale_kind: density`, mergekit's rescale to
the sum of magnitudes is replaced by the division by p (mergekit until February 2025, and the papers). All else is mergekit's.
Inputs are those of mergekit_parity.py. Writes masks.json (NAME: YAML of ours) and masks.safetensors (NAME/TENSOR, three tensors of each).
"""

import hashlib
import json
import pathlib
import re
import sys
import tempfile

import mergekit_methods
import mergekit_parity as parity
import numpy as np
import torch
from mergekit import sparsify as sparsification
from mergekit.merge_methods import generalized_task_arithmetic as family
from safetensors.torch import save_file

SEED = 7
KEPT = ["model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight"]
MODELS = "models:\n- model: a\n  parameters: {weight: 0.4, density: 0.5}\n- model: b\n  parameters: {weight: [0.7, 0.3], density: 0.3}\nbase_model: base\n"
PARAMETERS = {
    "l1": "{rescale_kind: l1}",
    "density": "{rescale_kind: density, lambda: 0.8}",
    "density_normalized": "{rescale_kind: density, normalize: true}",
    "none": "{rescale: false, normalize: false, lambda: 1.25}",
}
METHODS = ["dare_ties", "dare_linear", "della", "della_linear"]


def philox(n, key):
    """The first n values of a stream: blocks 0, 1, ... of four words."""
    word = lambda values: values & np.uint64(0xFFFFFFFF)
    blocks = np.arange((n + 3) // 4, dtype=np.uint64)
    c = [word(blocks), blocks >> np.uint64(32), np.zeros_like(blocks), np.zeros_like(blocks)]
    k = [np.uint64(key[0]), np.uint64(key[1])]
    for _ in range(10):
        first, second = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(second >> np.uint64(32)) ^ c[1] ^ k[0], word(second), (first >> np.uint64(32)) ^ c[3] ^ k[1], word(first)]
        k = [word(k[0] + np.uint64(0x9E3779B9)), word(k[1] + np.uint64(0xBB67AE85))]
    return np.stack(c, axis=1).reshape(-1)[:n]


assert [hex(value) for value in philox(4, (0, 0))] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"], "Random123's known answer"


class Drawing:
    """What is drawn next: the tensor, the model, the probabilities, whether kept elements are divided by them."""

    name, models, is_divided = None, None, False
    probabilities = None

    def draw(self, delta, density, method, epsilon=0.0, **_):
        n_cols = delta.shape[-1]
        kind = "dare"
        p = np.full(delta.numel(), density)
        if method == sparsification.SparsificationMethod.della_magprune:
            kind = "della"
            rows = delta.abs().float().numpy().reshape(-1, n_cols)
            places = np.broadcast_to(-np.arange(n_cols), rows.shape)
            ranks = np.lexsort((places, rows), axis=-1).argsort(axis=-1)
            p = (density - epsilon + ranks * (2 * epsilon / (n_cols - 1))).reshape(-1)
        digest = hashlib.sha256(f"{SEED}/{kind}-mask/{self.name}/0:/{next(self.models)}".encode()).hexdigest()
        values = philox(delta.numel(), (int(digest[:8], 16), int(digest[8:16], 16)))
        self.mask = torch.from_numpy((values < np.round(p * 2.0**32)).reshape(delta.shape))
        self.probabilities = torch.from_numpy(p.astype(np.float32).reshape(delta.shape))


DRAWING = Drawing()


def patch():
    """Puts our masks and, where asked for, the division into mergekit."""
    merge_group, sparsify, rescaled = family.GeneralizedTaskArithmeticMerge.merge_group, family.sparsify, sparsification.rescaled_masked_tensor

    def named(self, group, /, **parameters):
        names = [re.search(r"([^/]+)$", str(entry.id)).group(1) for entry in group.non_base]
        assert names == ["a", "b"], names
        DRAWING.name, DRAWING.models = group.metadata.name, iter(names)
        return merge_group(self, group, **parameters)

    def drawn(delta, **settings):
        DRAWING.draw(delta, **settings)
        return sparsify(delta, **settings)

    def divided(tensor, mask, norm, **settings):
        if not DRAWING.is_divided or norm is None:
            return rescaled(tensor, mask, norm, **settings)
        return ((tensor * mask).float() / DRAWING.probabilities.reshape(tensor.shape)).to(tensor.dtype)

    family.GeneralizedTaskArithmeticMerge.merge_group = named
    family.sparsify = drawn
    sparsification.rescaled_masked_tensor = divided
    torch.bernoulli = lambda p: DRAWING.mask.reshape(p.shape).to(p.dtype)


def main(out):
    torch.set_num_threads(1)
    patch()
    kept, texts = {}, {}
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as results:
        root = pathlib.Path(scratch)
        parity.write_models(root)
        for method in METHODS:
            for rescale, parameters in PARAMETERS.items():
                for dtype in ("float32", "bfloat16"):
                    name = f"{method}.{rescale}.{dtype}"
                    texts[name] = f"{MODELS}merge_method: {method}\nparameters: {parameters}\ndtype: {dtype}\n"
                    DRAWING.is_divided = "kind: density" in parameters
                    theirs = re.sub(r"rescale_kind: \w+,? ?", "", texts[name])
                    tensors = mergekit_methods.merge(theirs, root, pathlib.Path(results) / name)
                    kept |= {f"{name}/{tensor}": tensors[tensor].clone() for tensor in KEPT}
    save_file(kept, out / "masks.safetensors", metadata={"format": "pt"})
    (out / "masks.json").write_text(json.dumps(texts, indent=1) + "\n")
    print(len(texts), "merges,", sum(value.numel() for value in kept.values()), "elements,", (out / "masks.safetensors").stat().st_size, "bytes")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "crates/aloe-merge/tests/golden"))
