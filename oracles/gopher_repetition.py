#!/usr/bin/env python3
"""Golden verdicts of Datatrove's repetition filter (Gopher, arXiv 2112.11446, table A1) on made texts.

Versions: datatrove 0.6.0. Seed 11.
    python -m venv v && v/bin/pip install datatrove==0.6.0 regex numpy nltk
    v/bin/python oracles/gopher_repetition.py > crates/aloe-data/tests/golden/gopher_repetition.jsonl
Words: Datatrove runs a tokenizer of the language; ours splits at white space, and so does this script, by replacing that one function.
Everything else is Datatrove's own code. Each line: the text and the rule that dropped it, or null.
"""
import json
import random

from datatrove.data import Document
from datatrove.pipeline.filters import gopher_repetition_filter as gopher

gopher.split_into_words = lambda text, language: text.split()
random.seed(11)
WORDS = (
    "fever cough rash dose renal liver artery vein nerve muscle tumour cell blood urine plasma oxygen glucose insulin heart lung "
    "acute chronic mild severe left right upper lower before after during without because although patient doctor nurse ward clinic "
    "study trial result value range test scan image sign symptom cause course onset relief naïve café 漢字 µg 5 12 0.5"
).split()
step = gopher.GopherRepetitionFilter()


def words(n):
    return [random.choice(WORDS) for _ in range(n)]


def line(n):
    return " ".join(words(n))


def made():
    yield line(60)
    for n_same in range(0, 12):
        same = line(6)
        lines = [same] * n_same + [line(random.randint(4, 12)) for _ in range(14 - n_same)]
        random.shuffle(lines)
        yield "\n".join(lines)
        yield "\n\n".join(lines)
    for n in range(2, 11):
        run = words(n)
        for times in (2, 3, 4, 6, 9):
            text = words(70)
            for _ in range(times):
                at = random.randrange(len(text))
                text[at:at] = run
            yield " ".join(text)
    for n in (2, 3, 4):
        for n_texts in range(6):
            yield " ".join((words(n) + line(1).split() * 1) * 3 + words(60 + 4 * n_texts) + words(2) * (5 + 3 * n_texts))
    yield "\n\n\n" + "one two three\n\n" * 20 + "\n"
    yield "word " * 60


for text in made():
    found = step.filter(Document(text=text, id="x"))
    print(json.dumps({"text": text, "rule": None if found is True else found[1]}, ensure_ascii=False))
