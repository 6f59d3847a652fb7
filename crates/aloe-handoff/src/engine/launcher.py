"""Runs one training stage of this run folder on TRL. Started in the run folder by torchrun, once per process:

    torchrun --nproc-per-node=N stages/NN-NAME/engine.py MODULE --config stages/NN-NAME/engine.yaml [--resume_from_checkpoint FOLDER]

Written by `aloe`, the same bytes for every stage. It refuses other versions than the configuration was checked for, lets ids that are
already rendered through, and leaves in the stage's output folder what the checker needs: `sessions.jsonl` (versions, and the world size as
the processes themselves counted it), `log.jsonl` (every logged step), `trainer_state.json`, and a `MANIFEST.json` in each checkpoint once
it is whole. A loss or gradient norm that is not finite ends the run with exit code 3, a spike of either (where `expected.json` says so)
with exit code 4. When the file `STOP` appears in the output folder it saves a checkpoint after the step at hand and ends with exit code 75.
Nothing is sent anywhere.
"""

import collections
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import runpy
import socket
import sys
import threading
import time

PINNED = {"trl": "1.16.0", "transformers": "5.23.0", "accelerate": "1.15.0"}

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ[name] = value


def check_versions():
    found = {name: importlib.metadata.version(name) for name in PINNED}
    other = [f"{name} is {found[name]}, not {version}" for name, version in PINNED.items() if found[name] != version]
    if other:
        sys.exit("this stage was planned for other versions: " + "; ".join(other))
    return {**found, "torch": importlib.metadata.version("torch"), "python": sys.version.split()[0]}


def append(path, entry):
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


class Spikes:
    """The rule that stops our own trainer: a loss, or the logarithm of a gradient norm, six standard deviations above the mean of the last 128
    steps, once there are 64. A curve that hardly moves is given one percent of its mean as deviation, and at least 0.02."""

    def __init__(self):
        self.losses, self.log_norms = collections.deque(maxlen=128), collections.deque(maxlen=128)

    @staticmethod
    def limit(values):
        if len(values) < 64:
            return math.inf
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        return mean + 6.0 * max(math.sqrt(variance), 0.01 * abs(mean), 0.02)

    def judge(self, loss, norm):
        """What is wrong with a step, or None; the step then counts among those that later ones are held against."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return None
        log_norm = math.log(max(norm, sys.float_info.min))
        for what, value, limit in (("loss", loss, self.limit(self.losses)), ("gradient norm", norm, self.limit(self.log_norms))):
            if (log_norm if what == "gradient norm" else value) > limit:
                most = math.exp(limit) if what == "gradient norm" else limit
                return f"the {what} is {value:.4f}, above {most:.4f}, six sigma over the steps before"
        self.losses.append(loss)
        self.log_norms.append(log_norm)
        return None


def write_manifest(folder, step, inputs):
    """Names, sizes and digests of a checkpoint's files, beside them: what has one is whole. `inputs` is what it was trained with."""
    own = ("MANIFEST.json", ".MANIFEST.json.partial")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in own)
    entries = {str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": sha256(path)} for path in files}
    partial = folder / ".MANIFEST.json.partial"
    partial.write_text(json.dumps({"step": step, "inputs": inputs, "files": entries}, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, folder / "MANIFEST.json")


def processes():
    """Every process's machine and device, gathered by the processes themselves; one entry where there is no group. A machine is a host name and
    the rank of its torchrun, since emulated nodes share a host."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    own = [f"{socket.gethostname()} {os.environ.get('GROUP_RANK', '0')}", device]
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own], True
    found = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return found, torch.distributed.get_rank() == 0


def watch(work, versions, stage):
    import torch
    from transformers import TrainerCallback

    expected = json.loads((stage / "expected.json").read_text(encoding="utf-8"))
    inputs = sha256(stage / "inputs.sha256") if (stage / "inputs.sha256").exists() else None

    class Watch(TrainerCallback):
        def __init__(self):
            self.hashing = []
            self.spikes = Spikes()
            self.stops = False

        def on_train_begin(self, args, state, control, **kwargs):
            found, self.is_first = processes()
            for entry in state.log_history:  # of a resumed run: the steps before its checkpoint
                self.judge(entry)
            self.started = time.time()
            if self.is_first:
                work.mkdir(parents=True, exist_ok=True)
                hosts = len({host for host, _ in found})
                devices = sorted({device for _, device in found})
                event = {"event": "begin", "unix_s": self.started, "step": state.global_step, "max_steps": state.max_steps}
                append(work / "sessions.jsonl", {**event, "versions": versions, "world_size": len(found), "n_hosts": hosts, "devices": devices})

        def on_log(self, args, state, control, logs=None, **kwargs):
            logs = {key: value for key, value in (logs or {}).items()}
            if self.is_first:
                append(work / "log.jsonl", {"step": state.global_step, **{key: str(value) for key, value in logs.items()}})
            bad = [key for key in ("loss", "grad_norm") if key in logs and not math.isfinite(float(logs[key]))]
            if bad:
                print(f"step {state.global_step}: {' and '.join(bad)} not finite; stopped", file=sys.stderr, flush=True)
                os._exit(3)
            spike = self.judge(logs)
            if spike and expected["stops_at_spikes"]:
                text = 'its update was made. Lower lr, or plan with on_spike = "keep"'
                print(f"step {state.global_step}: {spike}; stopped, as on_spike = \"stop\" says; {text}", file=sys.stderr, flush=True)
                os._exit(4)

        def judge(self, logs):
            if not {"loss", "grad_norm"} <= set(logs):
                return None
            return self.spikes.judge(float(logs["loss"]), float(logs["grad_norm"]))

        def on_step_end(self, args, state, control, **kwargs):
            # One process looks and all do the same.
            flag = torch.tensor([int(self.is_first and (work / "STOP").exists())], device=args.device)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.broadcast(flag, 0)
            if flag.item() and not control.should_training_stop:
                self.stops = control.should_save = control.should_training_stop = True
            if control.should_save:
                # Saving rotates: the checkpoint before this one must be known as whole by then.
                self.wait_for_digests()
            return control

        def wait_for_digests(self):
            for thread in self.hashing:
                thread.join()
            self.hashing = []

        def on_save(self, args, state, control, **kwargs):
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.barrier()
            folder = pathlib.Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if self.is_first and folder.is_dir():
                thread = threading.Thread(target=self.hash, args=(folder, state.global_step))
                thread.start()
                self.hashing.append(thread)

        def hash(self, folder, step):
            try:
                write_manifest(folder, step, inputs)
            except OSError as error:  # the oldest checkpoint goes when a new one is written
                print(f"{folder}: no manifest: {error}", file=sys.stderr, flush=True)

        def on_train_end(self, args, state, control, **kwargs):
            self.wait_for_digests()
            if self.stops:
                # Without a collective, which would give up while a large checkpoint's digests are made.
                while not self.is_first and not (pathlib.Path(args.output_dir) / f"checkpoint-{state.global_step}" / "MANIFEST.json").exists():
                    time.sleep(0.2)
                if self.is_first:
                    append(work / "sessions.jsonl", {"event": "stop", "unix_s": time.time(), "step": state.global_step, "seconds": time.time() - self.started})
                print(f"step {state.global_step}: saved and stopped, as was asked", file=sys.stderr, flush=True)
                os._exit(75)
            if self.is_first:
                state.save_to_json(str(work / "trainer_state.json"))
                append(work / "sessions.jsonl", {"event": "end", "unix_s": time.time(), "step": state.global_step, "seconds": time.time() - self.started})

    return Watch


def take_rendered_pairs():
    """TRL prepares every preference row from text; rows that are ids already go through as they are."""
    from trl import DPOTrainer

    prepare = DPOTrainer._prepare_dataset

    def prepared(self, dataset, *args, **kwargs):
        is_rendered = {"prompt_ids", "chosen_ids", "rejected_ids"} <= set(dataset.column_names)
        return dataset if is_rendered else prepare(self, dataset, *args, **kwargs)

    DPOTrainer._prepare_dataset = prepared


def shard_reference_by_layer(layers):
    """TRL shards the reference of preference training as one unit, which each process then gathers whole: 141 GB in bf16 for 70 billion
    parameters. Here each decoder layer is a unit, as in the policy, and the rest is another."""
    from trl.trainer import dpo_trainer

    shard = dpo_trainer.prepare_fsdp

    def by_layer(model, accelerator):
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        plugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version == 2 and not isinstance(model, FSDPModule):
            mesh = getattr(accelerator, "torch_device_mesh", None)
            settings = {
                "reshard_after_forward": True,
                "offload_policy": plugin.cpu_offload,
                "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
                "mesh": mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)] if mesh is not None else None,
            }
            for layer in [module for module in model.modules() if type(module).__name__ in layers]:
                fully_shard(layer, **settings)
        return shard(model, accelerator)

    dpo_trainer.prepare_fsdp = by_layer


def main():
    module, *rest = sys.argv[1:]
    versions = check_versions()
    import yaml

    config = yaml.safe_load(pathlib.Path(rest[rest.index("--config") + 1]).read_text(encoding="utf-8"))
    work = pathlib.Path(config["output_dir"])
    os.environ["HF_DATASETS_CACHE"] = str(work / ".datasets")
    import transformers.trainer

    transformers.trainer.DEFAULT_CALLBACKS.append(watch(work, versions, pathlib.Path(__file__).parent))
    if module == "trl.scripts.dpo":
        take_rendered_pairs()
        shard_reference_by_layer((config.get("fsdp_config") or {}).get("transformer_layer_cls_to_wrap", []))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
