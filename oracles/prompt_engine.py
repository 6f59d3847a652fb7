"""Golden answers of HPAI-BSC's prompt_engine: parsing, voting, prompts, retries and the folder it writes.

Code: github.com/HPAI-BSC/prompt_engine, first public commit 5fd13a6 (2024-05-08) and 21e68bd (2025-04-02), each checked out into a folder.
Python 3.11, scikit-learn 1.9.1, numpy 2.4.6, pytz 2026.6. Seed 8 (theirs, where they have one). Only its own functions answer here; vLLM, the vector
stores, torch and transformers are replaced by empty modules, the model by a fixed rule, the example search by "the first k of the database".
Generations, vote lists and questions of the made-up run are ours. Of the benchmarks only row numbers, orders and digests are kept; its
fixed worked examples are not.

Writes crates/aloe-task/tests/golden/prompt_engine_{parse,prompts}.json and
crates/aloe-eval/tests/golden/prompt_engine_{votes,run,generations}.json.
Run: ALOE_DATA=.. python oracles/prompt_engine.py FOLDER_OF_5fd13a6 FOLDER_OF_21e68bd
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import io
import json
import os
import pathlib
import random
import re
import shutil
import sys
import tempfile
import types

from prompt_engine_cases import GENERATIONS, QUESTIONS, VOTES

CRATES = pathlib.Path(__file__).resolve().parent.parent / "crates"
DATA = pathlib.Path(os.environ["ALOE_DATA"])
STUBS = ("vllm", "chromadb", "qdrant_client", "angle_emb", "sentence_transformers", "torch", "transformers", "openai", "requests")
REVISIONS = {"first": "5fd13a6", "newest": "21e68bd"}
# First 16 hex digits of the sha256 of the files whose functions answer.
KNOWN = {"first": {"utils/utils.py": "a2e4ac0bf8b556da", "evaluate.py": "cb09c0ba2886874e", "execute.py": "39a80964f472928a", "utils/prompt_templates.py": "b915e39992ec92fd"},
         "newest": {"utils/utils.py": "4e546366b6e108a1", "medprompt/evaluate.py": "97a29ae39abadbb7", "medprompt/execute.py": "8fc75b45fa925b13", "utils/prompt_templates.py": "9ebb9a33f1ca5af2"}}


class Stub(types.ModuleType):
    """A module in which every name is an empty class."""

    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {"__init__": lambda self, *a, **k: None})
        setattr(self, name, value)
        return value


class StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in STUBS else None

    def create_module(self, spec):
        return Stub(spec.name)

    def exec_module(self, module):
        pass


class Revision:
    """One checkout, copied so that datasets and outputs are ours, and imported under its own name `src`."""

    def __init__(self, name, folder, scratch):
        self.name = name
        self.root = scratch / name / "prompt_engine"
        shutil.copytree(pathlib.Path(folder) / "prompt_engine", self.root, ignore=shutil.ignore_patterns("*.json"))
        for file, expected in KNOWN[name].items():
            found = hashlib.sha256((self.root / "src" / file).read_bytes()).hexdigest()[:16]
            if found != expected:
                raise SystemExit(f"{folder}: src/{file} is not that of {REVISIONS[name]}: {found}")
        for module in [m for m in sys.modules if m == "src" or m.startswith("src.")]:
            del sys.modules[module]
        sys.path.insert(0, str(self.root))
        part = "src." if name == "first" else "src.medprompt."
        self.utils = importlib.import_module("src.utils.utils")
        self.templates = importlib.import_module("src.utils.prompt_templates")
        self.constants = importlib.import_module("src.utils.constants")
        self.model = importlib.import_module("src.utils.model")
        self.execute = importlib.import_module(part + "execute")
        self.generate = importlib.import_module(part + "generate")
        self.evaluate = importlib.import_module(part + "evaluate")
        sys.path.pop(0)


def digest(text):
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def write(crate, name, header, **content):
    folder = CRATES / crate / "tests/golden"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f'"{key}":' + json.dumps(value, ensure_ascii=True, separators=(",", ":")) for key, value in content.items() if not isinstance(value, list)]
    for key, value in content.items():
        if isinstance(value, list):
            rows = ",\n".join(json.dumps(row, ensure_ascii=True, separators=(",", ":")) for row in value)
            parts.append(f'"{key}":[\n{rows}\n]')
    (folder / f"prompt_engine_{name}.json").write_text('{"from":' + json.dumps(header) + ",\n" + ",\n".join(parts) + "}\n")


def both(revisions, of):
    """What every revision says, which must be the same."""
    answers = [of(revision) for revision in revisions]
    assert all(answer == answers[0] for answer in answers), answers
    return answers[0]


def problem(n_options):
    return {"question": "?", "options": {letter: letter.lower() for letter in "ABCDE"[:n_options]}, "correct_answer": "A"}


def parse(revisions):
    """As `infer` does it: the generation is stripped and then parsed."""
    rows = []
    for name, order, text in GENERATIONS:
        answer = both(revisions, lambda r: r.utils.parse_response(problem(len(order)), text.strip(), order))
        raw = both(revisions, lambda r: r.utils.parse_response(problem(len(order)), text, order))
        row = {"name": name, "order": order, "text": text, "shown": answer[1], "answer": answer[0]}
        if raw != answer:
            row["answer_without_strip"] = raw[0]
        rows.append(row)
    assert len({row["name"] for row in rows}) == len(rows)
    write("aloe-task", "parse", "prompt_engine 5fd13a6 and 21e68bd: parse_response(problem, text.strip(), order), the same in both", rows=rows)


def lines(path):
    return [json.loads(line) for line in open(path, encoding="utf-8") if line.strip()]


def lettered(question, choices, key):
    return {"question": question, "correct_answer": "ABCDE"[key], "options": dict(zip("ABCDE", choices))}


def medqa(name):
    return [{"question": d["question"], "correct_answer": d["answer_idx"], "options": d["options"]} for d in lines(DATA / "medqa" / name)]


def medmcqa():
    import pyarrow.parquet as parquet

    rows = parquet.read_table(DATA / "medmcqa/validation-00000-of-00001.parquet").to_pylist()
    return [lettered(d["question"], [d["op" + x] for x in "abcd"], d["cop"]) for d in rows]


def pubmedqa():
    rows = json.load(open(DATA / "pubmedqa/ori_pqal.json", encoding="utf-8"))
    tested = json.load(open(DATA / "pubmedqa/test_ground_truth.json", encoding="utf-8"))
    answers = ["yes", "no", "maybe"]
    return [lettered(d["QUESTION"], answers, answers.index(d["final_decision"])) | {"context": d["CONTEXTS"]} for p, d in rows.items() if p in tested]


def mmlu(subject):
    with open(DATA / f"mmlu_medical/data/test/{subject}_test.csv", newline="", encoding="utf-8") as file:
        return [lettered(r[0], r[1:5], "ABCD".index(r[5])) for r in csv.reader(file)]


def careqa():
    rows = json.load(open(DATA / "careqa/CareQA_en.json", encoding="utf-8"))
    return [lettered(d["question"], [d[f"op{i}"] for i in range(1, 5)], d["cop"] - 1) for d in rows]


def datasets():
    """(task, prompt_engine's name of the dataset, problems in test order)."""
    sets = [("medqa_4options", "medqa_4opt", medqa("phrases_no_exclude_test.jsonl")), ("medqa_5options", "medqa_5opt", medqa("US_test.jsonl")),
            ("medmcqa", "medmcqa", medmcqa()), ("pubmedqa", "pubmedqa", pubmedqa()), ("careqa_en", "careqa", careqa())]
    return sets + [(f"mmlu_{s}", "mmlu", mmlu(s)) for s in ("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics", "professional_medicine")]


def odd(problem):
    """Whether an option has space around it, which the description removes in part."""
    return any(option != option.strip() or not option.strip() for option in problem["options"].values())


def messages_of(revision, dataset, description, examples=()):
    system = revision.templates.datasets_prompts[revision.constants.EXAMPLES_CONVERSION[dataset]]["system_prompt"]
    if revision.name == "first":
        return revision.model.Model.get_chat_template(None, system, list(examples), description)
    return revision.model.BaseModel.get_messages(None, system, list(examples), description)


def rotated(letters, by):
    by %= len(letters)
    return letters[by:] + letters[:by]


def solutions_of(revision, problems, places):
    """What `load_solutions` makes of a database of these problems: of each a wrong answer and a right one, which was written in an order of its own, or in
    that of the options where the place is even (no `description`, as in a database that was built by hand)."""
    database = {}
    for place in places:
        problem = problems[place]
        letters = "".join(problem["options"])
        right = {"result": problem["correct_answer"], "response": f"  Because of {place}.\nAnswer: [A] \n"}
        if place % 2:
            right |= {"order": rotated(letters, place), "description": revision.utils.get_problem_description(problem, rotated(letters, place))}
        wrong = {"result": rotated(letters, letters.index(problem["correct_answer"]) + 1)[0], "response": "Wrong."}
        database[str(place)] = problem | {"generations": [wrong, right]}
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "generations.json").write_text(json.dumps(database))
        state = random.getstate()
        found = revision.utils.load_solutions(folder)
        random.setstate(state)
    return list(found.values())


def conversation(messages):
    return digest("\x1e".join(message["role"] + "\x1f" + message["content"] for message in messages))


def prompts(revisions):
    """The first 50 questions of each set and up to 10 later ones with odd options. 5 options are the first revision's alone."""
    content, n_odd = [], 0
    random.seed(8)
    for task, dataset, problems in datasets():
        chosen = list(range(min(50, len(problems)))) + [i for i, p in enumerate(problems) if i >= 50 and odd(p)][:10]
        rows = []
        for index in chosen:
            order = revisions[0].utils.random_order("".join(problems[index]["options"]), [])
            description = both(revisions, lambda r: r.utils.get_problem_description(problems[index], order))
            serving = [r for r in revisions if dataset in r.constants.EXAMPLES_CONVERSION]
            system, user = both(serving, lambda r: messages_of(r, dataset, description))
            assert (system["role"], user["role"]) == ("system", "user")
            places = [(index + step) % len(problems) for step in range(1, 6)]
            talk = both(serving, lambda r: conversation(messages_of(r, dataset, description, solutions_of(r, problems, places))))
            rows.append([index, order, digest(user["content"]), talk])
        content.append({"task": task, "dataset": dataset, "system": digest(system["content"]), "rows": rows})
    write("aloe-task", "prompts", "prompt_engine 5fd13a6 and 21e68bd (medqa_5opt: 5fd13a6 alone): digests of the system prompt and of the user message; row = [index in the test split, order, digest, digest of the conversation with the five questions after it as examples]; open: OpenMedQA by 21e68bd alone, [index, digest of the conversation]", sets=content, open=open_prompts(revisions[-1]))


def open_prompts(revision):
    """The first 50 questions of OpenMedQA as `generate_answers` words them where no number of examples is set."""
    system = revision.templates.datasets_prompts["qa"]["zero_shot_system_prompt"]
    problems = json.load(open(DATA / "openmedqa/openmedqa_test.json", encoding="utf-8")).values()
    word = lambda p: revision.model.BaseModel.generate_prompt_single_turn(types.SimpleNamespace(tokenizer=None), system, [], p["question"])
    return [[i, conversation(word(p))] for i, p in enumerate(list(problems)[:50])]


def entry(revision, result, shown):
    metrics = {"arrival_time": 0.0, "last_token_time": 1.0, "first_scheduled_time": 0.25, "first_token_time": 0.5, "time_in_queue": 0.25, "finished_time": 1.0}
    counts = {"prompt_tokens": 10, "generated_tokens": 20} if revision.name == "first" else {"tokens": {"prompt": 10, "generated": 20, "total": 30}}
    return {"result": result, "original_answer": shown, "metrics": metrics} | counts


def votes(revisions):
    """Each case is a set of questions; a question is its gold letter and its votes as result+shown letter; an unparsed sample has no entry."""
    rows = []
    for name, questions in VOTES:
        def judge(revision):
            data = {}
            for i, (gold, given) in enumerate(questions):
                data[str(i)] = {"question": "?", "correct_answer": gold, "options": {}}
                if given is not None:
                    data[str(i)]["generations"] = [entry(revision, *vote) for vote in given]
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "generations.json")
                json.dump(data, open(path, "w"))
                try:
                    output = revision.evaluate.evaluate(path, {"config": {}})
                except Exception as error:
                    return {"raises": type(error).__name__}
            wrong = output["incorrect_questions"]
            kept = {key: output[key] for key in ("count", "accuracy", "no_parsed_answers", "mean_different_answers", "draws", "options")}
            return {"predictions": [wrong[str(i)]["voting"] if str(i) in wrong else gold for i, (gold, _) in enumerate(questions)]} | kept

        shape = [{"gold": gold, "votes": None if given is None else [list(vote) for vote in given]} for gold, given in questions]
        rows.append({"name": name, "questions": shape} | both(revisions, judge))
    write("aloe-eval", "votes", "prompt_engine 5fd13a6 and 21e68bd: evaluate; votes are [result, shown letter] in the order of the generations", rows=rows)


@dataclasses.dataclass
class Metrics:
    arrival_time: float = 0.0
    last_token_time: float = 1.0
    first_scheduled_time: float = 0.25
    first_token_time: float = 0.5
    time_in_queue: float = 0.25
    finished_time: float = 1.0


class Tokenizer:
    """Renders a conversation as JSON."""

    default_chat_template = chat_template = "json"

    def apply_chat_template(self, messages, **_):
        return json.dumps(messages)


class Llm:
    """Answers by rule. The kind of a question stands in brackets at its end, `(right)`, `(late 3)`: see `answer`."""

    passes = []

    def __init__(self, **_):
        self.seen = {}

    def get_tokenizer(self):
        return Tokenizer()

    def generate(self, prompts, params):
        Llm.passes.append({"prompts": len(prompts), "max_tokens": params.given.get("max_tokens"),
                            "temperature": round(params.given["temperature"], 6) if "temperature" in params.given else None})
        return [self.completion(prompt) for prompt in prompts]

    def completion(self, prompt):
        text = "  " + self.answer(json.loads(prompt)[-1]["content"]) + "\n"
        output = types.SimpleNamespace(text=text, token_ids=[0] * len(text.split()))
        return types.SimpleNamespace(outputs=[output], prompt_token_ids=[0] * len(prompt.split()), metrics=Metrics())

    def answer(self, description):
        kind, number = re.search(r"\((right|wrong|never|late|alternating|first)( \d)?\)\n", description).groups()
        self.seen[description] = self.seen.get(description, 0) + 1
        self.seen[kind] = self.seen.get(kind, 0) + 1
        letters = {text: letter for letter, text in re.findall(r"^([A-E])\. (.*)$", description, re.M)}
        good, bad = letters["the marked one"], letters["the other one"]
        if kind == "never" or (kind == "late" and self.seen[description] < int(number)):
            return "I cannot say. Answer: none"
        chosen = {"right": good, "late": good, "wrong": bad, "first": "A"}.get(kind) or (good, bad)[self.seen[kind] % 2]
        return f"The question is about marks.\nAnswer: [{chosen}]"


class Params:
    def __init__(self, **given):
        self.given = given


class Store:
    """Example search: the first k of the database that were solved, for every question. Like theirs it needs `solutions` by id."""

    def __init__(self, config):
        self.config = config["config"]

    def embed_problems(self, path):
        return 0.5

    def select_examples(self, problems, solutions, problems_filename, database_filename):
        ids = list(solutions.keys())[: self.config["k"]]
        return {key: {"ids": ids, "scores": [0.5] * len(ids), "examples": [{"id": i} for i in ids]} for key in problems}


def in_turn(revision):
    """One thread, results in the order of submission, so that a seed fixes the orders."""
    one = types.SimpleNamespace(ThreadPoolExecutor=lambda: concurrent.futures.ThreadPoolExecutor(max_workers=1), as_completed=list)
    revision.execute.concurrent = types.SimpleNamespace(futures=one)


def schema(value, at, found):
    """Every path of keys with its JSON types; ids of questions and indices are `*`."""
    found.setdefault(at, set()).add(type(value).__name__)
    if isinstance(value, dict):
        for key, item in value.items():
            schema(item, f"{at}/{'*' if key.startswith('made_up_') else key}", found)
    if isinstance(value, list):
        for item in value:
            schema(item, f"{at}/*", found)
    return found


def made_up_files(revision, working):
    folder = revision.root / "datasets/medqa_4opt"
    folder.mkdir(parents=True, exist_ok=True)
    (working / "databases").mkdir(parents=True, exist_ok=True)
    test = {key: value for key, value in QUESTIONS.items() if value["question"][-1] == ")"}
    for split in ("test", "val"):
        (folder / f"medqa_4opt_{split}.json").write_text(json.dumps(test))
    database = {}
    for key, value in list(test.items())[:3]:
        worked = {"response": f"Worked answer of {key}.\nAnswer: [{value['correct_answer']}]", "result": value["correct_answer"]}
        database["db_" + key] = dict(value, generations=[worked])
    for place in (working / "databases", revision.root / "databases"):
        place.mkdir(exist_ok=True)
        (place / "made_up_database.json").write_text(json.dumps(database))


def one_run(revision, scratch, setting, sampling):
    """generate() and evaluate_from_path() as run.py calls them; the files below `outputs`, or what it raised."""
    working = scratch / "working"
    shutil.rmtree(working, ignore_errors=True)
    shutil.rmtree(revision.root / "outputs", ignore_errors=True)
    made_up_files(revision, working)
    in_turn(revision)
    for module in (revision.model, revision.execute, revision.generate):
        for name, value in (("LLM", Llm), ("SamplingParams", Params), ("ChromaDatabase", Store)):
            if hasattr(module, name):
                setattr(module, name, value)
    config = {"vllm": {"model": "made-up/Tiny"}, "config": dict(setting, dataset="medqa_4opt"), "sampling_params": dict(sampling)}
    if revision.name == "newest":
        config["config"].pop("type")
        config["config"]["working_dir"] = str(working)
        revision.model.AutoTokenizer = types.SimpleNamespace(from_pretrained=lambda *a, **k: Tokenizer())
        revision.model.GenerationConfig = types.SimpleNamespace(from_pretrained=lambda *a: types.SimpleNamespace(to_diff_dict=dict))
    Llm.passes = []
    random.seed(8)
    raised, shown = None, io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            path = revision.generate.generate(model=revision.model.Model(config["vllm"]), subject=None, config=config)
            revision.evaluate.evaluate_from_path(path, config)
        except Exception as error:
            raised = f"{type(error).__name__}: {error}"
    inner = re.findall(r"^(\w+Error: .*)$", shown.getvalue(), re.M)
    if raised:
        raised = re.sub(re.escape(str(scratch)) + r"\S*/outputs", "outputs", raised)
    base = revision.root if revision.name == "first" else working
    return base / "outputs", {"raises": raised, "printed_error": inner[0] if inner else None, "passes": list(Llm.passes)}


def files_of(outputs):
    """Relative names, times of the clock replaced, and the parsed JSON of each."""
    found = {}
    for path in sorted(p for p in outputs.rglob("*") if p.is_file()):
        name = re.sub(r"\d{4}-\d\d-\d\d_\d\d-\d\d", "TIME", str(path.relative_to(outputs)))
        found[name] = json.loads(path.read_text()) if path.suffix == ".json" else None
    return found


SETTINGS = [("medprompt from a database", {"type": "medprompt", "embedding": "made-up/Embed", "database": "made_up_database", "k": 2, "ensembles": 3}),
            ("medprompt from the validation split", {"type": "medprompt", "embedding": "made-up/Embed", "k": 2, "ensembles": 3}),
            ("sc-cot", {"type": "sc-cot", "k": 2, "ensembles": 3})]


def run(revisions, scratch):
    runs, kept = [], {}
    for revision in revisions:
        for name, setting in SETTINGS:
            for sampling in ({"temperature": 0.7, "max_tokens": 300}, {}):
                outputs, told = one_run(revision, scratch, setting, sampling)
                files = files_of(outputs) if outputs.exists() else {}
                row = {"revision": REVISIONS[revision.name], "setting": name, "sampling": sampling} | told
                row["files"] = {file: sorted(f"{at}: {'|'.join(sorted(kinds))}" for at, kinds in schema(content, "", {}).items()) if content is not None else None
                                for file, content in files.items()}
                generations = [content for file, content in files.items() if file.endswith("/generations.json")]
                if name == SETTINGS[0][0] and sampling:
                    evaluation = next(content for file, content in files.items() if "/evaluation_" in file)
                    row["evaluation"] = {k: v for k, v in evaluation.items() if k not in ("generation_date", "date", "config")}
                    kept[REVISIONS[revision.name]] = generations[0]
                runs.append(row)
    unique = []
    for row in runs:  # Files like those of an earlier row are told by its number.
        same = next((i for i, u in enumerate(unique) if u["files"] == row["files"]), None)
        unique.append(dict(row, files={"as_row": same}) if same is not None and row["files"] else row)
    write("aloe-eval", "run", "prompt_engine 5fd13a6 and 21e68bd on made-up questions with a model by rule, seed 8, one thread", runs=unique)
    write("aloe-eval", "generations", "generations.json of `medprompt from a database` at temperature 0.7, by revision", files=kept)


def main():
    sys.meta_path.insert(0, StubFinder())
    os.environ["CONFIGURE_LOGGING"] = "0"
    import logging

    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        revisions = [Revision(name, path, scratch) for name, path in zip(REVISIONS, sys.argv[1:3], strict=True)]
        parse(revisions)
        prompts(revisions)
        votes(revisions)
        run(revisions, scratch)


if __name__ == "__main__":
    main()
