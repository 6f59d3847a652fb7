#!/usr/bin/env python3
"""Golden values of Datatrove's MinHash: simplified text, words and the 14 x 8 signature.

Versions: datatrove 0.6.0, numpy 2.4.6, xxhash 3.5.0 (version 4 refuses text), tokenizers (any). Seed 1 (Datatrove's default).
    python -m venv v && v/bin/pip install datatrove==0.6.0 xxhash==3.5.0 regex numpy==2.4.6 tokenizers
    v/bin/python oracles/datatrove_minhash.py > crates/aloe-data/tests/golden/minhash.json
Words: Datatrove runs spaCy's English tokenizer on the simplified text, which splits a few words such as `cannot`. Ours splits
at spaces. The signatures here are those of Datatrove's own code over words split at spaces; everything else is Datatrove's.
"""
import json
import sys

from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.text import simplify_text

TEXTS = [
    "What is hypertension? Hypertension is persistently raised arterial blood pressure, commonly 140/90 mmHg or more.",
    "Ménière's disease: naïve façade, Ångström; 3.5 mg, 1,000 units and 10,5 ml — on 12/03/2021!",
    "  Tabs\tand\nline breaks\r\n are   joined; (brackets) [too] {and} <these> “quotes” ‘single’ …  ",
    "İstanbul STRASSE straße ΑΣ ﬁ Ⅳ ½ x² α-synuclein β₂ µg",
    "one two three four",
    "one two three four five",
    "पानी का स्तर १२३ और 漢字 テスト ３４",
    "A 62-year-old man has crushing central chest pain for 40 minutes, sweating and ST elevation in leads II, III and aVF. "
    "Which diagnosis is most likely? Inferior myocardial infarction.",
    "e\u0301 vs \u00e9, zero\u200bwidth, soft\u00adhyphen, nbsp\u00a0here, \u2028line separator, \u0085 next line, \x1c file separator",
    "word " * 40,
]

step = MinhashDedupSignature.__new__(MinhashDedupSignature)
step.config = MinhashConfig()
step.num_hashes = 112
step._parameters = None
from datatrove.utils.hashing import create_hash_func

step._hash_func = create_hash_func(step.config.hash_config)


class Spaces:
    def word_tokenize(self, text):
        return text.split()


step.word_tokenizer = Spaces()
a, b = step.parameters
out = {"a": [str(int(x)) for x in a[0]], "b": [str(int(x)) for x in b[0]], "texts": []}
for text in TEXTS:
    shingles = step.get_shingles(text)
    signature = [str(h) for bucket in step.get_signature(shingles) for h in bucket] if shingles.size else []
    out["texts"].append({"text": text, "simplified": simplify_text(text), "signature": signature})
json.dump(out, sys.stdout, ensure_ascii=True, indent=0)
print()
