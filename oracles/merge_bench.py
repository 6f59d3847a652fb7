"""Speed and memory of `aloe merge` beside `mergekit-yaml`: three seeded checkpoints of a given size, then the same merges by both in turn.

Made for mergekit 0.1.5, torch 2.15 (CPU), numpy, safetensors, Python 3.11.
Run: python oracles/merge_bench.py make CACHE [--gb 3] [--models 3] [--quick]
                                           writes CACHE/{base,a,b} once, each of that size in bfloat16, in shards of 1 GB; --quick repeats a
                                           block of numbers (for disks and memory, where values do not matter)
     python oracles/merge_bench.py run CACHE ALOE OUT [--rounds 5] [--methods dare_ties,linear,slerp]
     python oracles/merge_bench.py disk CACHE ALOE OUT [--rounds 5] [--method dare_ties]
     python oracles/merge_bench.py limit CACHE ALOE OUT --mb 512 [--method dare_ties] [--cold]
`run` takes turns with a warm page cache and prints seconds, peak memory (VmHWM of the process) and GB/s of bytes read and written; OUT on
tmpfs leaves the disk out. Ours runs twice a round: with an empty ALOE_HOME, where it hashes its inputs for the record, and again, where
they are known files. `disk` takes turns with dd from a cold cache (as root): dd reads every input file and writes and syncs as many bytes as
a merge writes. `limit` runs ours in a memory cgroup of that size (version 1 or 2, as root), swap off, and prints what it came to.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np

BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}


def shapes(config):
    d, f, kv = config["hidden_size"], config["intermediate_size"], config["num_key_value_heads"] * config["head_dim"]
    yield "model.embed_tokens.weight", (config["vocab_size"], d)
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        yield p + "self_attn.q_proj.weight", (d, d)
        yield p + "self_attn.k_proj.weight", (kv, d)
        yield p + "self_attn.v_proj.weight", (kv, d)
        yield p + "self_attn.o_proj.weight", (d, d)
        yield p + "mlp.gate_proj.weight", (f, d)
        yield p + "mlp.up_proj.weight", (f, d)
        yield p + "mlp.down_proj.weight", (d, f)
        yield p + "input_layernorm.weight", (d,)
        yield p + "post_attention_layernorm.weight", (d,)
    yield "model.norm.weight", (d,)
    yield "lm_head.weight", (config["vocab_size"], d)


def make(cache, gb, models, quick):
    config, layers = dict(BASE), 1
    if gb > 10:
        config |= {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
    size = lambda n: 2 * sum(int(np.prod(shape)) for _, shape in shapes(config | {"num_hidden_layers": n}))
    while size(layers) < gb * 1e9:
        layers += 1
    config["num_hidden_layers"] = layers
    for seed, model in enumerate(("base", "a", "b")[:models]):
        folder = cache / model
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        write_shards(folder, config, seed, repeated if quick else write_tensor)
        print(folder, f"{size(layers) / 1e9:.2f} GB, {layers} layers", flush=True)


def write_shards(folder, config, seed, write):
    groups, filled = [[]], 0
    for name, shape in shapes(config):
        n_bytes = 2 * int(np.prod(shape))
        if filled and filled + n_bytes > 1e9:
            groups.append([])
            filled = 0
        groups[-1].append((name, shape))
        filled += n_bytes
    weight_map = {}
    for index, group in enumerate(groups):
        shard = f"model-{index + 1:05}-of-{len(groups):05}.safetensors"
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in group:
            end = at + 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
            weight_map[name], at = shard, end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / shard, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for number, (name, shape) in enumerate(group):
                write(file, int(np.prod(shape)), index * 1000 + number, seed)
    index = {"metadata": {"total_size": sum(2 * int(np.prod(shape)) for _, shape in shapes(config))}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tensor(file, n, key, seed):
    """The base's normal values, and for a tuned model a normal change of a thirtieth on top, in pieces."""
    for piece, start in enumerate(range(0, n, 1 << 24)):
        m = min(1 << 24, n - start)
        values = np.random.default_rng([7, key, piece]).standard_normal(m, dtype=np.float32) * np.float32(0.03)
        if seed:
            values += np.random.default_rng([seed, key, piece, 1]).standard_normal(m, dtype=np.float32) * np.float32(0.001)
        file.write((values.view(np.uint32) + 0x8000 >> 16).astype("<u2").tobytes())


def repeated(file, n, key, seed):
    """A block of 16 M normal values of the model, from a place of the tensor's own on."""
    block = BLOCKS.get(seed)
    if block is None:
        values = np.random.default_rng([7, seed]).standard_normal(1 << 24, dtype=np.float32) * np.float32(0.03)
        block = BLOCKS[seed] = (values.view(np.uint32) + 0x8000 >> 16).astype("<u2").tobytes()
    at = 2 * (key * 7919 % (1 << 24))
    left = 2 * n
    while left:
        piece = block[at:at + left]
        file.write(piece)
        left, at = left - len(piece), 0


BLOCKS = {}


def settings(cache, method):
    base, a, b = (cache / model for model in ("base", "a", "b"))
    if method == "linear":
        return f"models: [{{model: {a}, parameters: {{weight: 0.4}}}}, {{model: {b}, parameters: {{weight: 0.6}}}}, {{model: {base}, parameters: {{weight: 1}}}}]\nmerge_method: linear\ndtype: bfloat16\n"
    if method == "slerp":
        return f"models: [{{model: {base}}}, {{model: {a}}}]\nbase_model: {base}\nmerge_method: slerp\nparameters: {{t: 0.4}}\ndtype: bfloat16\n"
    tuned = [(model, weight) for model, weight in ((a, 0.4), (b, 0.6)) if model.is_dir()]
    models = ", ".join(f"{{model: {model}, parameters: {{weight: {weight}, density: 0.5}}}}" for model, weight in tuned)
    return f"models: [{models}]\nbase_model: {base}\nmerge_method: {method}\ndtype: bfloat16\n"


def peak_kib(process):
    """Waits for the end; the highest VmHWM seen."""
    peak = 0
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            peak = max([peak] + [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")])
        except OSError:
            pass
        time.sleep(0.02)
    return peak


def timed(command, env=None):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)
    peak = peak_kib(process)
    seconds = time.monotonic() - start
    if process.returncode:
        sys.exit(f"{command} failed:\n{process.stderr.read().decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, peak / 1024, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(cache, aloe, out, rounds, methods):
    out.mkdir(parents=True, exist_ok=True)
    size = weight_bytes(cache / "base")
    mergekit = pathlib.Path(sys.executable).parent / "mergekit-yaml"
    flags = ["--lazy-unpickle", "--low-cpu-memory", "--async-write", "--no-copy-tokenizer", "--num-threads", str(os.cpu_count())]
    for method in methods:
        yaml = out / f"{method}.yml"
        yaml.write_text(settings(cache, method))
        read_all(cache)
        seconds_of = {}
        for turn in range(rounds):
            shutil.rmtree(out / "home", ignore_errors=True)
            ours = [aloe, "merge", yaml, out / "ours"]
            for who, command in (("first", ours), ("mergekit", [mergekit, yaml, out / "theirs", *flags]), ("again", ours)):
                for folder in ("ours", "theirs"):
                    shutil.rmtree(out / folder, ignore_errors=True)
                env = os.environ | {"ALOE_HOME": str(out / "home")}
                seconds, peak, cpu = timed([str(part) for part in command], env)
                n_models = 2 if method == "slerp" else 3
                rate = size * (n_models + 1) / seconds / 1e9
                seconds_of.setdefault(who, []).append(seconds)
                print(f"{method} round {turn + 1} {who}: {seconds:.2f} s, {cpu:.2f} CPU s, peak {peak:.0f} MB, {rate:.2f} GB/s", flush=True)
        for who in ("first", "again"):
            ratios = [theirs / ours for theirs, ours in zip(seconds_of["mergekit"], seconds_of[who])]
            print(f"{method} {who}: mergekit takes {statistics.median(ratios):.2f}x as long (pairs {min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def weight_bytes(folder):
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def read_all(cache):
    for file in cache.glob("*/*.safetensors"):
        with open(file, "rb") as stream:
            while stream.read(1 << 24):
                pass


def drop_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def disk(cache, aloe, out, rounds, method):
    out.mkdir(parents=True, exist_ok=True)
    yaml = out / f"{method}.yml"
    yaml.write_text(settings(cache, method))
    models = [model for model in ("base", "a", "b") if (cache / model).is_dir()]
    n_mb = weight_bytes(cache / "base") // (1 << 20)
    reads = "".join(f"dd if={file} of=/dev/null bs=4M 2>/dev/null; " for model in models for file in sorted((cache / model).glob("*.safetensors")))
    dd = ["sh", "-c", f"{reads} dd if=/dev/zero of={out / 'zeros'} bs=1M count={n_mb} conv=fsync 2>/dev/null"]
    ratios = []
    for turn in range(rounds):
        seconds_of = {}
        for who, command in (("dd", dd), ("first", [aloe, "merge", yaml, out / "ours"]), ("again", [aloe, "merge", yaml, out / "ours"])):
            shutil.rmtree(out / "ours", ignore_errors=True)
            (out / "zeros").unlink(missing_ok=True)
            if who == "first":
                shutil.rmtree(out / "home", ignore_errors=True)
            drop_caches()
            seconds, peak, cpu = timed([str(part) for part in command], os.environ | {"ALOE_HOME": str(out / "home")})
            seconds_of[who] = seconds
            print(f"{method} disk round {turn + 1} {who}: {seconds:.2f} s, {cpu:.2f} CPU s, peak {peak:.0f} MB", flush=True)
        ratios.append([seconds_of["dd"] / seconds_of[who] for who in ("first", "again")])
    for who, column in zip(("first", "again"), zip(*ratios)):
        print(f"{method} {who}: {100 * statistics.median(column):.0f} % of dd's rate ({100 * min(column):.0f} to {100 * max(column):.0f})", flush=True)


def limit(cache, aloe, out, mb, method, cold):
    out.mkdir(parents=True, exist_ok=True)
    yaml = out / f"{method}.yml"
    yaml.write_text(settings(cache, method))
    shutil.rmtree(out / "ours", ignore_errors=True)
    version_1 = pathlib.Path("/sys/fs/cgroup/memory")
    group = (version_1 if version_1.is_dir() else pathlib.Path("/sys/fs/cgroup")) / "aloe-merge-bench"
    group.mkdir(exist_ok=True)
    (group / ("memory.limit_in_bytes" if version_1.is_dir() else "memory.max")).write_text(str(mb << 20))
    (group / ("memory.swappiness" if version_1.is_dir() else "memory.swap.max")).write_text("0")
    if cold:
        drop_caches()
    start = time.monotonic()
    command = [str(aloe), "merge", str(yaml), str(out / "ours"), "--memory", str(mb // 2)]
    process = subprocess.Popen(command, preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())))
    peak = peak_kib(process)
    seconds = time.monotonic() - start
    used = (group / ("memory.max_usage_in_bytes" if version_1.is_dir() else "memory.peak")).read_text().strip()
    models = [model for model in ("base", "a", "b") if (cache / model).is_dir()]
    n_bytes = sum(weight_bytes(cache / model) for model in models) + weight_bytes(cache / "base")
    print(
        f"{method} under {mb} MiB: exit code {process.returncode}, {seconds:.2f} s, {n_bytes / seconds / 1e9:.2f} GB/s read and written, "
        f"peak {peak / 1024:.0f} MiB of the process, {int(used) / (1 << 20):.0f} MiB charged with its page cache"
    )
    group.rmdir()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["make", "run", "disk", "limit"])
    parser.add_argument("cache", type=pathlib.Path)
    parser.add_argument("aloe", nargs="?", type=pathlib.Path)
    parser.add_argument("out", nargs="?", type=pathlib.Path)
    parser.add_argument("--gb", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", default="dare_ties,linear,slerp")
    parser.add_argument("--method", default="dare_ties")
    parser.add_argument("--mb", type=int, default=512)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cold", action="store_true")
    args = parser.parse_args()
    if args.what == "make":
        make(args.cache.resolve(), args.gb, args.models, args.quick)
    elif args.what == "run":
        run(args.cache.resolve(), args.aloe, args.out.resolve(), args.rounds, args.methods.split(","))
    elif args.what == "disk":
        disk(args.cache.resolve(), args.aloe, args.out.resolve(), args.rounds, args.method)
    else:
        limit(args.cache.resolve(), args.aloe, args.out.resolve(), args.mb, args.method, args.cold)


if __name__ == "__main__":
    main()
