"""Runs one training stage of this run folder on TRL or axolotl. Started in the run folder by torchrun, once per process:

    torchrun --nproc-per-node=N stages/NN-NAME/engine.py MODULE --config stages/NN-NAME/engine.yaml [--resume_from_checkpoint FOLDER]

Written by `aloe`, the same bytes for every stage. It refuses other versions than the configuration was checked for, lets ids that are
already rendered through, and leaves in the stage's output folder what the checker needs: `sessions.jsonl` (versions, and the world size as
the processes themselves counted it), `log.jsonl` (every logged step), `trainer_state.json`, and a `MANIFEST.json` in each checkpoint once
it is whole. A loss or gradient norm that is not finite ends the run with exit code 3, a spike of either (where `expected.json` says so)
with exit code 4. When the file `STOP` appears in the output folder it saves a checkpoint after the step at hand and ends with exit code 75;
a held-out evaluation is left for that at its next row, and made again by the session that goes on. Nothing is sent anywhere.

What a configuration of the engine cannot say is set in the program itself: chunks of pairs (`expected.json` beside the configuration has
their steps), a floor under a line of learning rates, the mean of a step's negative log-likelihood over all its chosen tokens, held-out
figures that weigh every token or pair alike, patience, NEFTune by document, where LoRA's updates begin, a reference sharded by layer, and for
axolotl f32 masters, a step's mean over all its targets, the order of the rows, a warm-up of one step, the best weights of pairs, NaN as NaN.
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
import types

PINNED = {
    "trl": {"trl": "1.16.0", "transformers": "5.23.0", "accelerate": "1.15.0"},
    "axolotl": {"axolotl": "0.19.0", "trl": "1.9.0", "transformers": "5.16.1", "accelerate": "1.13.0"},
}

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ[name] = value


def check_versions(engine):
    found = {name: importlib.metadata.version(name) for name in PINNED[engine]}
    other = [f"{name} is {found[name]}, not {version}" for name, version in PINNED[engine].items() if found[name] != version]
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
    # The plan's inputs, and where the stage's own job rendered the rows these and the configuration.
    known = [stage / name for name in ("inputs.sha256", "rendered.sha256")]
    inputs = hashlib.sha256(b"".join(path.read_bytes() for path in known if path.exists())).hexdigest() if known[0].exists() else None

    class Watch(TrainerCallback):
        def __init__(self):
            self.hashing = []
            self.spikes = Spikes()
            self.stops = False

        def on_train_begin(self, args, state, control, **kwargs):
            found, self.is_first = processes()
            best = pathlib.Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            if args.load_best_model_at_end and state.best_global_step and not best.is_dir():
                # transformers goes on and exports other weights.
                print(f"{best} is gone, which has the best weights so far (keep_best): train anew", file=sys.stderr, flush=True)
                os._exit(1)
            for entry in state.log_history:  # of a resumed run: the steps before its checkpoint
                self.judge(entry)
            self.started = time.time()
            if self.is_first:
                work.mkdir(parents=True, exist_ok=True)
                hosts = len({host for host, _ in found})
                devices = sorted({device for _, device in found})
                event = {"event": "begin", "unix_s": self.started, "step": state.global_step, "max_steps": state.max_steps}
                # `run.sh` has just held the rows against this digest.
                event["rows_sha256"] = expected.get("rows_sha256")
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

        def is_asked_to_stop(self, args):
            """One process looks and all do the same."""
            flag = torch.tensor([int(self.is_first and (work / "STOP").exists())], device=args.device)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.broadcast(flag, 0)
            return bool(flag.item())

        def on_step_end(self, args, state, control, **kwargs):
            if self.is_asked_to_stop(args) and not control.should_training_stop:
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
                self.leave(args, state)
            best, loaded = f"checkpoint-{state.best_global_step}", getattr(state, "loaded_checkpoint", None)
            if args.load_best_model_at_end and state.best_global_step and loaded != best:
                print(f"the weights of {best}, the best (keep_best), could not be loaded: {loaded} was", file=sys.stderr, flush=True)
                os._exit(1)
            save_whole_model()
            if self.is_first:
                state.save_to_json(str(work / "trainer_state.json"))
                self.tell("end", state, best_loaded=loaded)

        def tell(self, event, state, **more):
            now = time.time()
            append(work / "sessions.jsonl", {"event": event, "unix_s": now, "step": state.global_step, "seconds": now - self.started, **more})

        def stop_in_evaluation(self, trainer, is_saved):
            """Saves the step whose evaluation was left, unless this session began from it, and ends the session. There are no figures of a part of
            the rows: whoever goes on from here evaluates first."""
            if not is_saved:
                self.wait_for_digests()
                trainer._save_checkpoint(trainer.model_wrapped, None)
                self.on_save(trainer.args, trainer.state, trainer.control)
                self.wait_for_digests()
            self.leave(trainer.args, trainer.state)

        def leave(self, args, state):
            step = state.global_step
            if self.is_first:
                self.tell("stop", state)
            manifest = pathlib.Path(args.output_dir) / f"checkpoint-{step}" / "MANIFEST.json"
            # Without a collective, which would give up while a large checkpoint's digests are made.
            while step > 0 and not self.is_first and not manifest.exists():
                time.sleep(0.2)
            is_whole = step == 0 or manifest.exists()
            if is_whole and torch.distributed.is_available() and torch.distributed.is_initialized():
                # torchrun ends all processes once one has ended: here, and at once where the first could not write its digests (a full disk).
                torch.distributed.barrier()
            print(f"step {step}: {'saved and ' if step > 0 else ''}stopped, as was asked", file=sys.stderr, flush=True)
            os._exit(75)

    return Watch


def save_whole_model():
    """Checkpoints are written in shards; the model that is saved after the training is gathered and written as one."""
    from accelerate.state import AcceleratorState

    plugin = getattr(AcceleratorState(), "fsdp_plugin", None)
    if plugin is not None:
        plugin.set_state_dict_type("FULL_STATE_DICT")


def train_no_further():
    """A session that goes on from the checkpoint of the last step, or of the one where patience had run out, trains no further step; what it owes
    is made before."""
    from transformers import Trainer

    run_epoch = Trainer._run_epoch

    def unless_ended(self, *given, **named):
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        if not self.control.should_training_stop:
            run_epoch(self, *given, **named)

    Trainer._run_epoch = unless_ended


def note_what_is_loaded():
    """Where the best checkpoint holds no weights, transformers warns and goes on with the last ones."""
    from transformers import Trainer

    load = Trainer._load_best_model

    def and_noted(self):
        load(self)
        folder = pathlib.Path(self.state.best_model_checkpoint)
        if any(path.suffix in (".safetensors", ".distcp") for path in folder.rglob("*")):
            self.state.loaded_checkpoint = folder.name

    Trainer._load_best_model = and_noted


def own_curve(chunks, floor):
    """Learning rates that no scheduler of transformers has: with each chunk of pairs the curve (warm-up included) starts anew, and a line ends at a
    floor, a share of the highest rate."""
    import torch
    from transformers import Trainer, get_scheduler
    from torch.optim.lr_scheduler import LambdaLR

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None:
            args, unused = self.args, torch.optim.SGD([torch.zeros(1)], lr=self.args.learning_rate)
            pieces = chunks or [{"n_steps": num_training_steps, "warmup_steps": args.get_warmup_steps(num_training_steps)}]
            firsts = [sum(piece["n_steps"] for piece in pieces[:at]) for at in range(len(pieces))]
            curves = [
                get_scheduler(
                    args.lr_scheduler_type, unused, piece["warmup_steps"], piece["n_steps"], scheduler_specific_kwargs=args.lr_scheduler_kwargs
                ).lr_lambdas[0]
                for piece in pieces
            ]

            def factor(step):
                at = max(at for at, first in enumerate(firsts) if first <= step)
                step, warmup = step - firsts[at], pieces[at]["warmup_steps"]
                return curves[at](step) if step < warmup else curves[at](step) * (1 - floor) + floor

            self.lr_scheduler = LambdaLR(optimizer if optimizer is not None else self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    Trainer.create_scheduler = create_scheduler


def moments_anew(chunks):
    """AdamW's moments start anew with each chunk; weights and reference go on. A resumed run has the moments of its checkpoint, and loses them where
    the next chunk begins as it would have."""
    from transformers import TrainerCallback

    firsts = [sum(chunk["n_steps"] for chunk in chunks[:at]) for at in range(1, len(chunks))]

    class Anew(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            if state.global_step in firsts:
                optimizer.state.clear()

    return Anew


def chosen_tokens(inputs):
    """Tokens of a batch's chosen answers."""
    return int(inputs["completion_mask"].chunk(2)[0].sum())


def weigh(trainer, weight):
    """Gives TRL's loss `sft`, the mean negative log-likelihood of a batch's chosen tokens, another weight beside the preference loss."""
    trainer.loss_weights = [weight if name == "sft" else own for name, own in zip(trainer.loss_types, trainer.loss_weights)]


def mean_over_all_chosen_tokens(weight):
    """TRL takes that mean over the tokens of each batch by itself, and a step's loss is the mean of its batches: here each batch's weight is its
    share of the step's chosen tokens, so that the mean is over all of them, as in our own trainer."""
    import torch
    from trl import DPOTrainer

    collect, compute = DPOTrainer.get_batch_samples, DPOTrainer.compute_loss

    def get_batch_samples(self, *given, **named):
        batches, n_items = collect(self, *given, **named)
        found = torch.tensor([sum(chosen_tokens(batch) for batch in batches), len(batches)], device=self.args.device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(found)
        n_tokens, n_batches = found.tolist()
        self.batches_per_chosen_token = n_batches / max(n_tokens, 1)
        return batches, n_items

    def compute_loss(self, model, inputs, *given, **named):
        if self.model.training:
            weigh(self, weight * chosen_tokens(inputs) * self.batches_per_chosen_token)
        return compute(self, model, inputs, *given, **named)

    DPOTrainer.get_batch_samples, DPOTrainer.compute_loss = get_batch_samples, compute_loss


def give_held_out(path):
    """`trl sft` and `trl dpo` take held-out rows from the part `test` of what they train on; ours are a file beside it."""
    import datasets
    import trl

    load = trl.get_dataset

    def with_held_out(*given, **named):
        found = load(*given, **named)
        found["test"] = datasets.load_dataset("json", data_files=str(path), split="train")
        return found

    trl.get_dataset = with_held_out


def evaluate_held_out(nll_weight):
    """Held-out figures as our own trainer has them, logged as `eval_loss` and the like: of rows the negative log-likelihood of a predicted token, of
    pairs means over pairs (and of `eval_nll` over chosen tokens). transformers takes the mean of its batches' means, and counts some rows twice
    where they do not fill the last batch of every process. Here each row or pair is a batch, and what does not fill the processes is evaluated
    by all of them and counted once. Before each row it is looked whether somebody wants the training stopped."""
    import torch
    from transformers import Trainer

    def of_row(trainer, model, inputs):
        n = int((inputs["labels"] != -100).sum())
        inputs["use_cache"] = False  # with a cache transformers does not look for the documents of a packed row
        return {"loss": trainer.compute_loss(model, inputs).item() * n, "targets": n}

    def of_pair(trainer, model, inputs):
        n = chosen_tokens(inputs)
        weigh(trainer, 0.0)
        loss = trainer.compute_loss(model, inputs).item()
        found = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
        margin = found["rewards/margins"]
        return {
            "loss": loss, "pairs": 1, "chosen_tokens": n, "nll": -found["logps/chosen"], "margin": margin, "margin_squared": margin * margin,
            "reward_accuracy": found["rewards/accuracies"], "logp_accuracy": float(found["logps/chosen"] > found["logps/rejected"]),
            "reward_chosen": found["rewards/chosen"], "reward_rejected": found["rewards/rejected"],
        }

    def means(sums):
        if "pairs" not in sums:
            return {"eval_loss": sums["loss"] / sums["targets"], "eval_targets": round(sums["targets"])}
        n, n_tokens, squared = sums.pop("pairs"), sums.pop("chosen_tokens"), sums.pop("margin_squared")
        nll = sums.pop("nll") / n_tokens
        found = {f"eval_{name}": value / n for name, value in sums.items()}
        if n > 1:
            found["eval_margin_se"] = math.sqrt(max(squared - n * found["eval_margin"] ** 2, 0.0) / (n - 1) / n)
        return {**found, "eval_loss": found["eval_loss"] + nll_weight * nll, "eval_nll": nll, "eval_pairs": round(n)}

    def is_owed(state):
        """Of the step at which a session goes on: its evaluation was left when the session before was stopped."""
        is_due = state.global_step % state.eval_steps == 0 or state.global_step >= state.max_steps
        return is_due and not any(entry["step"] == state.global_step for entry in state.log_history if "eval_loss" in entry)

    def evaluate(self, *given, **named):
        # transformers evaluates at the start of every session.
        goes_on = self.state.global_step > 0 and not self.control.should_evaluate
        if goes_on and not is_owed(self.state):
            return {}
        rows = self._remove_unused_columns(self.eval_dataset, description="evaluation")
        rank, world, n = self.args.process_index, self.args.world_size, len(rows)
        whole = n - n % world
        mine = [(at, 1.0) for at in range(rank, whole, world)] + [(at, 1.0 / world) for at in range(whole, n)]
        accelerator, sums = self.accelerator, collections.defaultdict(float)
        # TRL's figures of a pair are gathered from all processes: each keeps its own here.
        accelerator.gather = accelerator.gather_for_metrics = lambda found, *given, **named: found
        watch, is_stopped = next(one for one in self.callback_handler.callbacks if hasattr(one, "is_asked_to_stop")), False
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for at, share in mine:
                if is_stopped := watch.is_asked_to_stop(self.args):
                    break
                inputs = self._prepare_inputs(self.data_collator([rows[at]]))
                of = of_pair if "completion_mask" in inputs else of_row
                for name, value in of(self, self.model, inputs).items():
                    sums[name] += value * share
        del accelerator.gather, accelerator.gather_for_metrics
        if is_stopped:
            watch.stop_in_evaluation(self, is_saved=goes_on or self.state.global_step == 0)
        if world > 1:
            found = torch.tensor(list(sums.values()), dtype=torch.float64, device=self.args.device)
            torch.distributed.all_reduce(found)
            sums = dict(zip(sums, found.tolist()))
        if hasattr(self, "_metrics"):
            self._metrics["eval"].clear()
        figures = means(sums)
        self.log(dict(figures))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        if goes_on and self._determine_best_metric(figures, None):
            # As the training loop does it; the checkpoint of these weights is the one that this session began from.
            self.state.best_model_checkpoint = os.path.join(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        return figures

    begin = Trainer.__init__

    def with_own_evaluation(self, *given, **named):
        begin(self, *given, **named)
        self.evaluate = types.MethodType(evaluate, self)

    Trainer.__init__ = with_own_evaluation


def stop_without_better(patience):
    """So many held-out evaluations in a row without a better one end the training. transformers' own rule forgets its count in a session that goes
    on from a checkpoint; here it is counted from the log, which a checkpoint has."""
    from transformers import TrainerCallback

    class Patience(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            best, n_without = math.inf, 0
            # The start does not take part, and what is no number is never better.
            for loss in [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry and entry["step"] > 0]:
                best, n_without = (loss, 0) if loss < best else (best, n_without + 1)
            if n_without >= patience:
                print(f"step {state.global_step}: {n_without} held-out evaluations without a better one; ended, as patience says", file=sys.stderr)
                control.should_training_stop = True

        # transformers forgets that it was to stop.
        on_train_begin = on_evaluate

    return Patience


# As PEFT names them, in the order in which our own trainer numbers a layer's updates.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def uniform(seed, purpose, item, n):
    """The first n values of a stream of `aloe`'s generator, f32 in [0, 1): Philox 4x32-10, keyed by SHA-256 of seed and purpose."""
    import numpy

    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).hexdigest()
    keys, low = [int(digest[:8], 16), int(digest[8:16], 16)], 0xFFFFFFFF
    block = numpy.arange(-(-n // 4), dtype=numpy.uint64)
    words = [block & low, block >> 32, numpy.full_like(block, item & low), numpy.full_like(block, item >> 32)]
    for _ in range(10):
        first, second = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57
        words = [second >> 32 ^ words[1] ^ keys[0], second & low, first >> 32 ^ words[3] ^ keys[1], first & low]
        keys = [keys[0] + 0x9E3779B9 & low, keys[1] + 0xBB67AE85 & low]
    return (numpy.stack(words, 1).reshape(-1)[:n] >> 8).astype(numpy.float32) / numpy.float32(1 << 24)


def start_updates(lora, seed):
    """LoRA begins with the values of our own trainer: A uniform within 1 / sqrt(K), B zero, as PEFT has it."""
    import numpy
    import torch
    from transformers import TrainerCallback

    targets = [name for name in TARGETS if name in lora["targets"]]

    def start(module, rank, n_columns):
        item = int(module.split(".layers.")[1].split(".")[0]) * len(targets) + targets.index(module.rsplit(".", 1)[1])
        bound = numpy.float32(1) / numpy.sqrt(numpy.float32(n_columns))
        values = (numpy.float32(2) * uniform(seed, "lora-init", item, rank * n_columns) - numpy.float32(1)) * bound
        return torch.from_numpy(values.reshape(rank, n_columns))

    class Updates(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step > 0:  # a checkpoint has its own
                return
            n_updates = 0
            for name, parameter in model.named_parameters():
                module, _, factor = name.partition(".lora_A.")
                if factor:
                    values = start(module, *parameter.shape).to(parameter.device)
                    if hasattr(parameter, "device_mesh"):
                        from torch.distributed.tensor import distribute_tensor

                        values = distribute_tensor(values, parameter.device_mesh, parameter.placements)
                    with torch.no_grad():
                        parameter.copy_(values)
                    n_updates += 1
            if n_updates == 0:
                sys.exit("the configuration asks for LoRA, and the model has no updates")

    return Updates


def noise_by_document():
    """NEFTune's noise is scaled by each document's own length; transformers takes that of the whole packed row."""
    import torch
    import transformers.integrations.neftune
    from transformers import TrainerCallback

    seen = {}

    def hook(module, inputs, output):
        if not module.training:
            return output
        documents = (seen["positions"].reshape(-1) == 0).cumsum(0)
        lengths = torch.bincount(documents)[documents].reshape(seen["positions"].shape)
        scale = module.neftune_noise_alpha / (lengths * output.size(-1)).to(output.dtype).sqrt()
        return output + torch.empty_like(output).uniform_(-1, 1) * scale.unsqueeze(-1)

    class Positions(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            look = lambda module, inputs, named: seen.update(positions=named["position_ids"])
            model.register_forward_pre_hook(look, with_kwargs=True)

    transformers.integrations.neftune.neftune_post_forward_hook = hook
    return Positions


def set_up_axolotl(config):
    """What axolotl has no key for (of pairs no key of the best weights), and TRL's configuration says."""
    import axolotl.utils.config
    import torch
    from axolotl.core.trainers.base import AxolotlTrainer
    from transformers import Trainer

    resolve = axolotl.utils.config.resolve_dtype

    def with_f32_masters(resolved):
        resolve(resolved)
        resolved.torch_dtype = torch.float32

    begin = Trainer.__init__

    def in_order_and_aloud(self, *given, **named):
        args = named["args"] if "args" in named else given[1]
        args.train_sampling_strategy, args.logging_nan_inf_filter = "sequential", False
        args.average_tokens_across_devices = args.world_size > 1
        args.warmup_steps = config["warmup_steps"]  # of 1 it makes 2
        if config.get("load_best_model_at_end"):
            args.load_best_model_at_end, args.metric_for_best_model, args.greater_is_better = True, "eval_loss", False
        begin(self, *given, **named)

    begin_sft = AxolotlTrainer.__init__

    def mean_over_all_targets(self, *given, **named):
        begin_sft(self, *given, **named)
        self.model_accepts_loss_kwargs = True

    axolotl.utils.config.resolve_dtype = with_f32_masters
    Trainer.__init__, AxolotlTrainer.__init__ = in_order_and_aloud, mean_over_all_targets


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
    engine = module.split(".")[0]
    versions = check_versions(engine)
    import yaml

    path = pathlib.Path(rest[rest.index("--config") + 1])
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    expected = json.loads(path.with_name("expected.json").read_text(encoding="utf-8"))
    work = pathlib.Path(config["output_dir"])
    os.environ["HF_DATASETS_CACHE"] = str(work / ".datasets")
    import transformers.trainer

    callbacks = [watch(work, versions, path.parent)]
    train_no_further()
    if expected["stage"]["kind"] == "dpo":
        take_rendered_pairs()
        layers = (config.get("fsdp_config") or {}).get("transformer_layer_cls_to_wrap", [])
        shard_reference_by_layer([layers] if isinstance(layers, str) else layers)
    settings, chunks = expected["stage"]["config"], expected.get("chunks")
    has_floor = settings["schedule"] == "linear" and settings["lr_floor"] > 0
    if chunks or has_floor:
        own_curve(chunks, settings["lr_floor"] if has_floor else 0.0)
    if chunks:
        callbacks.append(moments_anew(chunks))
    if settings.get("nll_weight"):
        mean_over_all_chosen_tokens(settings["nll_weight"])
    if expected["evaluates_held_out"]:
        if engine == "trl":
            give_held_out(pathlib.Path(config["datasets"][0]["data_files"]).with_name("held_out.jsonl"))
        evaluate_held_out(settings.get("nll_weight", 0.0))
        note_what_is_loaded()
        if settings["patience"] > 0:
            callbacks.append(stop_without_better(settings["patience"]))
    if settings.get("lora"):
        callbacks.append(start_updates(settings["lora"], settings["seed"]))
    if config.get("neftune_noise_alpha"):
        callbacks.append(noise_by_document())
    if engine == "axolotl":
        set_up_axolotl(config)
    transformers.trainer.DEFAULT_CALLBACKS.extend(callbacks)
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
