#!/usr/bin/env python3
"""Holds what `aloe-handoff` writes for TRL against TRL itself. Parts, each its own process:

    python oracles/engine_trl.py accept          every configuration of tests/engine_cases through TRL's own parser -> tests/golden/engine_trl.json
    python oracles/engine_trl.py losses [KIND..] SFT, DPO, DPO in two chunks, SFT and DPO with LoRA, and with held-out rows, ten steps, f32, CPU: TRL started by engine.py with engine.yaml from the
                                                 run folder, our trainer on the same rows; losses, the movement of every tensor, the checker's verdict and the
                                                 import of TRL's folder; again with two processes -> tests/golden/trl_losses.json
    python oracles/engine_trl.py faults          a run that is resumed from an earlier checkpoint (before, within and after a chunk) ends with the
                                                 uninterrupted one's bytes and is accepted; one that starts from a NaN stops, is refused, and saves no
                                                 model; one that is asked to stop saves its step, ends, and goes on to the same bytes, with two
                                                 processes too, and within an evaluation of the start, of a step, of the last one and of that
                                                 where patience runs out; one whose best checkpoint is gone ends at once, and so does one
                                                 whose loss spikes
    python oracles/engine_trl.py noise           NEFTune's noise by document
    python oracles/engine_trl.py rows            2,000 conversations (several turns, system messages, all scripts, empty questions and answers), or
                                                 with --data FOLDER/train.jsonl the first 2,000 that a data stage wrote, with SmolLM2's template,
                                                 ChatML and Llama 3: TRL's own preparation of messages.jsonl with the marked template against our
                                                 ids and labels

Build first: cargo build --release -p aloe-handoff --examples. `rows` needs ALOE_MODELS and ALOE_DATA.
Pinned: python 3.11, trl 1.16.0, transformers 5.23.0, accelerate 1.15.0, torch 2.15.0, datasets 5.2.0. Seed of the made rows: 5.
GPU keys cannot be judged without a GPU: `accept` sets `bf16` to false in the text that the parser reads and leaves all else.
"""

import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES = ROOT / "target/release/examples"
GOLDEN = ROOT / "crates/aloe-handoff/tests/golden"


def versions():
    import accelerate
    import transformers
    import trl

    return {module.__name__: module.__version__ for module in (trl, transformers, accelerate)}


def accept():
    from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

    cases = json.loads(subprocess.run([EXAMPLES / "engine_cases"], check=True, capture_output=True).stdout)
    for name, text in cases.items():
        config = SFTConfig if name.startswith("sft") else DPOConfig
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text.replace("\nbf16: true\n", "\nbf16: false\n"))
            file.flush()
            parser = TrlParser((ScriptArguments, config, ModelConfig, DatasetMixtureConfig))
            script, args, model, mixture = parser.parse_args_and_config(["--config", file.name], fail_with_unknown_args=True)
        # What was parsed is what was meant, not only something.
        assert args.logging_nan_inf_filter is False and args.max_steps == 240 and model.dtype == "float32", name
        assert isinstance(args.learning_rate, float) and isinstance(args.warmup_steps, (int, float)), name
        assert mixture.datasets[0].data_files.endswith("rendered.jsonl"), name
        if "fsdp:" in text:
            assert args.fsdp is True and args.fsdp_plugin_args["fsdp_version"] == 2, (name, args.fsdp_plugin_args)
            assert args.fsdp_plugin_args["transformer_cls_names_to_wrap"].endswith("DecoderLayer"), name
        print("accepted", name)
    golden = {"versions": versions(), "accepted": cases}
    (GOLDEN / "engine_trl.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(len(cases), "configurations accepted by TRL's parser")


def command_of(run, kind, n_processes, *more):
    stage = f"stages/01-{kind}"
    torchrun = pathlib.Path(sys.executable).parent / "torchrun"
    module = "trl.scripts.sft" if kind in ("sft", "lora", "held", "patience") else "trl.scripts.dpo"
    command = [torchrun, "--standalone", f"--nproc-per-node={n_processes}", f"{stage}/engine.py", module, "--config", f"{stage}/engine.yaml"]
    return [*command, *more]


def start(run, kind, n_processes, *more):
    return subprocess.run(command_of(run, kind, n_processes, *more), cwd=run, capture_output=True, text=True)


def begun(run, kind, n_processes, *more):
    """The same, which is not waited for: its errors go into a file, as nobody reads while it works."""
    with open(run / "said.txt", "w", encoding="utf-8") as said:
        return subprocess.Popen(command_of(run, kind, n_processes, *more), cwd=run, stdout=subprocess.DEVNULL, stderr=said)


def judged(run, kind):
    command = [EXAMPLES / "engine_run", "verify", run, f"stages/01-{kind}", f"work/{kind}", run / "out/tuned"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def faults():
    from safetensors.torch import load_file, save_file

    # The second chunk begins after step 5: a run resumed from step 4 still has to turn to it, one from step 8 has turned. With held-out rows the
    # best weights may be those of a checkpoint before the one that is gone on from, and none is evaluated twice.
    for kind, steps in (("chunks", [4, 8]), ("sft", [8]), ("lora", [4]), ("held", [6])):
        with tempfile.TemporaryDirectory() as folder:
            run = pathlib.Path(folder) / "run"
            subprocess.run([EXAMPLES / "engine_run", "write", run, kind, "1"], check=True)
            config = run / f"stages/01-{kind}/engine.yaml"
            config.write_text(re.sub(r"save_total_limit: \d", "save_total_limit: 9", config.read_text()))
            train(run, kind, 1)
            model = run / f"work/{kind}/{'adapter_' if kind == 'lora' else ''}model.safetensors"
            whole = model.read_bytes()
            for at, step in enumerate(steps):
                (run / f"work/{kind}/MANIFEST.json").unlink(missing_ok=True)  # the seal of the check before
                done = start(run, kind, 1, "--resume_from_checkpoint", f"work/{kind}/checkpoint-{step}")
                assert done.returncode == 0, done.stderr[-3000:]
                said = judged(run, kind)
                is_same = model.read_bytes() == whole
                print(f"{kind}, resumed from step {step}:", "the same bytes" if is_same else "OTHER BYTES", said["findings"] or "good", "sessions", said["facts"]["n_sessions"])
                assert is_same and not said["findings"] and said["facts"]["n_sessions"] == at + 2
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        subprocess.run([EXAMPLES / "engine_run", "write", run, "sft", "1"], check=True)
        path = run / "out/base/model.safetensors"
        tensors = load_file(path)
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
        save_file(tensors, path, metadata={"format": "pt"})
        done = start(run, "sft", 1)
        said = judged(run, "sft")
        model = (run / "work/sft/model.safetensors").exists()
        print("a NaN in the start: exit code", done.returncode, "| model saved:", model, "|", [line for line in done.stderr.splitlines() if "not finite" in line], "|", said["findings"][:3])
        assert done.returncode != 0 and not model and said["findings"]
    for kind, n_processes in (("sft", 1), ("dpo", 2)):
        stopped(kind, n_processes)
    for kind, n_processes, steps in (("held", 1, (3, 10)), ("patience", 1, (6,)), ("held-dpo", 2, (4,))):
        stopped_in_evaluations(kind, n_processes, steps)
    best_is_gone()
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        subprocess.run([EXAMPLES / "engine_run", "write", run, "sft", "1"], check=True)
        engine = run / "stages/01-sft/engine.py"
        # Ten steps are too few for the rule: here everything is a spike from the fifth step on.
        engine.write_text(engine.read_text().replace("len(values) < 64", "len(values) < 4").replace("return mean + 6.0", "return mean - 9.0"))
        done = start(run, "sft", 1)
        said = [line for line in done.stderr.splitlines() if "six sigma" in line]
        print("a spike:", said)
        assert done.returncode != 0 and "step 5: " in said[0] and not (run / "work/sft/model.safetensors").exists()


def stopped(kind, n_processes):
    """A training that is asked to stop before its first step saves it and ends; it goes on from there to the uninterrupted one's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [pathlib.Path(folder) / name for name in ("whole", "stopped")]
        for run in runs:
            subprocess.run([EXAMPLES / "engine_run", "write", run, kind, str(n_processes)], check=True)
        train(runs[0], kind, n_processes)
        work = runs[1] / "work" / kind
        work.mkdir(parents=True)
        (work / "STOP").touch()
        done = start(runs[1], kind, n_processes)
        events = [json.loads(line) for line in (work / "sessions.jsonl").read_text().splitlines()]
        assert done.returncode != 0 and "saved and stopped" in done.stderr and not (work / "model.safetensors").exists(), done.stderr[-3000:]
        assert [(event["event"], event["step"]) for event in events] == [("begin", 0), ("stop", 1)], events
        assert json.loads((work / "checkpoint-1/MANIFEST.json").read_text())["step"] == 1
        (work / "STOP").unlink()
        done = start(runs[1], kind, n_processes, "--resume_from_checkpoint", f"work/{kind}/checkpoint-1")
        assert done.returncode == 0, done.stderr[-3000:]
        same = (work / "model.safetensors").read_bytes() == (runs[0] / "work" / kind / "model.safetensors").read_bytes()
        print(f"{kind}, {n_processes} processes, stopped after step 1 and gone on:", "the same bytes" if same else "OTHER BYTES")
        assert same


def stopped_in_evaluations(kind, n_processes, steps):
    """A training whose evaluations take long is asked to stop in that of the start, in those of `steps`, and in the first of these once more as
    soon as it goes on: each session ends at its step within seconds, and the last one ends with the uninterrupted one's bytes and figures."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [pathlib.Path(folder) / name for name in ("whole", "stopped")]
        for run in runs:
            subprocess.run([EXAMPLES / "engine_run", "write", run, kind, str(n_processes)], check=True)
        train(runs[0], kind, n_processes)
        run, work = runs[1], runs[1] / "work" / kind
        engine = run / f"stages/01-{kind}/engine.py"
        row = "                if is_stopped := "
        assert engine.read_text().count(row) == 1
        quick = engine.read_text()
        engine.write_text(quick.replace(row, "                time.sleep(1)\n" + row))
        work.mkdir(parents=True)
        seconds, more = [], []
        for at, step in enumerate([0, *steps[:1], *steps]):
            waits = at != 2  # the third is asked before it begins
            (work / "STOP").touch() if step == 0 or not waits else (work / "STOP").unlink()
            session = begun(run, kind, n_processes, *more)
            while step > 0 and waits and session.poll() is None and not is_logged(work, step):
                time.sleep(0.1)
            asked = time.perf_counter()
            (work / "STOP").touch()
            session.wait()
            said = (run / "said.txt").read_text()
            seconds += [time.perf_counter() - asked] if waits and step > 0 else []
            assert session.returncode != 0 and f"step {step}: {'saved and ' if step else ''}stopped, as was asked" in said, said[-3000:]
            event = json.loads((work / "sessions.jsonl").read_text().splitlines()[-1])
            assert (event["event"], event["step"]) == ("stop", step), event
            assert step > 0 or not list(work.glob("checkpoint-*"))
            if step > 0:
                checkpoint = work / f"checkpoint-{step}"
                assert json.loads((checkpoint / "MANIFEST.json").read_text())["step"] == step
                history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
                assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, step + 1))
                assert step not in [entry["step"] for entry in history if "eval_loss" in entry]
                more = ["--resume_from_checkpoint", f"work/{kind}/checkpoint-{step}"]
        engine.write_text(quick)
        (work / "STOP").unlink()
        done = start(run, kind, n_processes, *more)
        assert done.returncode == 0, done.stderr[-3000:]
        is_same = (work / "model.safetensors").read_bytes() == (runs[0] / "work" / kind / "model.safetensors").read_bytes()
        is_same_said = figures(run, kind) == figures(runs[0], kind)
        said = judged(run, kind)
        findings = [finding for finding in said["findings"] if "n_hosts" not in finding]
        print(f"{kind}, {n_processes} processes, stopped in the evaluations of the start and of {steps}, {max(seconds):.0f} s after it was asked at most:",
              "the same bytes" if is_same else "OTHER BYTES", "and figures" if is_same_said else "OTHER FIGURES", findings or "good", "sessions", said["facts"]["n_sessions"])
        assert is_same and is_same_said and not findings


def is_logged(work, step):
    """Whether a step's loss is in the log: its evaluation is what comes next."""
    path = work / "log.jsonl"
    return path.exists() and any(entry["step"] == step and "loss" in entry for entry in map(json.loads, path.read_text().splitlines()))


def figures(run, kind):
    """The figures of steps and evaluations that the checker takes over."""
    state = json.loads((run / f"work/{kind}/trainer_state.json").read_text())
    is_kept = lambda key: key in ("step", "loss", "grad_norm", "learning_rate") or key.startswith("eval_")
    return [{key: value for key, value in entry.items() if is_kept(key)} for entry in state["log_history"] if "loss" in entry or "eval_loss" in entry]


def best_is_gone():
    """A training that goes on from step 6, where the checkpoint with the best weights so far was removed, ends before it trains. One whose best
    checkpoint holds no weights when they are wanted ends without a model."""
    with tempfile.TemporaryDirectory() as folder:
        run, kind = pathlib.Path(folder) / "run", "held"
        subprocess.run([EXAMPLES / "engine_run", "write", run, kind, "1"], check=True)
        config = run / f"stages/01-{kind}/engine.yaml"
        config.write_text(re.sub(r"save_total_limit: \d", "save_total_limit: 9", config.read_text()))
        train(run, kind, 1)
        work = run / "work" / kind
        state_of = work / "checkpoint-6/trainer_state.json"
        state = json.loads(state_of.read_text())
        best = state["best_global_step"]
        assert best in (3, 6), best
        (work / "model.safetensors").unlink()
        aside = work / "aside"
        (work / f"checkpoint-{best}").rename(aside)
        # The one that is gone on from is a copy, where that is the best.
        again = work / ("checkpoint-6" if best == 3 else "copy")
        if best == 6:
            shutil.copytree(aside, again)
        done = start(run, kind, 1, "--resume_from_checkpoint", f"work/{kind}/{again.name}")
        said = [line for line in done.stderr.splitlines() if "is gone" in line]
        print("the best checkpoint is gone:", said)
        assert done.returncode != 0 and len(said) == 1 and f"checkpoint-{best} is gone" in said[0], done.stderr[-3000:]
        assert not (work / "model.safetensors").exists()
        # Its folder is there and holds no weights.
        aside.rename(work / f"checkpoint-{best}")
        engine = run / f"stages/01-{kind}/engine.py"
        loads = "        load(self)\n        folder = "
        assert engine.read_text().count(loads) == 1
        empty = "        [path.unlink() for path in pathlib.Path(self.state.best_model_checkpoint).glob('*.safetensors')]\n"
        engine.write_text(engine.read_text().replace(loads, empty + loads))
        done = start(run, kind, 1, "--resume_from_checkpoint", f"work/{kind}/{again.name}")
        said = [line for line in done.stderr.splitlines() if "could not be loaded" in line]
        print("the best checkpoint lost its weights:", said)
        assert done.returncode != 0 and len(said) == 1 and not (work / "model.safetensors").exists(), done.stderr[-3000:]


def train(run, kind, n_processes):
    done = start(run, kind, n_processes)
    if done.returncode:
        sys.exit(f"{kind}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    state = json.loads((run / f"work/{kind}/trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def held_out(run, kind):
    """What held-out rows said, as the engine logged it."""
    state = json.loads((run / f"work/{kind}/trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "eval_loss" in entry]


def farthest_held_out(run, kind):
    """The largest difference of a held-out loss from our own trainer's."""
    theirs = held_out(run, kind)
    lines = [json.loads(line) for line in (run / "ours/metrics.jsonl").read_text().splitlines()]
    key = "held_out_nll" if kind in ("held", "patience") else "held_out_loss"
    ours = [(line["step"], line[key]) for line in lines if key in line]
    print("  held out, theirs", [(entry["step"], round(entry["eval_loss"], 6)) for entry in theirs], "ours", [(step, round(loss, 6)) for step, loss in ours])
    assert [entry["step"] for entry in theirs] == [step for step, _ in ours]
    return max(abs(entry["eval_loss"] - loss) / loss for entry, (_, loss) in zip(theirs, ours))


def movement(run, kind):
    """The tensor whose movement differs most from ours, and by how much. Of low-rank updates those of B, which begins as zero, and of A
    all of it."""
    from safetensors.torch import load_file

    if kind.startswith("lora"):
        end, mine = load_file(run / f"work/{kind}/adapter_model.safetensors"), load_file(run / "ours/adapter/adapter_model.safetensors")
        assert end.keys() == mine.keys()
        moves = {name: ((end[name] - mine[name]).norm() / mine[name].norm()).item() for name in mine}
    else:
        start, end = load_file(run / "out/base/model.safetensors"), load_file(run / f"work/{kind}/model.safetensors")
        mine = load_file(run / "ours/master/model.safetensors")
        moves = {name: ((end[name] - mine[name]).norm() / (end[name] - start[name]).norm()).item() for name in start}
    return max(moves.items(), key=lambda item: item[1])


def losses():
    all_kinds = ("sft", "dpo", "chunks", "lora", "lora-dpo", "held", "patience", "held-dpo")
    kinds = sys.argv[2:] or all_kinds
    path = GOLDEN / "trl_losses.json"
    golden = {**(json.loads(path.read_text()) if sys.argv[2:] else {}), "versions": versions()}
    for kind in kinds:
        for n_processes in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                run = pathlib.Path(folder) / "run"
                subprocess.run([EXAMPLES / "engine_run", "write", run, kind, str(n_processes)], check=True)
                theirs = train(run, kind, n_processes)
                lines = [json.loads(line) for line in (run / "ours/metrics.jsonl").read_text().splitlines()]
                ours = [line["loss"] for line in lines if "loss" in line]
                worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
                tensor, move = movement(run, kind)
                said = judged(run, kind)
                print(f"{kind}, {n_processes} processes: worst loss difference {worst:.1e}, worst movement difference {move:.1e} ({tensor})")
                print("  TRL ", [round(loss, 6) for loss in theirs])
                print("  ours", [round(loss, 6) for loss in ours])
                print("  checker:", said["findings"] or "good", {key: said["facts"][key] for key in ("n_steps", "world_size", "n_hosts", "versions")})
                if "import" in said:
                    print("  import:", said["import"]["export"], "newest checkpoint", said["newest"])
                assert worst <= 1e-4 and move <= 1e-2
                # Two processes on this machine stand for two machines: the checker must say that there was one host, and nothing else.
                hosts = [finding for finding in said["findings"] if "n_hosts" not in finding]
                assert not hosts and len(said["findings"]) == n_processes - 1, said["findings"]
                if n_processes == 1:
                    golden[kind] = theirs
                if kind in ("held", "patience", "held-dpo"):
                    farthest = farthest_held_out(run, kind)
                    print(f"  held out: worst difference {farthest:.1e}, weights of step", said["facts"]["held_out"]["exported_step"])
                    assert farthest <= 1e-4
                    if n_processes == 1:
                        golden[f"{kind}, held out"] = held_out(run, kind)
    path.write_text(json.dumps(golden) + "\n")


def noise():
    """The hook that engine.py gives transformers, on packed rows: bounds and variance of each document's noise are those of its own length."""
    import importlib.util

    import torch
    import transformers.integrations.neftune as neftune

    spec = importlib.util.spec_from_file_location("engine", ROOT / "crates/aloe-handoff/src/engine/launcher.py")
    engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine)
    positions = engine.noise_by_document()()
    torch.manual_seed(5)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(9, 64)

        get_input_embeddings = lambda self: self.embedding
        forward = lambda self, input_ids, position_ids: self.embedding(input_ids)

    model = Model()
    neftune.activate_neftune(model, 5.0)
    positions.on_train_begin(None, None, None, model=model)
    lengths = [7, 400, 93, 1500]
    ids = torch.randint(0, 9, (1, sum(lengths)))
    at = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    found = model(input_ids=ids, position_ids=at) - model.embedding.weight[ids]
    for length, values in zip(lengths, found[0].split(lengths)):
        bound = 5.0 / (length * 64) ** 0.5
        off = (values.var() / (bound**2 / 3)).item() - 1
        spread = 5 * (4 / 45) ** 0.5 * 3 / values.numel() ** 0.5
        print(f"a document of {length}: largest {values.abs().max().item() / bound:.4f} of its bound, variance off by {off:+.4f} (5 sigma: {spread:.4f})")
        assert values.abs().max() <= bound * 1.0001 and abs(off) < spread
    model.eval()
    assert torch.equal(model(input_ids=ids, position_ids=at), model.embedding.weight[ids])


def made_rows():
    """Conversations from the published sets, in combinations that templates trip over."""
    data = pathlib.Path(os.environ["ALOE_DATA"])
    texts = []
    for line in open(data / "medquad/medquad_sample.jsonl", encoding="utf-8"):
        row = json.loads(line)
        texts += [text for text in (row.get("question"), row.get("answer")) if text]
    chat = json.load(open(data / "genmedgpt_5k/chatdoctor5k.json", encoding="utf-8"))
    texts += [text for row in chat for text in (row["input"], row["output"]) if text]
    texts = [text[:1200] for text in texts if text.strip()]
    odd = [
        "¿Qué dosis de paracetamol? 500 mg/8 h — máximo 4 g", "患者有发热和咳嗽三天。", "العلاج بالأنسولين", "पेट में दर्द", "β-blocker ≥ 2× ↑ K⁺ 😷🩺👩🏽‍⚕️",
        "line one\nline two\n\n\tindented\r\nwindows", "  leading and trailing  ", "e\u0301 vs é, ﬁ, \u200b zero width", "<b>bold</b> &amp; {{ braces }} {% tag %}",
        "1. a\n2. b\n- c", "\n", "a" * 300, "x^2 + y_1 = \\frac{1}{2}", "Q: 3.14e-5? A: 0,000 031 4", "\"quoted\" 'single' `code`", "\u00a0\u2003spaces\u3000",
    ]
    rng = random.Random(5)
    pick = lambda: rng.choice(odd) if rng.random() < 0.25 else rng.choice(texts)
    rows = []
    for at in range(2000):
        messages = []
        if rng.random() < 0.4:
            messages.append({"role": "system", "content": pick()})
        for _ in range(rng.choice([1, 1, 2, 3, 5])):
            messages.append({"role": "user", "content": "" if rng.random() < 0.02 else pick()})
            messages.append({"role": "assistant", "content": "" if rng.random() < 0.01 else pick()})
        rows.append({"messages": messages})
    return rows


def rows():
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    from trl import SFTConfig, SFTTrainer

    models = pathlib.Path(os.environ["ALOE_MODELS"])
    made = made_rows()
    if "--data" in sys.argv:
        path = sys.argv[sys.argv.index("--data") + 1]
        made = [{"messages": json.loads(line)["messages"]} for line in open(path, encoding="utf-8")][:2000]
    smollm2 = models / "smollm2-135m-instruct-q4_1/model.gguf"
    cases = [("SmolLM2's own template", smollm2, []), ("SmolLM2 with ChatML", smollm2, ["chatml"]), ("Llama 3", models / "llama3-tokenizer", ["llama3"])]
    for name, tokenizer_from, template in cases:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            source = folder / "rows.jsonl"
            source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
            given = tokenizer_from
            if given.is_dir():
                given = folder / "tokenizer"
                given.mkdir()
                (given / "tokenizer.json").write_bytes((tokenizer_from / "tokenizer.json").read_bytes())
                (given / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast"}))
            subprocess.run([EXAMPLES / "engine_run", "rows", folder / "out", given, source, *template], check=True)
            ours = [json.loads(line) for line in open(folder / "out/ours.jsonl")]
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "out")
            tokenizer.chat_template = (folder / "out/data/template.jinja").read_text()
            assert "{% generation %}" in tokenizer.chat_template, name
            kept = [at for at, row in enumerate(ours) if "refused" not in row]
            empty = [at for at, row in enumerate(made) if any(not m["content"].strip() for m in row["messages"] if m["role"] == "assistant")]
            refused = sorted(set(range(len(made))) - set(kept))
            reasons = {ours[at]["refused"] for at in refused}
            # TRL's own preparation, without its model: the method reads the trainer's template and tokenizer alone.
            trainer = SFTTrainer.__new__(SFTTrainer)
            trainer._tokenizer, trainer.chat_template, trainer.completion_only_loss = tokenizer, None, False
            args = SFTConfig(output_dir=str(folder / "x"), assistant_only_loss=True, max_length=None, bf16=False, report_to="none", use_cpu=True)
            prepared = trainer._prepare_dataset(Dataset.from_list([made[at] for at in kept]), tokenizer, args, False, None, "train")
            differ = [at for at, row in zip(kept, prepared, strict=True) if row["input_ids"] != ours[at]["input_ids"] or row["labels"] != ours[at]["labels"]]
            print(f"{name}: {len(kept)} of {len(made)} rows rendered, {len(kept) - len(differ)} with TRL's ids and labels; {len(refused)} refused: {sorted(reasons)}")
            # TRL tokenises the whole text, so an answer's first white space can join the prompt's last line break in a token that no prompt
            # ends with; ours begins a token where the answer begins, as the model will when it is asked.
            spaced = {at for at in kept if any(m["content"][:1].isspace() for m in made[at]["messages"] if m["role"] == "assistant")}
            print(f"  answers that begin with white space: {len(spaced)} rows; of the other {len(kept) - len(spaced)} rows {len(set(differ) - spaced)} differ")
            assert set(differ) <= spaced and set(refused) <= set(empty)
            print("  of", len(empty), "rows with an answer of white space alone,", len(set(empty) & set(refused)), "are refused;", len(set(refused) - set(empty)), "others are")


if __name__ == "__main__":
    {"accept": accept, "losses": losses, "faults": faults, "noise": noise, "rows": rows}[sys.argv[1]]()
