"""mergekit against `aloe merge` on real checkpoints: SmolLM2 (dequantised) and two fine-tunes of it, every deterministic method, f32 and bf16.

Made with mergekit 0.1.5, torch 2.15 (CPU), transformers 5.23, numpy 2.4, Python 3.11, PYTHONHASHSEED=0, HF_HUB_OFFLINE=1.
Run: python oracles/mergekit_smollm2.py make MODEL.gguf | run [--full] [METHOD.DTYPE ...] | compare [--full] [METHOD.DTYPE ...]
Folders are kept under MERGEKIT_PARITY (default ~/.cache/aloe/mergekit-parity), none of them in the repository: the three models (f32 `master`,
bf16 `model`), the same cut to six layers and the first 8192 rows of the embedding (`cut/`), and a folder of results per run. `run` merges
what is not there yet with both programs; `compare` prints, over all tensors:
  value   largest |ours - mergekit| / |mergekit|, of elements above a thousandth of their tensor's rms
  rms     largest |ours - mergekit| / max(|mergekit|, rms of the tensor), of all elements
  one, more  bf16: elements that differ by one rounding and by more. A rounding is one step of bfloat16 at the largest of |result|, |base|
  ties    elements that differ and of which some model's |change| equals that tensor's k-th magnitude: torch leaves open which of them it keeps
  kept    elements kept by each model: ours, mergekit's
  truth   distance to the same formula in float64, ours and mergekit's: in bf16 the rms over all elements in roundings (0.29 is the least that
          rounding allows), in f32 the largest of the column `rms`, over the tensors where that exceeds 1e-6
"""

import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(os.environ.get("MERGEKIT_PARITY", pathlib.Path.home() / ".cache/aloe/mergekit-parity"))
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
ALOE = REPOSITORY / "target/release/aloe"
LAYERS, ROWS = 6, 8192
DTYPES = {"f32": "float32", "bf16": "bfloat16"}
TWO = "models:\n- model: medical\n  parameters: {weight: 0.4}\n- model: general\n  parameters: {weight: 0.8}\n"
DENSE = TWO.replace("0.4", "0.4, density: 0.5").replace("0.8", "[0.7, 0.3], density: 0.3")
PAIR = "models: [{model: base}, {model: medical}]\nbase_model: base\n"
OVER = "base_model: base\n"
METHODS = {
    "linear": TWO + "merge_method: linear\n",
    "slerp": PAIR + "merge_method: slerp\nparameters: {t: [0.1, 0.9]}\n",
    "nuslerp": TWO + OVER + "merge_method: nuslerp\n",
    "nuslerp_free": TWO + "merge_method: nuslerp\n",
    "nuslerp_rows": TWO + OVER + "merge_method: nuslerp\nparameters: {nuslerp_flatten: false}\n",
    "nuslerp_columns": TWO + OVER + "merge_method: nuslerp\nparameters: {nuslerp_flatten: false, nuslerp_row_wise: true}\n",
    "multislerp": TWO + OVER + "merge_method: multislerp\n",
    "multislerp_free": TWO + "merge_method: multislerp\n",
    "karcher": "models: [{model: base}, {model: medical}, {model: general}]\nmerge_method: karcher\n",
    "passthrough": "models: [{model: medical, parameters: {scale: 0.7}}]\nmerge_method: passthrough\n",
    "nearswap": PAIR + "merge_method: nearswap\nparameters: {t: 0.0005}\n",
    "model_stock": TWO + OVER + "merge_method: model_stock\n",
    "model_stock_rows": TWO + OVER + "merge_method: model_stock\nparameters: {filter_wise: true}\n",
    "sce": TWO + OVER + "merge_method: sce\nparameters: {select_topk: 0.6}\n",
    "sce_all": TWO + OVER + "merge_method: sce\n",
    "task_arithmetic": TWO + OVER + "merge_method: task_arithmetic\nparameters: {lambda: 0.9, normalize: true}\n",
    "ties": DENSE + OVER + "merge_method: ties\n",
    "ties_rescaled": DENSE + OVER + "merge_method: ties\nparameters: {rescale: true}\n",
    "dare_ties": TWO + OVER + "merge_method: dare_ties\n",
    "dare_linear": TWO + OVER + "merge_method: dare_linear\n",
    "breadcrumbs": DENSE + OVER + "merge_method: breadcrumbs\nparameters: {gamma: 0.05}\n",
    "breadcrumbs_ties": DENSE + OVER + "merge_method: breadcrumbs_ties\nparameters: {gamma: 0.05}\n",
    "della": TWO + OVER + "merge_method: della\n",
    "della_linear": TWO + OVER + "merge_method: della_linear\n",
}
FULL = ["linear.f32", "ties.f32", "ties.bf16", "dare_ties.bf16"]


def messages(row):
    if "conversations" in row:
        turns = [({"human": "user", "gpt": "assistant"}[turn["from"]], turn["value"]) for turn in row["conversations"]]
    else:
        turns = [("user", "\n".join(filter(None, (row["instruction"], row["input"])))), ("assistant", row["output"])]
    return [{"role": role, "content": content} for role, content in turns]


def make(gguf):
    """The base from its GGUF file, and two short fine-tunes at a large learning rate: every tensor moves, the tied embedding's rows too."""
    ROOT.mkdir(parents=True, exist_ok=True)
    base = ROOT / "smollm2"
    if not base.exists():
        subprocess.run([ALOE, "pull", gguf, "--out", base], check=True)
    for name in ("medical", "general"):
        out = ROOT / name
        if out.exists():
            continue
        data = ROOT / f"{name}.jsonl"
        rows = [json.loads(line) for line in (REPOSITORY / f"starter/sft/{name}.jsonl").read_text().splitlines()]
        data.write_text("".join(json.dumps({"messages": messages(row)}) + "\n" for row in rows))
        settings = {"max_steps": 4, "epochs": 1, "max_len": 128, "batch_size": 2, "lr": 1e-3, "seed": len(name)}
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        subprocess.run([ALOE, "sft", "--model", base, "--data", data, "--out", out, "--dtype", "bf16", *sets], check=True)
    for dtype, folder in (("f32", "master"), ("bf16", "model")):
        cut(base, ROOT / "cut" / dtype / "base")
        for name in ("medical", "general"):
            cut(ROOT / name / folder, ROOT / "cut" / dtype / name)


def cut(source, target):
    """The first layers of a folder and the first rows of its embedding, in the file's own dtype, without tokenizer."""
    from safetensors.torch import save_file

    if target.exists():
        return
    settings = json.loads((source / "config.json").read_text()) | {"num_hidden_layers": LAYERS, "vocab_size": ROWS}
    tensors = {}
    for name, tensor in tensors_of(source).items():
        parts = name.split(".")
        if "layers" not in parts or int(parts[parts.index("layers") + 1]) < LAYERS:
            tensors[name] = tensor()[:ROWS].clone()
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps(settings))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def tensors_of(folder):
    """Name to a function that reads the tensor."""
    from safetensors import safe_open

    found = {}
    for shard in sorted(folder.glob("*.safetensors")):
        file = safe_open(shard, "pt")
        found |= {name: (lambda file=file, name=name: file.get_tensor(name)) for name in file.keys()}
    return found


def folders(is_full, dtype):
    if is_full:
        part = {"f32": "master", "bf16": "model"}[dtype]
        return {"base": ROOT / "smollm2", "medical": ROOT / "medical" / part, "general": ROOT / "general" / part}
    return {name: ROOT / "cut" / dtype / name for name in ("base", "medical", "general")}


def settings_of(run, is_full):
    import yaml

    method, dtype = run.split(".")
    models = folders(is_full, dtype)

    def absolute(value):
        if isinstance(value, dict):
            return {key: absolute(item) for key, item in value.items()}
        if isinstance(value, list):
            return [absolute(item) for item in value]
        return str(models[value]) if value in models else value

    return absolute(yaml.safe_load(METHODS[method]) | {"dtype": DTYPES[dtype]})


def merge_both(runs, is_full):
    import time

    import torch
    import yaml
    from mergekit import sparsify
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    assert os.environ.get("PYTHONHASHSEED") == "0" and importlib.metadata.version("mergekit") == "0.1.5"
    torch.set_num_threads(1)
    kept = []
    masked = sparsify.rescaled_masked_tensor

    def counted(tensor, mask, *rest):
        kept.append((tensor.numel(), int((mask != 0).sum())))
        return masked(tensor, mask, *rest)

    sparsify.rescaled_masked_tensor = counted
    for run in runs:
        place = ROOT / ("full" if is_full else "results") / run
        settings = settings_of(run, is_full)
        if not (place / "mergekit/kept.json").exists():
            shutil.rmtree(place / "mergekit", ignore_errors=True)
            kept.clear()
            started = time.time()
            options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False, lazy_unpickle=True)
            run_merge(MergeConfiguration.model_validate(settings), str(place / "mergekit"), options)
            (place / "mergekit/kept.json").write_text(json.dumps(kept))
            print(f"{run}: mergekit {time.time() - started:.0f} s", flush=True)
        if not (place / "ours").exists():
            (place / "merge.yml").write_text(yaml.safe_dump(settings))
            started = time.time()
            subprocess.run([ALOE, "merge", place / "merge.yml", place / "ours", "--threads", "1"], check=True, capture_output=True)
            print(f"{run}: ours {time.time() - started:.0f} s", flush=True)


def density_of(model, settings):
    return next(entry for entry in settings["models"] if entry["model"].endswith(model))["parameters"].get("density", 1.0)


def kth(values, k):
    """The k-th largest magnitude; nothing above the first."""
    import torch

    flat = values.abs().flatten().float()
    return float("nan") if k == 0 else torch.kthvalue(flat, flat.numel() - k + 1).values.item()


def at_threshold(method, settings, deltas):
    """Elements of which some model's |change| (for sce: the variance) equals the magnitude where the trim cuts, from the inputs alone."""
    import torch

    n = deltas[0].numel()
    found = torch.zeros(deltas[0].shape, dtype=torch.bool)
    if method == "sce":
        variance = torch.var(torch.stack(deltas), dim=0, unbiased=False)
        return variance == kth(variance, int(torch.count_nonzero(variance) * 0.6))
    if not method.startswith(("ties", "breadcrumbs")):
        return found
    for model, delta in zip(("medical", "general"), deltas):
        target = int(density_of(model, settings) * n)
        n_top = min(int(0.05 * n), n - target) if method.startswith("breadcrumbs") else 0
        for k in [n_top, n_top + target] if n_top else [max(1, target)]:
            found |= delta.abs().float() == kth(delta, k)
    return found


def truth(method, base, models):
    """The formula in float64 on the stored inputs, for the methods whose rounding differs."""
    import torch

    b, xs = base.double(), [model.double() for model in models]
    if method == "karcher":
        xs = [b, *xs]
        norms = [x.norm() for x in xs]
        units = [x / norm for x, norm in zip(xs, norms)]
        mean = sum(units) / len(units)
        mean /= mean.norm()
        for _ in range(10):
            tangent = torch.zeros_like(mean)
            for unit in units:
                cosine = (mean * unit).sum().clamp(-1, 1)
                theta = torch.arccos(cosine)
                if theta >= 1e-5:
                    tangent += theta / theta.sin() * (unit - cosine * mean) / len(units)
            step = tangent.norm()
            if step < 1e-5:
                break
            mean = step.cos() * mean + step.sin() * tangent / step
            mean /= mean.norm()
        return sum(norms) / len(norms) * mean
    is_free = method.endswith("_free")
    origin = torch.zeros_like(b) if is_free else b
    xs = [x - origin for x in xs]
    if method.startswith("multislerp"):
        weights = [0.4 / 1.2, 0.8 / 1.2]
        norms = [x.norm() for x in xs]
        units = [x / norm for x, norm in zip(xs, norms)]
        mean = sum(w * u for w, u in zip(weights, units))
        mean /= mean.norm()
        tangent = sum(w * (u - (u * mean).sum() * mean) for w, u in zip(weights, units))
        step = tangent.norm()
        return origin + sum(w * n for w, n in zip(weights, norms)) * (mean * step.cos() + tangent * (step.sin() / step))
    if method.startswith("nuslerp"):
        if method.endswith("_rows"):
            dims = -1
        elif method.endswith("_columns"):
            dims = 0
        else:
            dims = None
        norm = lambda x: x.norm() if dims is None else x.norm(dim=dims, keepdim=True)
        unit = [x / norm(x).clamp(min=1e-7) for x in xs]
        product = unit[0] * unit[1]
        cosine = (product.sum() if dims is None else product.sum(dim=dims, keepdim=True)).clamp(-1, 1)
        theta, part = torch.arccos(cosine), 0.8 / 1.2
        arc = (((1 - part) * theta).sin() * xs[0] + (part * theta).sin() * xs[1]) / theta.sin()
        return origin + torch.where(1 - cosine**2 <= 1e-16, (1 - part) * xs[0] + part * xs[1], arc)
    if method.startswith("model_stock"):
        rows = (lambda x: x.sum(dim=-1, keepdim=True)) if method.endswith("_rows") else (lambda x: x.sum())
        scale = (rows(xs[0] ** 2) * rows(xs[1] ** 2)).sqrt().clamp(min=1e-6)
        cosine = (rows(xs[0] * xs[1]) / scale).clamp(-1, 1)
        place = 2 * cosine / (1 + cosine)
        return b + place * (xs[0] + xs[1]) / 2
    if method == "sce_all":
        weights = [(x**2).mean() for x in xs]
        total = sum(weights)
        weights = [w / total if total > 1e-6 else total * 0 + 0.5 for w in weights]
        vote = sum(xs) >= 0
        agree = [(x != 0) & ((x > 0) == vote) for x in xs]
        divisor = sum(w * a for w, a in zip(weights, agree)).clamp(min=1e-6)
        return b + sum(w * x * a for w, x, a in zip(weights, xs, agree)) / divisor
    return None


def compare(runs, is_full):
    import torch

    torch.set_num_threads(1)
    print(f"{'run':24} {'elements':>10} {'value':>8} {'rms':>8} {'differ':>9} {'one':>9} {'more':>7} {'ties':>7}  kept, truth")
    for run in runs:
        method, dtype = run.split(".")
        place = ROOT / ("full" if is_full else "results") / run
        settings = settings_of(run, is_full)
        inputs = {name: tensors_of(folder) for name, folder in folders(is_full, dtype).items()}
        theirs, ours = tensors_of(place / "mergekit"), tensors_of(place / "ours")
        assert theirs.keys() == ours.keys(), theirs.keys() ^ ours.keys()
        counts = {"n": 0, "differ": 0, "one": 0, "more": 0, "ties": 0}
        value = rms = 0.0
        far, exceeding = [0.0, 0.0, 0], [0.0, 0.0]
        worst = ""
        for name in theirs:
            a, b = ours[name]().double(), theirs[name]().double()
            assert ours[name]().dtype == theirs[name]().dtype == getattr(torch, DTYPES[dtype])
            counts["n"] += a.numel()
            apart = (a - b).abs()
            size = b.square().mean().sqrt()
            counts["differ"] += int((apart > 0).sum())
            base, *models = (inputs[model][name]().to(getattr(torch, DTYPES[dtype])) for model in ("base", "medical", "general"))
            ties = at_threshold(method, settings, [model - base for model in models]) & (apart > 0)
            counts["ties"] += int(ties.sum())
            apart[ties] = 0
            large = b.abs() >= size / 1000
            unit = torch.maximum(b.abs(), size)
            here = (apart / unit).max().item()
            if dtype == "f32" and here > 1e-6 and (exact := truth(method, base, models)) is not None:
                for index, result in enumerate((a, b)):
                    exceeding[index] = max(exceeding[index], ((result - exact).abs() / unit).max().item())
            if here > rms:
                rms, worst = here, name
            if large.any():
                value = max(value, (apart[large] / b.abs()[large]).max().item())
            largest = torch.maximum(torch.maximum(a.abs(), b.abs()), base.double().abs()).clamp(min=1e-30)
            step = 2.0 ** (largest.log2().floor() - 7)
            if dtype == "bf16":
                steps = apart / step
                counts["one"] += int(((steps > 0) & (steps <= 1)).sum())
                counts["more"] += int((steps > 1).sum())
                if (exact := truth(method, base, models)) is not None:
                    for index, result in enumerate((a, b)):
                        far[index] += ((result - exact) / step).square().sum().item()
                    far[2] += a.numel()
        note = kept_counts(place) + (f" truth {(far[0] / far[2]) ** 0.5:.3f} {(far[1] / far[2]) ** 0.5:.3f}" if far[2] else "")
        note += f" truth {exceeding[0]:.1e} {exceeding[1]:.1e}" if exceeding[1] else ""
        print(
            f"{run:24} {counts['n']:>10} {value:8.1e} {rms:8.1e} {counts['differ']:>9} {counts['one']:>9} {counts['more']:>7} "
            f"{counts['ties']:>7}  {note} {worst if rms > 1e-6 and dtype == 'f32' else ''}",
            flush=True,
        )


def kept_counts(place):
    report = json.loads((place / "ours/merge.json").read_text())
    theirs = json.loads((place / "mergekit/kept.json").read_text())
    if not theirs:
        return ""
    # mergekit's order of tensors is its own: compare as multisets of (elements, kept).
    ours = [(tensor["n_elements"], n) for tensor in report["tensors"] for n in tensor["n_kept"]]
    same = sorted(ours) == sorted(map(tuple, theirs))
    return f"kept {sum(n for _, n in ours)} {sum(n for _, n in theirs)} {'equal per tensor' if same else 'DIFFER'}"


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    is_full = "--full" in rest
    runs = [word for word in rest if not word.startswith("-")]
    every = FULL if is_full else [f"{method}.{dtype}" for method in METHODS for dtype in DTYPES]
    if command == "make":
        make(runs[0])
    elif command == "run":
        merge_both(runs or every, is_full)
    else:
        compare(runs or every, is_full)
