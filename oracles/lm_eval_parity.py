"""Golden prompts and log-probabilities of lm-evaluation-harness's own tasks on local files.

Pinned: python 3.11, lm-eval 0.4.13, torch 2.15, transformers 5.23, tokenizers 0.23. Seeds: the harness's own (few-shot 1234).
The harness's task folders are copied and only `dataset_path` is changed, to JSON lines made from $ALOE_DATA in the Hub's columns, so
prompts, targets and few-shot draws are the harness's. Model: SmolLM2-135M-Instruct (Q4_1 GGUF) dequantised to f32, backend `hf`, f32.
transformers 5.23 forgets that this tokenizer splits numbers into digits (`tokenizer.ggml.pre` is "smollm"); the script puts that back.

Writes crates/aloe-eval/tests/golden/lm_eval_TASK_SHOTS.json: per question the first 16 hex digits of the prompt's sha256, its length in
ids, the log-probability of each option and the harness's verdict. With --prompts only the digests are written (no model).
Run: ALOE_MODELS=.. ALOE_DATA=.. python oracles/lm_eval_parity.py [--prompts] [TASK:SHOTS ...]
"""

import csv
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile

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


def lines(path):
    return [json.loads(line) for line in open(path, encoding="utf-8") if line.strip()]


def medqa(path):
    """GBaker's -hf columns."""
    rows = []
    for i, d in enumerate(lines(path)):
        row = {"id": str(i), "sent1": d["question"], "sent2": "", "label": "ABCD".index(d["answer_idx"])}
        rows.append(row | {f"ending{j}": d["options"]["ABCD"[j]] for j in range(4)})
    return rows


def mmlu(split):
    with open(DATA / f"mmlu_medical/data/{split}/anatomy_{split}.csv", newline="", encoding="utf-8") as file:
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
    if task == "mmlu_anatomy":
        return {"test": mmlu("test"), "validation": mmlu("val"), "dev": mmlu("dev")}
    if task == "careqa_en":
        return {"test": json.load(open(DATA / "careqa/CareQA_en.json", encoding="utf-8"))}
    raise SystemExit(f"unknown task {task}")


FOLDERS = {"medqa_4options": ("medqa", "medqa.yaml"), "medmcqa": ("medmcqa", "medmcqa.yaml"), "pubmedqa": ("pubmedqa", "pubmedqa.yaml"),
           "careqa_en": ("careqa", "careqa_en.yaml"), "mmlu_anatomy": ("mmlu/default", "_default_template_yaml")}


def local_task(task, root):
    """The harness's folder with `dataset_path` pointed at local JSON lines."""
    folder, name = FOLDERS[task]
    source = pathlib.Path(lm_eval.__file__).parent / "tasks" / folder
    target = root / task
    target.mkdir()
    wanted = {name, "mmlu_anatomy.yaml"} if task == "mmlu_anatomy" else {name} | {p.name for p in source.glob("*.py") if p.name not in ("utils_open.py", "utils_perplexity.py")}
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
    if task == "mmlu_anatomy":
        subject = (target / "mmlu_anatomy.yaml").read_text()
        (target / "mmlu_anatomy.yaml").write_text("\n".join(l for l in subject.splitlines() if '"dataset_name"' not in l) + "\n")


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


def run(task, shots, root, prompts_only):
    manager = TaskManager(include_path=str(root / task), include_defaults=False)
    model, args = ("dummy", "") if prompts_only else ("hf", f"pretrained={model_folder()},dtype=float32")
    result = lm_eval.simple_evaluate(model=model, model_args=args, tasks=[task], num_fewshot=shots, limit=LIMIT, batch_size=1,
                                     device="cpu", log_samples=True, bootstrap_iters=0, task_manager=manager)
    tokenizer = None
    if not prompts_only:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(HF)
    rows = []
    for sample in sorted(result["samples"][task], key=lambda s: s["doc_id"]):
        requests = sample["arguments"]
        requests = [tuple(r.values())[:2] if isinstance(r, dict) else tuple(r)[:2] for r in (requests.values() if isinstance(requests, dict) else requests)]
        contexts = {r[0] for r in requests}
        assert len(contexts) == 1
        continuations = [r[1] for r in requests]
        context = contexts.pop()
        row = {"prompt": digest(context)[:16]}
        if not prompts_only:
            logps = [float(resp[0][0]) for resp in sample["resps"]]
            row["n_ids"] = len(tokenizer(context)["input_ids"])
            row["logps"] = [round(x, 5) for x in logps]
            row["acc"] = sample["acc"]
        rows.append(row)
    golden = {"versions": "lm-eval 0.4.13, torch 2.15, transformers 5.23", "task": task, "shots": shots, "limit": LIMIT, "continuations": continuations, "rows": rows}
    if not prompts_only:
        measured = result["results"][task]
        golden["results"] = {k: v for k, v in measured.items() if k.startswith("acc") and isinstance(v, float)}
    OUT.mkdir(parents=True, exist_ok=True)
    suffix = "_prompts" if prompts_only else ""
    (OUT / f"lm_eval_{task}_{shots}{suffix}.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(task, shots, len(rows), golden.get("results"))


def main():
    arguments = [a for a in sys.argv[1:] if a != "--prompts"] or RUNS
    torch.set_num_threads(int(os.environ.get("ORACLE_THREADS", "1")))
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for argument in arguments:
            task, shots = argument.split(":")
            if not (root / task).exists():
                local_task(task, root)
            run(task, int(shots), root, "--prompts" in sys.argv)


if __name__ == "__main__":
    main()
