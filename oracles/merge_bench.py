"""Speed and memory of `aloe merge` beside `mergekit-yaml`: three seeded checkpoints of a given size, then the same merges by both in turn.

Made for mergekit 0.1.5, torch 2.15 (CPU), numpy, safetensors, Python 3.11.
Run: python oracles/merge_bench.py make CACHE [--gb 3]        writes CACHE/{base,a,b} once, each of that size in bfloat16, in shards of 1 GB
     python oracles/merge_bench.py run CACHE ALOE OUT [--rounds 3] [--methods dare_ties,linear,slerp]
     python oracles/merge_bench.py limit CACHE ALOE OUT --mb 512 [--method dare_ties]
`run` takes turns (ours, theirs, ours, ...) with a warm page cache and prints seconds, peak memory (VmHWM of the process) and GB/s of bytes
read and written; OUT on tmpfs leaves the disk out. `limit` runs ours in a cgroup of that size by systemd-run, swap off.
"""

import argparse
import json
import pathlib
import resource
import shutil
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


def make(cache, gb):
    config, layers = dict(BASE), 1
    size = lambda n: 2 * sum(int(np.prod(shape)) for _, shape in shapes(config | {"num_hidden_layers": n}))
    while size(layers) < gb * 1e9:
        layers += 1
    config["num_hidden_layers"] = layers
    for seed, model in enumerate(("base", "a", "b")):
        folder = cache / model
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        write_shards(folder, config, seed)
        print(folder, f"{size(layers) / 1e9:.2f} GB, {layers} layers", flush=True)


def write_shards(folder, config, seed):
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
                write_tensor(file, int(np.prod(shape)), index * 1000 + number, seed)
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


def settings(cache, method):
    base, a, b = (cache / model for model in ("base", "a", "b"))
    if method == "linear":
        return f"models: [{{model: {a}, parameters: {{weight: 0.4}}}}, {{model: {b}, parameters: {{weight: 0.6}}}}, {{model: {base}, parameters: {{weight: 1}}}}]\nmerge_method: linear\ndtype: bfloat16\n"
    if method == "slerp":
        return f"models: [{{model: {base}}}, {{model: {a}}}]\nbase_model: {base}\nmerge_method: slerp\nparameters: {{t: 0.4}}\ndtype: bfloat16\n"
    models = ", ".join(f"{{model: {model}, parameters: {{weight: {weight}, density: 0.5}}}}" for model, weight in ((a, 0.4), (b, 0.6)))
    return f"models: [{models}]\nbase_model: {base}\nmerge_method: {method}\ndtype: bfloat16\n"


def timed(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            peak = max([peak] + [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")])
        except OSError:
            pass
        time.sleep(0.02)
    seconds = time.monotonic() - start
    if process.returncode:
        sys.exit(f"{command} failed:\n{process.stderr.read().decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, peak / 1024, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(cache, aloe, out, rounds, methods):
    out.mkdir(parents=True, exist_ok=True)
    size = sum(file.stat().st_size for file in (cache / "base").glob("*.safetensors"))
    mergekit = pathlib.Path(sys.executable).parent / "mergekit-yaml"
    flags = ["--lazy-unpickle", "--low-cpu-memory", "--async-write", "--no-copy-tokenizer"]
    for method in methods:
        yaml = out / f"{method}.yml"
        yaml.write_text(settings(cache, method))
        for file in cache.glob("*/*.safetensors"):
            with open(file, "rb") as stream:
                while stream.read(1 << 24):
                    pass
        for turn in range(rounds):
            for who, command in (("aloe", [aloe, "merge", yaml, out / "ours"]), ("mergekit", [mergekit, yaml, out / "theirs", *flags])):
                for folder in ("ours", "theirs"):
                    shutil.rmtree(out / folder, ignore_errors=True)
                seconds, peak, cpu = timed([str(part) for part in command])
                n_models = 2 if method == "slerp" else 3
                rate = size * (n_models + 1) / seconds / 1e9
                print(f"{method} round {turn + 1} {who}: {seconds:.2f} s, {cpu:.2f} CPU s, peak {peak:.0f} MB, {rate:.2f} GB/s", flush=True)


def limit(cache, aloe, out, mb, method):
    out.mkdir(parents=True, exist_ok=True)
    yaml = out / f"{method}.yml"
    yaml.write_text(settings(cache, method))
    scope = ["systemd-run", "--scope", "--quiet", "-p", f"MemoryMax={mb}M", "-p", "MemorySwapMax=0"]
    start = time.monotonic()
    code = subprocess.run([*scope, str(aloe), "merge", str(yaml), str(out / "ours"), "--memory", str(mb // 2)]).returncode
    print(f"{method} under {mb} MB: exit code {code}, {time.monotonic() - start:.2f} s")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["make", "run", "limit"])
    parser.add_argument("cache", type=pathlib.Path)
    parser.add_argument("aloe", nargs="?", type=pathlib.Path)
    parser.add_argument("out", nargs="?", type=pathlib.Path)
    parser.add_argument("--gb", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", default="dare_ties,linear,slerp")
    parser.add_argument("--method", default="dare_ties")
    parser.add_argument("--mb", type=int, default=512)
    args = parser.parse_args()
    if args.what == "make":
        make(args.cache.resolve(), args.gb)
    elif args.what == "run":
        run(args.cache.resolve(), args.aloe, args.out.resolve(), args.rounds, args.methods.split(","))
    else:
        limit(args.cache.resolve(), args.aloe, args.out.resolve(), args.mb, args.method)


if __name__ == "__main__":
    main()
