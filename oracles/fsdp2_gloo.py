#!/usr/bin/env python3
"""FSDP2 without GPUs (row S10): three AdamW steps of a tiny Llama by torch's `fully_shard` over two gloo processes against one process, the
saved folder, and two processes that do not know of each other.

accelerate does not switch FSDP on without GPUs, so that TRL's own path cannot be driven here; this is the sharding below it. Prints the largest
difference of a parameter (bound 5e-6) and of a loss (1e-6), and writes OUT/one and OUT/two, whose model.safetensors, gathered from the
shards, are checked by `aloe verify`. Each process sees half of each batch; the gradient is the mean over both, as torchrun's trainers have it.
`--unconnected` starts the two without a rendezvous, as `accelerate launch` with `use_cpu: true` does: the world size in the log, 1, is what
gives it away. `--reference` shards the reference of preference training by TRL's `prepare_fsdp` alone and with the start script's
`shard_reference_by_layer` before it: the elements that one unit gathers at once, and logits against the unsharded model (1e-5).
`--checkpoint OUT` saves and loads a training step by accelerate's own functions in shards, as the configurations say: the step after it is
bit for bit that of the run that went on, no process writes more than its half, and after the start script's `save_whole_model` the whole model
is one state dict in the first process, none in the other.

Pinned: python 3.11, torch 2.15.0, transformers 5.23.0, safetensors 0.8. Seed 7.
Run: V/bin/torchrun --nproc-per-node 1 oracles/fsdp2_gloo.py OUT/one && V/bin/torchrun --nproc-per-node 2 oracles/fsdp2_gloo.py OUT/two
     V/bin/python oracles/fsdp2_gloo.py --compare OUT/one OUT/two
     V/bin/python oracles/fsdp2_gloo.py --unconnected OUT/alone
     V/bin/torchrun --nproc-per-node 2 oracles/fsdp2_gloo.py --reference
     V/bin/torchrun --nproc-per-node 2 oracles/fsdp2_gloo.py --checkpoint OUT/shards
"""

import json
import os
import pathlib
import subprocess
import sys

STEPS, ROWS, LENGTH, SEED = 3, 4, 24, 7


def leave():
    """Ends a process of a group when all are here. torch's own teardown aborts now and then ("terminate called without an active exception", 2 of
    20 runs), after everything was compared and written."""
    import torch.distributed as dist

    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def train(out):
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    is_group = "MASTER_ADDR" in os.environ
    if is_group:
        dist.init_process_group("gloo")
    world, rank = (dist.get_world_size(), dist.get_rank()) if is_group else (1, 0)
    torch.manual_seed(SEED)
    config = LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=64, tie_word_embeddings=False, attn_implementation="eager")
    model = LlamaForCausalLM(config)
    if is_group:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    rows = torch.randint(0, 96, (STEPS, ROWS, LENGTH), generator=torch.Generator().manual_seed(SEED))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        part = rows[step].chunk(world)[rank]
        loss = model(input_ids=part, labels=part, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        if is_group:
            dist.all_reduce(mean)
            mean /= world
        losses.append(mean.item())
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options) if is_group else model.state_dict()
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        LlamaForCausalLM(config).save_pretrained(out, state_dict=weights)
        (out / "log.json").write_text(json.dumps({"world_size": world, "losses": losses}) + "\n")
        print(f"{out}: world size {world}, losses {losses}", flush=True)
    if is_group:
        leave()


def compare(one, two):
    from safetensors.torch import load_file

    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert first.keys() == second.keys() and len(first) == 21, len(first)
    worst = max((first[name] - second[name]).abs().max().item() for name in first)
    logs = [json.loads((folder / "log.json").read_text()) for folder in (one, two)]
    loss = max(abs(a - b) for a, b in zip(*(log["losses"] for log in logs)))
    print(f"world sizes {[log['world_size'] for log in logs]}: {len(first)} tensors, largest difference of a parameter {worst:.2e}, of a loss {loss:.2e}")
    assert worst <= 5e-6 and loss <= 1e-6 and [log["world_size"] for log in logs] == [1, 2]


def unconnected(out):
    children = [subprocess.Popen([sys.executable, __file__, f"{out}-{rank}"], env={**os.environ, "LOCAL_RANK": str(rank)}) for rank in range(2)]
    assert all(child.wait() == 0 for child in children)
    sizes = [json.loads(pathlib.Path(f"{out}-{rank}/log.json").read_text())["world_size"] for rank in range(2)]
    print(f"two processes without a rendezvous report world sizes {sizes} where 2 was planned")
    assert sizes == [1, 1]


def reference():
    import types

    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import FSDPModule, OffloadPolicy
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer import dpo_trainer

    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "crates/aloe-handoff/src/engine"))
    import launcher

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    plugin = types.SimpleNamespace(fsdp_version=2, reshard_after_forward=True, cpu_offload=OffloadPolicy(), mixed_precision_policy=None, ignored_modules=None)
    accelerator = types.SimpleNamespace(state=types.SimpleNamespace(fsdp_plugin=plugin), device=torch.device("cpu"), parallelism_config=None)
    config = LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=64, tie_word_embeddings=False, attn_implementation="eager")
    rows = torch.randint(0, 96, (ROWS, LENGTH), generator=torch.Generator().manual_seed(SEED))

    def model():
        torch.manual_seed(SEED)
        return LlamaForCausalLM(config).eval()

    def unit(module):
        return sum(param._orig_size.numel() for param in module._get_fsdp_state()._fsdp_param_group.fsdp_params)

    with torch.no_grad():
        plain = model()
        expected, n_all = plain(rows, use_cache=False).logits, sum(param.numel() for param in plain.parameters())
        found = {}
        for name in ("whole", "by layer"):
            if name == "by layer":
                launcher.shard_reference_by_layer(["LlamaDecoderLayer"])
            sharded = dpo_trainer.prepare_fsdp(model(), accelerator)
            units = [unit(module) for module in sharded.modules() if isinstance(module, FSDPModule)]
            apart = (sharded(rows, use_cache=False).logits - expected).abs().max().item()
            found[name] = (len(units), max(units))
            assert sum(units) == n_all and apart <= 1e-5, (name, sum(units), n_all, apart)
            if dist.get_rank() == 0:
                print(f"{name}: {len(units)} units, the largest of {max(units)} of {n_all} elements, logits apart {apart:.1e}", flush=True)
    one_layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    assert found == {"whole": (1, n_all), "by layer": (9, max(one_layer, 2 * 96 * 32 + 32))}, found
    leave()


def checkpoint(out):
    import types

    import torch
    import torch.distributed as dist
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import FullyShardedDataParallelPlugin, fsdp_utils
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "crates/aloe-handoff/src/engine"))
    import launcher

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    Accelerator(cpu=True)
    state = AcceleratorState()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    accelerator = types.SimpleNamespace(process_index=rank, num_processes=world, is_main_process=rank == 0, wait_for_everyone=dist.barrier)
    config = LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=64, tie_word_embeddings=False, attn_implementation="eager")
    rows = torch.randint(0, 96, (2, ROWS, LENGTH), generator=torch.Generator().manual_seed(SEED))

    def start(seed):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(model, optimizer, at):
        part = rows[at].chunk(world)[rank]
        model(input_ids=part, labels=part, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def shards(model):
        return {name: param.to_local().detach().clone() for name, param in model.named_parameters()}

    model, optimizer = start(SEED)
    step(model, optimizer, 0)
    fsdp_utils.save_fsdp_model(plugin, accelerator, model, str(out))
    fsdp_utils.save_fsdp_optimizer(plugin, accelerator, optimizer, model, str(out))
    step(model, optimizer, 1)
    gone_on = shards(model)
    other, its = start(SEED + 1)
    fsdp_utils.load_fsdp_model(plugin, accelerator, other, str(out))
    fsdp_utils.load_fsdp_optimizer(plugin, accelerator, its, other, str(out))
    step(other, its, 1)
    resumed = shards(other)
    assert all(torch.equal(gone_on[name], resumed[name]) for name in gone_on), "the resumed step is another one"
    n_params = sum(param.numel() for param in model.parameters())
    if rank == 0:
        sizes = {}
        for path in pathlib.Path(out).rglob("*.distcp"):
            process = path.name.split("_")[2]
            sizes[process] = sizes.get(process, 0) + path.stat().st_size
        print(f"{n_params} parameters, weights and moments of 12 bytes each; bytes that each process wrote: {sizes}", flush=True)
        assert len(sizes) == world and max(sizes.values()) < 0.65 * sum(sizes.values()), sizes
        assert sum(sizes.values()) > 12 * n_params
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    assert "SHARDED_STATE_DICT" in str(plugin.state_dict_type), plugin.state_dict_type
    launcher.save_whole_model()
    # What transformers' `save_model` looks for, and what it then calls.
    assert "FULL_STATE_DICT" in str(state.fsdp_plugin.state_dict_type), state.fsdp_plugin.state_dict_type
    whole = get_model_state_dict(other, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    assert sum(tensor.numel() for tensor in whole.values()) == (n_params if rank == 0 else 0)
    if rank == 0:
        print("the step after loading is the same, bit for bit; the whole model is in the first process", flush=True)
    leave()


def main():
    flags, folders = [a for a in sys.argv[1:] if a.startswith("--")], [pathlib.Path(a) for a in sys.argv[1:] if not a.startswith("--")]
    if "--compare" in flags:
        compare(*folders)
    elif "--reference" in flags:
        reference()
    elif "--checkpoint" in flags:
        checkpoint(folders[0])
    elif "--unconnected" in flags:
        unconnected(folders[0])
    else:
        train(folders[0])


if __name__ == "__main__":
    main()
