"""Writes crates/aloe-task/src/reported.txt: marks of the questions of the reported benchmark sets.

A mark is the first 12 hexadecimal digits of SHA-256(stem + "\n" + right option), both reduced to the lower-case ASCII letters and digits
in them. Every eighth question is kept: those whose next digit (the 13th) is 0 or 8. No text can be read back from them.

Usage: python3 oracles/reported_sets.py $ALOE_DATA > crates/aloe-task/src/reported.txt
Needs the standard library alone; made with Python 3.11.
"""

import csv
import hashlib
import json
import sys
from pathlib import Path

SUBJECTS = ["anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics", "professional_medicine"]
# CareQA's one row without text, as lm-evaluation-harness words it.
CAREQA = {
    "5636d1af-e0b1-43b0-8a04-6f127dcf6785": "In relation to the immune mechanism involved in the rejection of transplanted solid "
    "organs, indicate the incorrect answer:"
}


def plain(text):
    return "".join(c for c in text.lower() if c.isascii() and c.isalnum())


def lines(path):
    return [json.loads(line) for line in path.open(encoding="utf-8") if line.strip()]


def medqa(data, name):
    return [(row["question"], row["options"][row["answer_idx"]]) for row in lines(data / "medqa" / name)]


def medmcqa(data):
    return [(row["question"], row["op" + "abcd"[int(row["cop"]) - 1]]) for row in lines(data / "medmcqa/dev.json")]


def pubmedqa(data):
    rows = json.load((data / "pubmedqa/ori_pqal.json").open(encoding="utf-8"))
    test = json.load((data / "pubmedqa/test_ground_truth.json").open(encoding="utf-8"))
    return [(rows[pmid]["QUESTION"], rows[pmid]["final_decision"]) for pmid in test]


def mmlu(data):
    found = []
    for subject in SUBJECTS:
        with (data / f"mmlu_medical/data/test/{subject}_test.csv").open(encoding="utf-8", newline="") as file:
            found += [(row[0], row[1 + "ABCD".index(row[5].strip())]) for row in csv.reader(file)]
    return found


def careqa(data):
    rows = json.load((data / "careqa/CareQA_en.json").open(encoding="utf-8"))
    return [(row["question"] or CAREQA[row["unique_id"]], row[f"op{row['cop']}"]) for row in rows]


def main():
    data = Path(sys.argv[1])
    sets = {
        "MedQA test": medqa(data, "phrases_no_exclude_test.jsonl") + medqa(data, "US_test.jsonl"),
        "MedMCQA validation": medmcqa(data),
        "PubMedQA test": pubmedqa(data),
        "MMLU test": mmlu(data),
        "CareQA": careqa(data),
    }
    print("# Marks of every eighth question of the reported sets; written by oracles/reported_sets.py, read by reported.rs.")
    for name, questions in sets.items():
        digests = [hashlib.sha256(f"{plain(stem)}\n{plain(right)}".encode()).hexdigest() for stem, right in questions]
        marks = sorted({digest[:12] for digest in digests if digest[12] in "08"})
        print(f"# {name}: {len(marks)} marks of {len(set(digests))} questions")
        for start in range(0, len(marks), 10):
            print(" ".join(marks[start : start + 10]))


main()
