"""Made rows in the columns of the Hub's Parquet files of MedQA (bigbio's source and GBaker's -hf), PubMedQA (qiaojin's pqa_labeled and bigbio's first fold), MMLU
(cais' and lukaemon's), CareQA (with options and open) and HEAD-QA, as the Hub's own tools write them: features of datasets 5.0, written by pyarrow.

Writes crates/aloe-task/tests/golden/parquet/. The questions are ours; what each must be read as stands in the test.
Run: python oracles/parquet_layouts.py            (seconds)
"""

import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/aloe-task/tests/golden/parquet"
TEXTS = pa.list_(pa.string())


def write(name, columns, rows):
    path = OUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(columns)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="snappy")
    print(path.relative_to(OUT), path.stat().st_size)


def main():
    options = pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))
    lettered = lambda *texts: [{"key": k, "value": v} for k, v in zip("ABCDE", texts)]
    write("lettered/medqa/data/test-00000-of-00001.parquet", [("meta_info", pa.string()), ("question", pa.string()), ("answer_idx", pa.string()), ("answer", pa.string()), ("options", options)], [
        {"meta_info": "step1", "question": "Which bone is in the thigh?", "answer_idx": "C", "answer": "Femur", "options": lettered("Tibia", "Ulna", "Femur", "Radius")},
        {"meta_info": "step2&3", "question": "Which organ makes insulin?", "answer_idx": "A", "answer": "Pancreas", "options": lettered("Pancreas", "Liver", "Spleen", "Kidney")}])
    write("hf/medqa/data/test-00000-of-00001.parquet", [("id", pa.string()), ("sent1", pa.string()), ("sent2", pa.string())] + [(f"ending{i}", pa.string()) for i in range(4)] + [("label", pa.int64())], [
        {"id": "test-00000", "sent1": "Which bone is in the thigh?", "sent2": "", "ending0": "Tibia", "ending1": "Ulna", "ending2": "Femur", "ending3": "Radius", "label": 2},
        {"id": "test-00001", "sent1": "Which organ makes insulin?", "sent2": "", "ending0": "Pancreas", "ending1": "Liver", "ending2": "Spleen", "ending3": "Kidney", "label": 0}])
    write("mmlu/anatomy/test-00000-of-00001.parquet", [("question", pa.string()), ("subject", pa.string()), ("choices", TEXTS), ("answer", pa.int64())], [
        {"question": "Which bone is in the thigh?", "subject": "anatomy", "choices": ["Tibia", "Ulna", "Femur", "Radius"], "answer": 2},
        {"question": "Which nerve moves the diaphragm?", "subject": "anatomy", "choices": ["Phrenic", "Vagus", "Median", "Ulnar"], "answer": 0}])
    write("careqa/CareQA_en/test-00000-of-00001.parquet", [("exam_id", pa.int64()), ("question", pa.string())] + [(f"op{i}", pa.string()) for i in range(1, 5)] + [("cop", pa.int64()), ("year", pa.int64()), ("category", pa.string()), ("unique_id", pa.string())], [
        {"exam_id": 1, "question": "Which bone is in the thigh?", "op1": "Tibia", "op2": "Ulna", "op3": "Femur", "op4": "Radius", "cop": 3, "year": 2020, "category": "Medicine", "unique_id": "u-1"},
        {"exam_id": 2, "question": "Which organ makes insulin?", "op1": "Pancreas", "op2": "Liver", "op3": "Spleen", "op4": "Kidney", "cop": 1, "year": 2021, "category": "Biology", "unique_id": "u-2"}])
    write("lettered/mmlu/anatomy/test-00000-of-00001.parquet", [("input", pa.string())] + [(c, pa.string()) for c in "ABCD"] + [("target", pa.string())], [
        {"input": "Which bone is in the thigh?", "A": "Tibia", "B": "Ulna", "C": "Femur", "D": "Radius", "target": "C"},
        {"input": "Which nerve moves the diaphragm?", "A": "Phrenic", "B": "Vagus", "C": "Median", "D": "Ulnar", "target": "A"}])
    parts = ["contexts", "labels", "meshes", "reasoning_required_pred", "reasoning_free_pred"]
    context = lambda *texts: {part: [] for part in parts} | {"contexts": list(texts), "labels": ["METHODS", "RESULTS"][: len(texts)]}
    write("pubmedqa/pqa_labeled/train-00000-of-00001.parquet", [("pubid", pa.int32()), ("question", pa.string()), ("context", pa.struct([(part, TEXTS) for part in parts])), ("long_answer", pa.string()), ("final_decision", pa.string())], [
        {"pubid": 11, "question": "Is a train row a test row?", "context": context("It is not."), "long_answer": "No.", "final_decision": "no"},
        {"pubid": 12, "question": "Does walking lower blood pressure?", "context": context("Forty adults walked.", "Some had lower pressure."), "long_answer": "It may.", "final_decision": "maybe"}])
    (OUT / "pubmedqa/test_ground_truth.json").write_text('{"12": "maybe"}\n')
    texts = ["QUESTION", "YEAR", "reasoning_required_pred", "reasoning_free_pred", "final_decision", "LONG_ANSWER"]
    source = lambda decision, **row: dict.fromkeys(texts) | row | {"MESHES": [], "LABELS": [], "final_decision": decision}
    write("source/pubmedqa/pubmed_qa_labeled_fold0_source/test-00000-of-00001.parquet", [(name, TEXTS if name in ("CONTEXTS", "LABELS", "MESHES") else pa.string()) for name in ["QUESTION", "CONTEXTS", "LABELS", "MESHES"] + texts[1:]], [
        source("yes", QUESTION="Is it the first?", CONTEXTS=["It is."]),
        source("maybe", QUESTION="Does walking lower blood pressure?", CONTEXTS=["Forty adults walked.", "Some had lower pressure."], LONG_ANSWER="It may.")])
    write("careqa/CareQA_en_open/test-00000-of-00001.parquet", [("exam_id", pa.int64()), ("question", pa.string()), ("answer", pa.string()), ("answer_explanation", pa.string()), ("year", pa.int64()), ("category", pa.string()), ("unique_id", pa.string())], [
        {"exam_id": 1, "question": "Which bone is in the thigh?", "answer": "The femur.", "answer_explanation": "It is the only one.", "year": 2020, "category": "Medicine", "unique_id": "u-1"}])
    answers = pa.list_(pa.struct([("aid", pa.int32()), ("atext", pa.string())]))
    numbered = lambda *texts: [{"aid": i, "atext": text} for i, text in enumerate(texts, 1)]
    write("headqa/en/test-00000-of-00001.parquet", [("name", pa.string()), ("year", pa.string()), ("category", pa.string()), ("qid", pa.int32()), ("qtext", pa.string()), ("ra", pa.int32()), ("image", pa.binary()), ("answers", answers)], [
        {"name": "Cuaderno_2016_1_M", "year": "2016", "category": "medicine", "qid": 7, "qtext": "Which bone is in the thigh?", "ra": 3, "image": None, "answers": numbered("Tibia", "Ulna", "Femur", "Radius")},
        {"name": "Cuaderno_2013_1_B", "year": "2013", "category": "biology", "qid": 8, "qtext": "Which organ makes insulin?", "ra": 1, "image": None, "answers": numbered("Pancreas", "Liver", "Spleen", "Kidney", "Lung")}])


if __name__ == "__main__":
    main()
