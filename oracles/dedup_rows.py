#!/usr/bin/env python3
"""Made rows of about 80 words with planted near-duplicates, for measuring a data stage: seeded, standard library only (Python 3.11).

    python oracles/dedup_rows.py 1000000 rows.jsonl [--seed 7]
Every tenth row is a copy of an earlier row with one to four of its words changed, so that the Jaccard similarity of their 5-word
shingles is between about 0.6 and 0.9; `planted` names the copied row's number. Words are drawn by Zipf's law from 20,000 made words
on medical stems, so that no two other rows share many shingles. Rows are `{"instruction", "input", "output", "planted"}`.
"""
import argparse
import itertools
import json
import random

STEMS = ("cardi nephr hepat gastr neur derm oste arthr hemat pulmon enter rhin ot opt psych my angi lymph thyr pancreat ur gyn ped onc "
         "immun bacteri vir fung tox pharm chem phys path anatom hist cyt bi micr macr hyper hypo brady tachy dys").split()
ENDS = ("itis osis emia pathy ology ectomy gram scopy plasty algia oma uria pnea plegia trophy genic lytic static megaly rrhea stasis "
        "philia penia cele ptosis").split()
EDGES = "a o i al ic ous ary ine ate".split()

parser = argparse.ArgumentParser()
parser.add_argument("n_rows", type=int)
parser.add_argument("path")
parser.add_argument("--seed", type=int, default=7)
args = parser.parse_args()

draw = random.Random(args.seed)
words = [a + b + c for a, b, c in itertools.product(STEMS, ENDS, EDGES)]
words += [a + b + c + d for a, b, c, d in itertools.islice(itertools.product(STEMS, ["o"], STEMS, ENDS), 20_000)]
draw.shuffle(words)
words = words[:20_000]
weights = list(itertools.accumulate(1.0 / (rank + 20) for rank in range(len(words))))

earlier: list[tuple[int, list[str]]] = []
with open(args.path, "w", encoding="utf-8") as out:
    for number in range(args.n_rows):
        planted = None
        if number % 10 == 9:
            planted, text = earlier[draw.randrange(len(earlier))]
            text = list(text)
            for _ in range(draw.randint(1, 4)):
                text[draw.randrange(len(text))] = draw.choice(words)
        else:
            text = draw.choices(words, cum_weights=weights, k=draw.randint(60, 100))
            # Copies are of the last 5,000 kept rows, so that the generator's memory does not grow.
            if len(earlier) < 5000:
                earlier.append((number, text))
            else:
                earlier[draw.randrange(5000)] = (number, text)
        question, answer = " ".join(text[:15]), " ".join(text[15:])
        row = {"instruction": f"{question}?", "input": "", "output": f"{answer}.", "planted": planted}
        out.write(json.dumps(row) + "\n")
