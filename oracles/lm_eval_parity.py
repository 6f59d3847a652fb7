"""Golden prompts and log-probabilities of lm-evaluation-harness's own tasks on local files.

Pinned: python 3.11, lm-eval 0.4.13, torch 2.15, transformers 5.23, tokenizers 0.23. Seeds: the harness's own (few-shot 1234).
The harness's task folders are copied and only `dataset_path` is changed, to JSON lines made from $ALOE_DATA in the Hub's columns, so
prompts, targets and few-shot draws are the harness's. Model: SmolLM2-135M-Instruct (Q4_1 GGUF) dequantised to f32, backend `hf`, f32.
transformers 5.23 forgets that this tokenizer splits numbers into digits (`tokenizer.ggml.pre` is "smollm"); the script puts that back.

Writes crates/aloe-eval/tests/golden/lm_eval_TASK_SHOTS.json: per question the first 16 hex digits of the prompt's sha256, its length in
ids, the log-probability of each option and the harness's verdict. With --prompts only the digests are written (no model).

With --whole the runs of WHOLE are made instead, whole sets where there is time for them, into lm_eval_whole_TASK_SHOTS[_chat].json: the same
keys, log-probabilities to 4 decimals, the verdict as 0 or 1, and `results` with acc, acc_norm and their standard errors as the harness has
them. `chat` is --apply_chat_template. A run whose file is there is kept, so that a stopped queue goes on where it was.
`shots_from` names the split of the examples: careqa_en has only its test split, and the harness then draws from the questions under test.
Run: ALOE_MODELS=.. ALOE_DATA=.. python oracles/lm_eval_parity.py [--prompts | --whole] [TASK:SHOTS[:chat[:LIMIT]] ...]
"""

import csv
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import lm_eval
import torch
import yaml
from lm_eval.tasks import TaskManager

LIMIT = int(os.environ.get("ORACLE_LIMIT", "200"))
DATA = pathlib.Path(os.environ["ALOE_DATA"])
MODELS = pathlib.Path(os.environ["ALOE_MODELS"])
HF = MODELS.parent / "hf" / "smollm2-f32"
OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/aloe-eval/tests/golden"
RUNS = ["medqa_4options:0", "medmcqa:0", "pubmedqa:0", "mmlu_anatomy:0", "mmlu_anatomy:5", "careqa_en:0", "medqa_4options:5"]
SUBJECTS = ["anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics", "professional_medicine"]
MMLU = [f"mmlu_{subject}" for subject in SUBJECTS]
# (task, most questions asked), the cheap sets first.
SIZES = [("medmcqa", 500), ("careqa_en", 500)] + [(task, 1000) for task in MMLU + ["medqa_4options", "pubmedqa"]]
WHOLE = [f"{task}:0:plain:{limit}" for task, limit in SIZES]
WHOLE += [f"{task}:0:chat:200" for task, _ in SIZES]
WHOLE += [f"{task}:5:plain:{limit}" for task, limit in SIZES if task != "careqa_en"] + ["careqa_en:5:plain:500"]
PROMPTS_ONLY = [f"{task}:5:chat:50" for task, _ in SIZES] + [f"{task}:{k}:system:50" for task in ("medqa_4options", "mmlu_anatomy") for k in (0, 5)]
SYSTEM = "Answer as a careful doctor would."


def lines(path):
    return [json.loads(line) for line in open(path, encoding="utf-8") if line.strip()]


def medqa(path):
    """GBaker's -hf columns."""
    rows = []
    for i, d in enumerate(lines(path)):
        row = {"id": str(i), "sent1": d["question"], "sent2": "", "label": "ABCD".index(d["answer_idx"])}
        rows.append(row | {f"ending{j}": d["options"]["ABCD"[j]] for j in range(4)})
    return rows


def mmlu(subject, split):
    with open(DATA / f"mmlu_medical/data/{split}/{subject}_{split}.csv", newline="", encoding="utf-8") as file:
        return [{"question": r[0], "choices": r[1:5], "answer": "ABCD".index(r[5])} for r in csv.reader(file)]


def pubmedqa(path, keep=None):
    rows = json.load(open(DATA / "pubmedqa" / path, encoding="utf-8"))
    names = ["QUESTION", "CONTEXTS", "final_decision"]
    return [{name: d[name] for name in names} for pmid, d in rows.items() if keep is None or pmid in keep]


def splits(task):
    if task == "medqa_4options":
        return {"train": medqa(DATA / "medqa/train_part_4_options.jsonl"), "validation": medqa(DATA / "medqa/dev_4_options.jsonl"),
                "test": medqa(DATA / "medqa/phrases_no_exclude_test.jsonl")}
    if task == "medmcqa":
        import pyarrow.parquet as parquet

        keep = ["question", "opa", "opb", "opc", "opd", "cop"]
        test = parquet.read_table(DATA / "medmcqa/validation-00000-of-00001.parquet").to_pylist()
        train = lines(DATA / "medmcqa/train_sample.jsonl")
        return {"train": [{k: d[k] for k in keep} for d in train], "validation": [{k: d[k] for k in keep} for d in test]}
    if task == "pubmedqa":
        test = json.load(open(DATA / "pubmedqa/test_ground_truth.json"))
        return {"train": pubmedqa("pqal_fold0/train_set.json"), "validation": pubmedqa("pqal_fold0/dev_set.json"),
                "test": pubmedqa("ori_pqal.json", test)}
    if task in MMLU:
        subject = task.removeprefix("mmlu_")
        return {"test": mmlu(subject, "test"), "validation": mmlu(subject, "val"), "dev": mmlu(subject, "dev")}
    if task == "careqa_en":
        return {"test": json.load(open(DATA / "careqa/CareQA_en.json", encoding="utf-8"))}
    raise SystemExit(f"unknown task {task}")


FOLDERS = {"medqa_4options": ("medqa", "medqa.yaml"), "medmcqa": ("medmcqa", "medmcqa.yaml"), "pubmedqa": ("pubmedqa", "pubmedqa.yaml"),
           "careqa_en": ("careqa", "careqa_en.yaml")} | {task: ("mmlu/default", "_default_template_yaml") for task in MMLU}


def local_task(task, root):
    """The harness's folder with `dataset_path` pointed at local JSON lines."""
    folder, name = FOLDERS[task]
    source = pathlib.Path(lm_eval.__file__).parent / "tasks" / folder
    target = root / task
    target.mkdir()
    modules = {p.name for p in source.glob("*.py") if p.name not in ("utils_open.py", "utils_perplexity.py")}
    wanted = {name, f"{task}.yaml"} if task in MMLU else {name} | modules
    for file in wanted:
        shutil.copy(source / file, target / file)
    files = {}
    for split, rows in splits(task).items():
        files[split] = str(target / f"{split}.jsonl")
        with open(files[split], "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    text = (target / name).read_text()
    kept = [line for line in text.splitlines() if not line.startswith(("dataset_path:", "dataset_name:"))]
    head = ["dataset_path: json", "dataset_kwargs: " + json.dumps({"data_files": files})]
    (target / name).write_text("\n".join(head + kept) + "\n")
    if task in MMLU:
        subject = (target / f"{task}.yaml").read_text()
        (target / f"{task}.yaml").write_text("\n".join(l for l in subject.splitlines() if '"dataset_name"' not in l) + "\n")


def model_folder():
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from tokenizers import pre_tokenizers

    if not (HF / "config.json").exists():
        gguf = str(MODELS / "smollm2-135m-instruct-q4_1")
        model = AutoModelForCausalLM.from_pretrained(gguf, gguf_file="model.gguf", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf, gguf_file="model.gguf")
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
        config = model.config.to_dict()
        config.pop("quantization_config", None)
        plain = AutoModelForCausalLM.from_config(type(model.config).from_dict(config), dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(HF)
        tokenizer.save_pretrained(HF)
    tokenizer = AutoTokenizer.from_pretrained(HF)
    assert len(tokenizer("2024", add_special_tokens=False)["input_ids"]) == 4, "digits are not split"
    return str(HF)


def digest(text):
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@functools.cache
def model_that_does_not_answer():
    """The harness's model, whose tokenizer renders chats, without a pass through it."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=model_folder(), dtype="float32", device="cpu")
    model.loglikelihood = lambda requests, **_: [(0.0, False)] * len(requests)
    return model


def measure(task, shots, form, limit, batch, root, prompts_only):
    manager = TaskManager(include_path=str(root / task), include_defaults=False)
    model, args = (model_that_does_not_answer(), None) if prompts_only else ("hf", f"pretrained={model_folder()},dtype=float32")
    return lm_eval.simple_evaluate(model=model, model_args=args, tasks=[task], num_fewshot=shots, limit=limit, batch_size=batch,
                                   device="cpu", log_samples=True, apply_chat_template=form != "plain",
                                   system_instruction=SYSTEM if form == "system" else None, task_manager=manager)


def requests_of(sample):
    """(context, continuation) of each option."""
    requests = sample["arguments"]
    requests = requests.values() if isinstance(requests, dict) else requests
    return [tuple(r.values())[:2] if isinstance(r, dict) else tuple(r)[:2] for r in requests]


def run(task, shots, form, limit, root, prompts_only, decimals, path):
    started = time.time()
    batch = 4 if decimals == 4 and shots == 0 else 1  # Short prompts one by one leave most of the time to reading the weights.
    result = measure(task, shots, form, limit, batch, root, prompts_only)
    tokenizer = None
    if not prompts_only:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(HF)
    rows = []
    for sample in sorted(result["samples"][task], key=lambda s: s["doc_id"]):
        requests = requests_of(sample)
        contexts = {r[0] for r in requests}
        assert len(contexts) == 1
        continuations = [r[1] for r in requests]
        context = contexts.pop()
        row = {"prompt": digest(context)[:16]}
        if not prompts_only:
            row["n_ids"] = len(tokenizer(context)["input_ids"])
            row["logps"] = [round(float(resp[0][0]), decimals) for resp in sample["resps"]]
            row["acc"] = sample["acc"] if decimals == 5 else int(sample["acc"])
        rows.append(row)
    golden = {"versions": "lm-eval 0.4.13, torch 2.15, transformers 5.23", "task": task, "shots": shots, "limit": limit}
    if decimals == 4:
        source = {"medqa_4options": "train", "medmcqa": "train", "pubmedqa": "train", "careqa_en": "test"}.get(task, "dev")
        golden |= {"chat": form != "plain", "system": SYSTEM if form == "system" else None, "shots_from": source if shots else None}
    if not prompts_only:
        measured = result["results"][task]
        golden["results"] = {k: v for k, v in measured.items() if k.startswith("acc") and isinstance(v, float)}
    golden |= {"continuations": continuations, "rows": rows}
    OUT.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    path.with_suffix(".part").rename(path)
    if not prompts_only:
        path.with_name(path.stem + "_prompts.json").unlink(missing_ok=True)
    print(task, shots, form, len(rows), golden.get("results"), f"{time.time() - started:.0f} s", flush=True)


def main():
    flags = [a for a in sys.argv[1:] if a.startswith("--")]
    whole, prompts_only = "--whole" in flags, "--prompts" in flags
    arguments = [a for a in sys.argv[1:] if not a.startswith("--")] or ((WHOLE + PROMPTS_ONLY if prompts_only else WHOLE) if whole else RUNS)
    torch.set_num_threads(int(os.environ.get("ORACLE_THREADS", "1")))
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for argument in arguments:
            task, shots, form, limit = (argument.split(":") + ["plain", str(LIMIT)][argument.count(":") - 1:])[:4]
            name = f"lm_eval_{'whole_' if whole else ''}{task}_{shots}" + ("" if form == "plain" else f"_{form}")
            path = OUT / f"{name}{'_prompts' if prompts_only else ''}.json"
            if whole and (path.exists() or (OUT / f"{name}.json").exists()):
                print("kept", path.name, flush=True)
                continue
            if not (root / task).exists():
                local_task(task, root)
            run(task, int(shots), form, int(limit), root, prompts_only, 4 if whole else 5, path)


if __name__ == "__main__":
    main()
