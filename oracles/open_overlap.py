"""Golden ROUGE and BLEU of single answers, as lm-evaluation-harness's careqa_open computes them.

Pinned: rouge-score 0.1.2 (no stemmer, as `evaluate`'s rouge metric has it), the 13a tokenizer of huggingface/evaluate
(metrics/bleu/tokenizer_13a.py) and tensorflow/nmt's compute_bleu (nmt/scripts/bleu.py), which that metric loads. Both are read from a
checkout or bare repository by `git show`. Seed 20261128. Texts are written here. careqa_open's own rules, the 1e-5 for a BLEU of 0 and
no figure for an empty answer, are not applied: they are tested by hand.

Writes crates/aloe-eval/tests/golden/open_overlap.json: list of {answer, reference, rouge1, rouge2, rougeL, bleu}; bleu is null where
compute_bleu divides by zero.
Run: python oracles/open_overlap.py EVALUATE_REPO NMT_REPO
"""

import json
import pathlib
import random
import subprocess
import sys

from rouge_score import rouge_scorer

EVALUATE, NMT = sys.argv[1:3]
OUT = pathlib.Path(__file__).parent.parent / "crates/aloe-eval/tests/golden/open_overlap.json"


def module(repo, path):
    source = subprocess.run(["git", "-C", repo, "show", f"HEAD:{path}"], check=True, capture_output=True, text=True).stdout
    names = {}
    exec(compile(source, path, "exec"), names)
    return names


tokenize = module(EVALUATE, "metrics/bleu/tokenizer_13a.py")["Tokenizer13a"]()
compute_bleu = module(NMT, "nmt/scripts/bleu.py")["compute_bleu"]
scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)

BY_HAND = [
    ("Insulin", "Insulin"),
    ("insulin.", "Insulin"),
    ("The median nerve is compressed at the wrist.", "Median nerve"),
    ("the the the the the the the", "The cat is on the mat"),
    ("It is, in most cases, a 3.5 mg dose; 1,000 mg is too much.", "A dose of 3.5 mg, not 1,000 mg."),
    ("1-2 tablets of 12-hour release", "1 - 2 tablets of 12 hour release"),
    ("beta-blocker", "beta blocker"),
    ("a broken-\nline and a\nnew line", "a brokenline and a new line"),
    ("&quot;yes&quot; &amp; &lt;no&gt; &amp;lt;", "\"yes\" & <no> &lt;"),
    ("<skipped>heart<skipped> failure", "heart failure"),
    ("..,, ..", "a.b,c"),
    ("x.", "x ."),
    ("vitamin B12", "Vitamin B 12"),
    ("Na+/K+-ATPase [ATP] {pump} ~50% ^2 `q` |x| \\y", "Na+/K+ ATPase pump"),
    ("fièvre élevée à 39,5 °C", "fievre elevee a 39.5 C"),
    ("Überempfindlichkeit; Kelvin \u212a and \u0130", "uberempfindlichkeit kelvin k i"),
    ("肝臓 肝臓", "肝臓"),
    ("a\u00a0b\u2003c\u001cd", "a b c d"),
    (" ", "heart"),
    ("\n", "heart"),
    ("!!!", "heart"),
    ("heart", "!!!"),
    ("one two three four five", "one two three four five"),
    ("five four three two one", "one two three four five"),
    ("one two three", "one two three four five six seven"),
    ("a b c d e f g h", "a x b y c z d"),
    ("tab\tseparated\r\nvalues", "tab separated values"),
    ("𝟙 ① ² digits 0٠9", "1 1 2 digits 009"),
]

WORDS = (
    "the a of in with renal artery stenosis aorta 3.5 mg 1,000 12-hour B12 IgG anti-GBM (type 2) diabetes, insulin. Therefore: "
    "heart-failure Na+ 50% patients' it's fever; cough? no! médian nerve/plexus e.g. vs. 0.9 <5 >7 &amp; \n -\n \"quoted\" the and the"
).split(" ")


def drawn(generator):
    reference = [generator.choice(WORDS) for _ in range(generator.randint(1, 18))]
    answer = [word for word in reference if generator.random() < 0.8]
    for _ in range(generator.randint(0, 12)):
        answer.insert(generator.randint(0, len(answer)), generator.choice(WORDS))
    return " ".join(answer) or "none", " ".join(reference)


def scored(answer, reference):
    rouge = scorer.score(reference, answer)
    try:
        bleu = compute_bleu([[tokenize(reference)]], [tokenize(answer)], max_order=4, smooth=False)[0]
    except ZeroDivisionError:
        bleu = None
    found = {name: rouge[name].fmeasure for name in ("rouge1", "rouge2", "rougeL")}
    return {"answer": answer, "reference": reference, **found, "bleu": bleu}


generator = random.Random(20261128)
pairs = BY_HAND + [drawn(generator) for _ in range(60)]
lines = [json.dumps(scored(*pair), ensure_ascii=True) for pair in pairs]
OUT.write_text("[\n" + ",\n".join(lines) + "\n]\n")
print(f"{len(lines)} pairs in {OUT}")
