"""Reads what `aloe export` writes with the libraries that it is for: huggingface_hub for the Hub's two forms, lm-evaluation-harness's own table, csv.

Python 3.11, huggingface_hub 1.x, lm-eval 0.4.13, PyYAML 6.
Run: python oracles/export_forms.py ALOE RUN      (RUN: the output folder of an evaluation with a comparable figure; prints what was read, exits 1 on a difference)
"""

import csv
import io
import json
import pathlib
import subprocess
import sys

import yaml
from huggingface_hub import parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results
from lm_eval.utils import make_table


def export(aloe, run, form, *more):
    return subprocess.run([aloe, "export", run, "--format", form, *more], check=True, capture_output=True, text=True).stdout


def main():
    aloe, run = sys.argv[1:3]
    results = json.loads((pathlib.Path(run) / "results.json").read_text())
    comparable = {task["task"]: task for task in results["tasks"] if task["comparability"] == "comparable"}
    assert comparable, "no figure of this run is comparable"

    entries = parse_eval_result_entries(yaml.safe_load(export(aloe, run, "eval-results")))
    assert {entry.task_id for entry in entries} == set(comparable), entries
    for entry in entries:
        assert abs(entry.value - 100 * comparable[entry.task_id]["acc"]["value"]) < 0.0051, entry
        assert entry.date and entry.notes, entry

    index = yaml.safe_load(export(aloe, run, "model-index", "--repo", "me/model"))["model-index"]
    name, found = model_index_to_eval_results(index)
    assert name == "me/model" and len(found) == len(comparable), found
    for one in found:
        assert abs(one.metric_value - 100 * comparable[one.dataset_name]["acc"]["value"]) < 0.0051, one

    harness = json.loads(export(aloe, run, "lm-eval"))
    print(make_table(harness))
    for task in results["tasks"]:
        assert harness["results"][task["task"]]["acc,none"] == task["acc"]["value"]
        assert harness["results"][task["task"]]["acc_stderr,none"] == task["acc"]["stderr"]

    rows = list(csv.DictReader(io.StringIO(export(aloe, run, "csv"))))
    assert [row["name"] for row in rows][: len(results["tasks"])] == [task["task"] for task in results["tasks"]]
    for row, task in zip(rows, results["tasks"]):
        assert float(row["acc"]) == task["acc"]["value"] and row["comparability"] == task["comparability"], row
    print(export(aloe, run, "markdown"))
    print(export(aloe, run, "latex"))
    print(f"{len(entries)} entries, {len(found)} of model-index, {len(rows)} rows: equal")


main()
