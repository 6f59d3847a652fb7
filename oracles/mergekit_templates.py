"""Conversations as mergekit's named chat templates render them, for crates/aloe-merge/tests/golden/templates.json.

Made with mergekit 0.1.5 (its files `_data/chat_templates/*.jinja`), transformers 5.23's environment (trim_blocks, lstrip_blocks) on jinja2 3.1.6.
Run: python oracles/mergekit_templates.py [crates/aloe-merge/tests/golden/templates.json]
Only rendered texts are stored. The templates of crates/aloe-merge/src/templates are rendered too, with the same environment and with a bare one
(as programs other than transformers may), and must give the same texts. `exaone` is not among ours: see its entry in the golden file.
A conversation that a template refuses is stored as null.
"""

import importlib.resources
import json
import pathlib
import sys

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from mergekit._data import chat_templates

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
CONVERSATIONS = [
    [(USER, "What is anaemia?")],
    [(SYSTEM, "Be brief."), (USER, "What is anaemia?")],
    [(USER, "Hi"), (ASSISTANT, "Hello."), (USER, "  Spaces around,\n\nand a break  ")],
    [(SYSTEM, " Be brief. \n"), (USER, "Hi\n"), (ASSISTANT, "\nHello. "), (USER, "Bye"), (ASSISTANT, "Bye.")],
    [(ASSISTANT, "I begin."), (USER, "Do you?")],
    [(USER, "One"), (USER, "Two")],
    [(USER, "Hi"), (SYSTEM, "Late."), (ASSISTANT, "Hello.")],
    [(SYSTEM, "First."), (SYSTEM, "Second."), (USER, "Hi"), (SYSTEM, "Last.")],
    [(SYSTEM, "Alone.")],
    [(USER, "<b>&amp; {{ braces }} {% tags %} 'quotes' \"double\" \\n</b>"), (ASSISTANT, "naïve 東京 🦊")],
]
OURS = pathlib.Path(__file__).resolve().parent.parent / "crates/aloe-merge/src/templates"


def refuse(message):
    raise jinja2.exceptions.TemplateError(message)


def render(source, messages, prompt, **settings):
    environment = ImmutableSandboxedEnvironment(**settings)
    environment.globals["raise_exception"] = refuse
    messages = [{"role": role, "content": content} for role, content in messages]
    try:
        return environment.from_string(source).render(messages=messages, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>")
    except jinja2.exceptions.TemplateError:
        return None


def main(path):
    as_transformers = {"trim_blocks": True, "lstrip_blocks": True}
    golden, n_refused = {}, 0
    for name in ("llama3", "chatml", "alpaca", "mistral", "exaone"):
        theirs = importlib.resources.files(chat_templates).joinpath(name + ".jinja").read_text()
        cases = []
        for messages in CONVERSATIONS:
            for prompt in (False, True):
                text = render(theirs, messages, prompt, **as_transformers)
                n_refused += text is None
                cases.append({"messages": messages, "add_generation_prompt": prompt, "text": text})
                for settings in (as_transformers, {}) if name != "exaone" else ():
                    ours = render((OURS / f"{name}.jinja").read_text(), messages, prompt, **settings)
                    assert ours == text, f"{name} {messages} {prompt} {settings}:\nours {ours!r}\nmergekit {text!r}"
        golden[name] = cases if name != "exaone" else cases[:2]
    path.write_text(json.dumps(golden, ensure_ascii=False, indent=0) + "\n")
    print(f"{sum(map(len, golden.values()))} texts, {n_refused} refused, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "crates/aloe-merge/tests/golden/templates.json"))
