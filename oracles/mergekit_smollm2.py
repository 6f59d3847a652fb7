"""mergekit against `aloe merge` on real checkpoints: SmolLM2 (dequantised) and two fine-tunes of it, every deterministic method, f32 and bf16.

Made with mergekit 0.1.5, torch 2.15 (CPU), transformers 5.23, numpy 2.4, Python 3.11, PYTHONHASHSEED=0, HF_HUB_OFFLINE=1.
Run: python oracles/mergekit_smollm2.py make MODEL.gguf | run [--full] [METHOD.DTYPE ...] | compare [--full] [METHOD.DTYPE ...]
ALOE names another binary than target/release/aloe.
Folders are kept under MERGEKIT_PARITY (default ~/.cache/aloe/mergekit-parity), none of them in the repository: the three models (f32 `master`,
bf16 `model`), the same cut to six layers and the first 8192 rows of the embedding (`cut/`), and a folder of results per run. `run` merges
what is not there yet with both programs; `compare` prints, over all tensors:
  value   largest |ours - mergekit| / max(|mergekit|, a thousandth of the tensor's rms)
  rms     largest |ours - mergekit| / max(|mergekit|, rms of the tensor)
  one, more  elements that differ by at most one rounding and by more. A rounding is one step of bfloat16 at the largest of |result|, |base|; in
          f32 it is 1e-6 of what `value` divides by, so of the element itself
  farther  of `more`, those where ours is farther than mergekit's from mergekit's own formula run in float64 (by over half a rounding)
  ties    elements that differ and of which some model's |change| equals that tensor's k-th magnitude: torch leaves open which of them it keeps
  kept    elements kept by each model: ours, mergekit's
  ours, theirs  rms distance to mergekit's formula in float64, in roundings, over the tensors with `more` (0.29 is the least in bf16)
Below a row with `ties`: the tensors that have such, with mergekit run again so that equal magnitudes are taken from the lowest index on. float64
knows no equal magnitudes and selects others, so the columns of truth say nothing there.
Below a row with `more`: the tensor that is farthest apart, its largest distance in roundings, and what is left of it when mergekit runs again
with one of torch's operations computed in float64 and rounded once, so that the operation that loses the digits is named.
The last line of a run says whether it holds, tensor by tensor: ours equals mergekit's to the bound (one rounding of bfloat16; in f32 1e-6 of the value,
or of the tensor's rms where it is smaller), with `ties` to its run with the lowest index first, and to the
other one where no magnitude is a tie (but for sce, whose weights are sums over all selected elements); or ours is
within the bound of mergekit's formula in float64 (in bf16 half a step, as a single rounding gives) and mergekit's own result is not; or ours is
within the bound of mergekit with its sums, norms and angles in float64 and mergekit's own result is not. Otherwise, and where kept counts differ, it
FAILS and the exit code is 1.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(os.environ.get("MERGEKIT_PARITY", pathlib.Path.home() / ".cache/aloe/mergekit-parity"))
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
ALOE = pathlib.Path(os.environ.get("ALOE", REPOSITORY / "target/release/aloe"))
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
OPERATIONS = ["vector_norm", "sum", "mean", "var", "dot", "acos", "arccos", "sin", "__rtruediv__"]
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
        # What another binary merged says nothing of this one.
        made_by, binary = place / "ours.sha256", hashlib.sha256(ALOE.read_bytes()).hexdigest()
        if not (place / "ours").exists() or not made_by.exists() or made_by.read_text() != binary:
            shutil.rmtree(place / "ours", ignore_errors=True)
            made_by.unlink(missing_ok=True)
            (place / "merge.yml").write_text(yaml.safe_dump(settings))
            started = time.time()
            subprocess.run([ALOE, "merge", place / "merge.yml", place / "ours", "--threads", "1"], check=True, capture_output=True)
            made_by.write_text(binary)
            print(f"{run}: ours {time.time() - started:.0f} s", flush=True)


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
    for entry, delta in zip(settings["models"], deltas):
        target = int(entry["parameters"].get("density", 1.0) * n)
        n_top = min(int(0.05 * n), n - target) if method.startswith("breadcrumbs") else 0
        for k in [n_top, n_top + target] if n_top else [max(1, target)]:
            found |= delta.abs().float() == kth(delta, k)
    return found


def planned(settings):
    """mergekit's own task per output tensor, with the parameters it resolved: run on other numbers, it is the same formula."""
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import _model_out_config
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner

    config, options = MergeConfiguration.model_validate(settings), MergeOptions(lazy_unpickle=True)
    architecture = get_architecture_info(config, options)
    LoaderCache().setup(options=options)
    planner = MergePlanner(config, architecture, options, _model_out_config(config, architecture))
    return {save.tensor_name: save.tensor_task for save in planner.plan_to_disk("") if hasattr(save, "tensor_name")}


def formula(task, inputs, dtype):
    """What mergekit computes of one tensor from the inputs, read in `dtype`."""
    tensors = {}
    for model, weight in task.gather_tensors.weight_info.items():
        tensors[model] = inputs[model.model.path][weight.name]().to(dtype)
    return task.execute(tensors=tensors)


@contextlib.contextmanager
def replaced(functions):
    """Within, functions of torch are others: (place, name) to what takes the function's place, made from it."""
    kept = {(place, name): getattr(place, name) for place, name in functions}
    try:
        for (place, name), function in kept.items():
            setattr(place, name, functions[place, name](function))
        yield
    finally:
        for (place, name), function in kept.items():
            setattr(place, name, function)


def in_float64(operations):
    """These operations of torch compute in float64 and round their result to the dtype of their first operand."""
    import torch

    def wide(function):
        def call(*operands, **rest):
            if not operands[0].is_floating_point():
                return function(*operands, **rest)
            # A plain number counts as torch takes it, in float32.
            is_number = [isinstance(operand, (float, torch.Tensor)) for operand in operands]
            as_double = [torch.as_tensor(x).double() if is_wide else x for x, is_wide in zip(operands, is_number)]
            return function(*as_double, **rest).to(operands[0].dtype)

        return call

    places = {"vector_norm": [torch.linalg], "__rtruediv__": [torch.Tensor]}
    return replaced({(place, name): wide for name in operations for place in places.get(name, [torch, torch.Tensor])})


def lowest_index_first():
    """Sorts and selections take equal values from the lowest index on, which torch leaves open."""
    import torch

    def order(values, descending):
        down = sort(values, descending=True, stable=True)
        return down if descending else type(down)((down.values.flip(0), down.indices.flip(0)))

    sort = torch.sort
    topk = lambda values, k, largest: torch.return_types.topk([part[:k] for part in order(values, True)])
    functions = {"sort": order, "argsort": lambda values, descending: order(values, descending).indices, "topk": topk}
    return replaced({(torch, name): (lambda _, function=function: function) for name, function in functions.items()})


def causes(task, inputs, dtype, ours, measure):
    """How far ours is from mergekit with one operation after the other in float64, those of any effect, and with all of them."""
    import torch

    before = measure(ours, formula(task, inputs, dtype))
    found = []
    for operations in [[name] for name in OPERATIONS] + [OPERATIONS]:
        with in_float64(operations):
            after = measure(ours, formula(task, inputs, dtype))
        if after < 0.8 * before or len(operations) > 1:
            found.append(f"{operations[0] if len(operations) == 1 else 'all'} {after:.2g}")
    in_float64_all = measure(ours, formula(task, inputs, torch.float64).to(dtype))
    return f"{before:.2g}; in float64 " + ", ".join(found) + (f"; every step in float64 {in_float64_all:.2g}" if dtype == torch.bfloat16 else "")


def one_rounding(dtype, result, *others):
    """How far apart two values may be per element: a step of bfloat16 at the largest of all that are given; in f32 1e-6 of the result."""
    import torch

    size = result.double().square().mean().sqrt()
    if dtype == "f32":
        return 1e-6 * result.double().abs().maximum(size / 1000)
    largest = functools.reduce(torch.maximum, [value.double().abs() for value in (result, *others)]).clamp(min=1e-30)
    return 2.0 ** (largest.log2().floor() - 7)


class Row:
    """What is counted over the tensors of one run."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.n = self.differ = self.one = self.more = self.farther = self.ties = 0
        self.value = self.rms = self.most = 0.0
        self.squares, self.n_judged = [0.0, 0.0], 0
        self.worst = None

    def add(self, name, ours, theirs, base, is_tie, exact):
        """One tensor, in float64; `exact` gives its float64 values where they are asked for."""
        apart = (ours - theirs).abs()
        size = theirs.square().mean().sqrt()
        self.n += ours.numel()
        self.differ += int((apart > 0).sum())
        self.ties += int((is_tie & (apart > 0)).sum())
        apart[is_tie] = 0
        self.value = max(self.value, (apart / theirs.abs().maximum(size / 1000)).max().item())
        self.rms = max(self.rms, (apart / theirs.abs().maximum(size)).max().item())
        rounding = one_rounding(self.dtype, theirs, ours, base)
        steps = apart / rounding
        n_more = int((steps > 1).sum())
        self.more += n_more
        self.one += int(((steps > 0) & (steps <= 1)).sum()) if self.dtype == "bf16" else 0
        if n_more and steps.max().item() > self.most:
            self.most, self.worst = steps.max().item(), name
        if not n_more:
            return
        rounding = rounding.maximum(one_rounding(self.dtype, exact()))
        errors = [(result - exact()).abs() for result in (ours, theirs)]
        self.farther += int(((steps > 1) & (errors[0] > errors[1] + rounding / 2)).sum())
        for index, error in enumerate(errors):
            error = (error / rounding)[~is_tie]
            self.squares[index] += error.square().sum().item()
        self.n_judged += int((~is_tie).sum())

    def line(self, run):
        truth = [f"{(square / self.n_judged) ** 0.5:.3f}" for square in self.squares] if self.n_judged else ["", ""]
        numbers = f"{self.n:>10} {self.value:8.1e} {self.rms:8.1e} {self.differ:>9} {self.one:>9} {self.more:>8} {self.farther:>8}"
        return f"{run:22} {numbers} {self.ties:>7} {truth[0]:>7} {truth[1]:>7}"


class Verdict:
    """How many tensors of a run hold, and by what."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.n_equal = self.n_exact = self.n_wide = 0
        self.failed, self.most, self.most_wide = [], [0.0, 0.0], [0.0, 0.0]

    def bounds(self, one, other, base):
        """The largest distance in units of what is allowed."""
        if self.dtype == "bf16":
            allowed = one_rounding(self.dtype, other, one, base)
        else:
            allowed = 1e-6 * other.abs().maximum(other.square().mean().sqrt()).clamp(min=1e-30)
        return ((one - other).abs() / allowed).max().item()

    def add(self, name, ours, theirs, untied, base, exact, wide):
        """One tensor, in float64: mergekit's result with the lowest index first, and as it was but for ours at ties; `exact` and `wide` give its formula
        in float64, and with its sums in float64."""
        if self.bounds(ours, theirs, base) <= 1 and self.bounds(ours, untied, base) <= 1:
            self.n_equal += 1
            return
        distances = [self.bounds(result, exact(), base) for result in (ours, theirs)]
        if distances[0] <= (0.501 if self.dtype == "bf16" else 1) and distances[1] > 1:
            self.n_exact += 1
            self.most = [max(pair) for pair in zip(self.most, distances)]
            return
        distances = [self.bounds(result, wide(), base) for result in (ours, theirs)]
        if distances[0] <= 1 < distances[1]:
            self.n_wide += 1
            self.most_wide = [max(pair) for pair in zip(self.most_wide, distances)]
        else:
            self.failed.append(name)

    def line(self):
        parts = [f"{self.n_equal} tensors within the bound of mergekit"]
        if self.n_exact:
            most = f"ours {self.most[0]:.2f}, mergekit {self.most[1]:.3g} bounds at most"
            parts.append(f"{self.n_exact} in which mergekit is farther than that from its formula in float64 and ours is not ({most})")
        if self.n_wide:
            most = f"ours {self.most_wide[0]:.2f}, mergekit {self.most_wide[1]:.3g} bounds at most"
            parts.append(f"{self.n_wide} in which mergekit is farther than that from itself with its sums in float64 and ours is not ({most})")
        if self.failed:
            parts.append(f"FAILS in {len(self.failed)}: {', '.join(self.failed[:3])}")
        return "    " + "; ".join(parts)


def compare_run(run, is_full):
    import torch

    method, dtype = run.split(".")
    kind = getattr(torch, DTYPES[dtype])
    place = ROOT / ("full" if is_full else "results") / run
    settings = settings_of(run, is_full)
    tasks = planned(settings)
    names = folders(is_full, dtype)
    inputs = {str(folder): tensors_of(folder) for folder in names.values()}
    theirs, ours = tensors_of(place / "mergekit"), tensors_of(place / "ours")
    assert theirs.keys() == ours.keys(), theirs.keys() ^ ours.keys()
    row, ordered, verdict = Row(dtype), Row(dtype), Verdict(dtype)
    for name in theirs:
        assert ours[name]().dtype == theirs[name]().dtype == kind
        base, *models = (inputs[str(names[model])][name]().to(kind) for model in ("base", "medical", "general"))
        is_tie = at_threshold(method, settings, [model - base for model in models])
        exact = functools.cache(lambda name=name: formula(tasks[name], inputs, torch.float64))
        again, n_ties = theirs[name]().double(), row.ties
        row.add(name, ours[name]().double(), theirs[name]().double(), base, is_tie, exact)
        if row.ties > n_ties:
            with lowest_index_first():
                again = formula(tasks[name], inputs, kind).double()
            ordered.add(name, ours[name]().double(), again, base, torch.zeros_like(is_tie), exact)

        def wide(name=name, is_ordered=row.ties > n_ties):
            with lowest_index_first() if is_ordered else contextlib.nullcontext(), in_float64(OPERATIONS):
                return formula(tasks[name], inputs, kind).double()

        merged = ours[name]().double()
        # sce weighs the models by all their selected elements: which of the tied ones are selected moves the others too.
        is_apart = row.ties > n_ties and not method.startswith("sce")
        untied = torch.where(is_tie, merged, theirs[name]().double()) if is_apart else again
        verdict.add(name, merged, again, untied, base.double(), exact, wide)
    kept = kept_counts(place)
    print(row.line(run), kept, flush=True)
    if row.ties:
        print(ordered.line("    lowest index first"), flush=True)
    judged, order = (ordered, lowest_index_first) if row.ties else (row, contextlib.nullcontext)
    if judged.worst:
        base = inputs[str(names["base"])][judged.worst]().to(kind)

        def distance(ours, theirs):
            return ((ours.double() - theirs.double()).abs() / one_rounding(dtype, theirs, ours, base)).max().item()

        with order():
            print(f"    {judged.worst}: {causes(tasks[judged.worst], inputs, kind, ours[judged.worst](), distance)}", flush=True)
    print(verdict.line(), flush=True)
    return not verdict.failed and "DIFFER" not in kept


def compare(runs, is_full):
    import torch

    torch.set_num_threads(1)
    columns = f"{'elements':>10} {'value':>8} {'rms':>8} {'differ':>9} {'one':>9} {'more':>8} {'farther':>8} {'ties':>7} {'ours':>7} {'theirs':>7}"
    print(f"{'run':22} {columns}  kept")
    failed = [run for run in runs if not compare_run(run, is_full)]
    if failed:
        sys.exit(f"{len(failed)} of {len(runs)} runs FAIL: {', '.join(failed)}")


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
