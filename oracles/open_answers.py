"""Golden ROUGE and BLEU of free-text answers, as lm-evaluation-harness's careqa_open has them.

Python 3.11, lm-eval 0.4.13 (its tasks/careqa/utils_open.py is called), evaluate 0.4.6, rouge_score 0.1.2, nltk 3.10.4, numpy 2.4.6. The metric scripts
of evaluate are those of github.com/huggingface/evaluate at a7dd338 with bleu.py of github.com/tensorflow/nmt at 0be8642. BLEURT and BERTScore, which need models, are
left out. All sentences are made up here. The harness writes `np.NAN`, which numpy 2 no longer has; the script puts it back, as numpy 1 had it.

ROUGE: F-measures of rouge_score without stemmer (evaluate's default); `stemmed` is rouge_score with its Porter stemmer, which the harness does not use.
BLEU: one sentence against one reference, 4-grams, no smoothing, tokens by 13a; where it is exactly 0 the harness adds 1e-5. An empty answer or
reference is not a number in every metric and is left out of the means.

Writes crates/aloe-eval/tests/golden/open_answers.json.
Run: python oracles/open_answers.py EVALUATE/metrics NMT/nmt/scripts/bleu.py
"""

import importlib.util
import json
import pathlib
import shutil
import sys
import tempfile
import types

import evaluate
import numpy as np
from lm_eval.api.metrics import nanmean
from rouge_score import rouge_scorer

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/aloe-eval/tests/golden/open_answers.json"

# (answer, reference)
PAIRS = [
    ("Furosemide blocks the sodium-potassium-chloride cotransporter in the thick ascending limb.", "Furosemide blocks the sodium-potassium-chloride cotransporter in the thick ascending limb."),
    ("It blocks the cotransporter of the thick ascending limb of Henle's loop.", "Furosemide blocks the sodium-potassium-chloride cotransporter in the thick ascending limb."),
    ("Loop diuretic.", "Furosemide blocks the sodium-potassium-chloride cotransporter in the thick ascending limb."),
    ("The median nerve.", "The median nerve."),
    ("the MEDIAN nerve", "The median nerve."),
    ("Ulnar nerve", "The median nerve."),
    ("", "The median nerve."),
    ("The median nerve.", ""),
    ("", ""),
    (" ", "The median nerve."),
    ("...", "The median nerve."),
    ("The median nerve.", "?"),
    ("nerve nerve nerve nerve nerve", "The median nerve runs with the brachial artery."),
    ("The brachial artery runs with the median nerve.", "The median nerve runs with the brachial artery."),
    ("Give 0.5 mg of adrenaline intramuscularly, repeated after 5 minutes if needed.", "Adrenaline 0.5 mg intramuscularly; repeat every 5 min."),
    ("Give 1,000 mg (1 g) of paracetamol every 6-8 h.", "Paracetamol 1 g every 6 to 8 hours, at most 4,000 mg a day."),
    ("A BMI of 30 kg/m2 or more.", "Obesity is a BMI >= 30 kg/m\u00b2."),
    ("Caf\u00e9-au-lait spots, axillary freckling and Lisch nodules", "Caf\u00e9-au-lait macules, freckles of the axilla, Lisch nodules"),
    ("\u03b2-blockers lower the heart rate.", "Beta-blockers lower the heart rate."),
    ("Infections caused by infected devices are treated by removing the infected devices.", "An infection of a device is treated by removal of the infected device."),
    ("Running, jumping and swimming were studied in the patients' families.", "Studies of patients who run, jump or swim, and of their family."),
    ("Warfarin&nbsp;inhibits vitamin K &amp; is &quot;reversed&quot; by phytomenadione.", "Warfarin inhibits vitamin K & is \"reversed\" by phytomenadione."),
    ("First line: metformin\nSecond line: a gliflozin", "First line: metformin. Second line: a gliflozin."),
    ("metfor-\nmin is the first choice", "metformin is the first choice"),
    ("No.", "No, the vaccine is live and must not be given in pregnancy."),
    ("The vaccine is live and so it must not be given to a woman in pregnancy, nor in the month before, nor to people whose immune system is weak.", "No, the vaccine is live and must not be given in pregnancy."),
    ("Hyperkalaemia gives peaked T waves, a wide QRS complex and, in the end, a sine wave.", "Peaked T waves, loss of P waves, widening of the QRS complex, sine wave pattern."),
    ("HbA1c 48 mmol/mol (6.5%)", "An HbA1c of 48 mmol/mol, that is 6.5 %"),
    ("La respuesta correcta es la insulina.", "Insulin."),
    ("The patient's symptoms don't fit; it isn't lupus, it's sarcoidosis!", "It is sarcoidosis; the symptoms of the patient do not fit lupus."),
    ("one two three four five six seven eight nine ten", "one two three four five six seven eight nine eleven"),
    ("spleen liver kidney spleen liver kidney", "spleen liver kidney"),
]


def local_metrics(metrics, nmt, folder):
    """evaluate's own scripts as a package, instead of a download."""
    package = pathlib.Path(folder) / "hf_metrics"
    package.mkdir()
    (package / "__init__.py").touch()
    for source in (metrics / "bleu/bleu.py", metrics / "bleu/tokenizer_13a.py", metrics / "rouge/rouge.py"):
        shutil.copy(source, package)
    shutil.copy(nmt, package / "nmt_bleu.py")
    sys.path.insert(0, folder)
    import hf_metrics.bleu
    import hf_metrics.rouge

    one = types.SimpleNamespace(compute=lambda **_: {"scores": [0.0], "f1": [0.0]})
    ready = {"bleu": hf_metrics.bleu.Bleu(), "rouge": hf_metrics.rouge.Rouge(), "bertscore": one, "bleurt": one}
    evaluate.load = lambda name, *_, **__: ready[name]


def harness():
    import lm_eval

    path = pathlib.Path(lm_eval.__file__).parent / "tasks/careqa/utils_open.py"
    spec = importlib.util.spec_from_file_location("utils_open", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def number(value):
    return None if np.isnan(value) else float(value)


def main():
    np.NAN = np.nan
    names = ["bleu", "rouge1", "rouge2", "rougeL"]
    stemmer = rouge_scorer.RougeScorer(names[1:], use_stemmer=True)
    plain = rouge_scorer.RougeScorer(names[1:], use_stemmer=False)
    with tempfile.TemporaryDirectory() as folder:
        local_metrics(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), folder)
        utils, rows = harness(), []
        for answer, reference in PAIRS:
            scores = {name: number(utils.process_results_gen({"question": "?", "answer": reference}, [answer])[name]) for name in names}
            if scores["rouge1"] is not None:
                assert all(abs(scores[n] - s.fmeasure) < 1e-12 for n, s in plain.score(reference, answer).items())
            stemmed = {n: s.fmeasure for n, s in stemmer.score(reference, answer).items()}
            rows.append({"answer": answer, "reference": reference} | scores | {"stemmed": stemmed})
    means = {name: float(nanmean(np.array([np.nan if row[name] is None else row[name] for row in rows]))) for name in names}
    header = "lm-eval 0.4.13 careqa_open, evaluate 0.4.6 (metrics a7dd338), rouge_score 0.1.2, nltk 3.10.4"
    text = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    OUT.write_text('{"versions":' + json.dumps(header) + ',\n"means":' + json.dumps(means) + ',\n"rows":[\n' + text + "\n]}\n")
    print(OUT, OUT.stat().st_size, means)


if __name__ == "__main__":
    main()
