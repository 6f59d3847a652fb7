#!/usr/bin/env python3
"""Golden values for aloe-text: chat templates rendered and tokenised by transformers.

Versions: transformers 5.23.0, tokenizers 0.23, lm-eval 0.4.13, jinja2 3.1.6, gguf (any), Python 3.
Run: HF_HUB_OFFLINE=1 python oracles/chat_templates.py  (needs ALOE_MODELS and ALOE_DATA); writes crates/aloe-text/tests/golden/*.json.
"""
import json, os, shutil, sys, tempfile, warnings
from pathlib import Path
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from gguf import GGUFReader

MODELS = Path(os.environ["ALOE_MODELS"])
OUT = Path(__file__).parent.parent / "crates/aloe-text/tests/golden"

def gguf_template(name):
    reader = GGUFReader(MODELS / name / "model.gguf")
    return reader.fields["tokenizer.chat_template"].contents()

LLAMA3 = (Path(__file__).parent.parent / "crates/aloe-text/src/templates/llama3.jinja").read_text().strip()
CHATML = (Path(__file__).parent.parent / "crates/aloe-text/src/templates/chatml.jinja").read_text().strip()
ALPACA = (Path(__file__).parent.parent / "crates/aloe-text/src/templates/alpaca.jinja").read_text().strip()
LLAMA31 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- This block extracts the system message, so we can slot it into the right place. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{#- System message + builtin tools #}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}

{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("no tools here") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
LLAMA2 = "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
MISTRAL = "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
ZEPHYR = "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
GEMMA = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
NAMESPACE = "{%- set ns = namespace(first=true, system='') -%}{%- for message in messages -%}{%- if message.role == 'system' -%}{%- set ns.system = ns.system ~ message.content -%}{%- endif -%}{%- endfor -%}{{ bos_token }}{{ ns.system }}{% for message in messages if message.role != 'system' %}{% if message.role == 'user' %}{{ '<|start_header_id|>user<|end_header_id|>' ~ message.content ~ '<|eot_id|>' }}{% else %}{{ '<|start_header_id|>assistant<|end_header_id|>' }}{{ message.content }}{{ '<|eot_id|>' }}{% endif %}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>' if add_generation_prompt else '' }}"
TOJSON = "{% for message in messages %}{{ {'role': message.role, 'n': loop.index, 'list': [1, 2.5, true, none], 'text': 'é<&\\''} | tojson }}{{ message.content.strip().upper() if message.role == 'system' and false else message.content }}{{ eos_token }}\n{% endfor %}{{ {'a': {'b': [1, {}]}} | tojson(indent=2) }}"
GENERATION = "{{ bos_token }}{%- for message in messages %}\n{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}\n{%- if message['role'] == 'assistant' %}\n{%- generation %}\n{{- message['content'] + '<|eot_id|>' }}\n{%- endgeneration %}\n{%- else %}\n{{- message['content'] + '<|eot_id|>' }}\n{%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n{%- endif %}"

TEMPLATES = {
    "llama3": LLAMA3, "llama3.1": LLAMA31, "chatml": CHATML, "alpaca": ALPACA, "llama2": LLAMA2, "mistral": MISTRAL,
    "zephyr": ZEPHYR, "gemma": GEMMA, "namespace": NAMESPACE, "tojson": TOJSON, "generation": GENERATION,
    "smollm2": gguf_template("smollm2-135m-instruct-q4_1"), "qwen2.5": gguf_template("qwen2.5-coder-0.5b-instruct-q4_k_m"),
}
def m(role, content): return {"role": role, "content": content}
CHATS = {
    "one user": [m("user", "What are the symptoms of scurvy?")],
    "system and user": [m("system", "You are a careful physician."), m("user", "Is 140/90 mmHg high?")],
    "one exchange": [m("user", "Dose of paracetamol for 70 kg?"), m("assistant", "Up to 1 g every 6 hours.\n\nDo not exceed 4 g.")],
    "two exchanges": [m("system", "Answer briefly."), m("user", "Fièvre à 39°C — que faire?"), m("assistant", "Reposez-vous 🙂"), m("user", "漢字も?"), m("assistant", "はい。")],
    "white space": [m("user", "  \n leading and trailing \n\n "), m("assistant", "\n\nanswer  ")],
    "markup": [m("user", "<b>bold</b> {{ 7*7 }} {% raw %} [INST] <<SYS>> & \\n \"quoted\"")],
    "two users": [m("user", "a"), m("user", "b")],
}

def joint(tokenizers):
    """lm-eval's own `_encode_pair` over transformers tokenizers."""
    from lm_eval.api.model import TemplateLM
    stories = PreTrainedTokenizerFast(tokenizer_file=str(Path(os.environ["ALOE_DATA"]) / "models/stories260K/tokenizer.json"), bos_token="<s>", eos_token="</s>")
    pairs = [("Question: x\nAnswer:", " B"), ("Question: x\nAnswer: ", "B"), ("a  \n\n", "yes"), ("The capital of France is", " Paris"),
             ("fiè", "vre"), ("12", "345"), ("Answer:", "B"), ("tab\t\x1c", "x"), ("hello", "\n\nworld"), ("漢", "字")]
    out = {}
    for name, tokenizer in (("llama3", tokenizers["llama3"]), ("smollm2", tokenizers["smollm2"]), ("stories260K", stories)):
        class Model:
            backend = "causal"
            def tok_encode(self, text): return tokenizer.encode(text)
        out[name] = []
        for prompt, continuation in pairs:
            prompt_ids, continuation_ids = TemplateLM._encode_pair(Model(), prompt, continuation)
            if continuation_ids:
                out[name].append({"prompt": prompt, "continuation": continuation, "prompt_ids": prompt_ids, "continuation_ids": continuation_ids})
    (OUT / "joint.json").write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")))

def main():
    print("transformers", transformers.__version__)
    tokenizers = {"llama3": PreTrainedTokenizerFast(tokenizer_file=str(MODELS / "llama3-tokenizer/tokenizer.json"),
                                                    bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")}
    for key, name in (("smollm2", "smollm2-135m-instruct-q4_1"), ("qwen2.5", "qwen2.5-coder-0.5b-instruct-q4_k_m")):
        tokenizers[key] = AutoTokenizer.from_pretrained(str(MODELS / name), gguf_file="model.gguf")
    cases = []
    for name, template in TEMPLATES.items():
        tokenizer = tokenizers.get(name, tokenizers["llama3"])
        for chat_name, chat in CHATS.items():
            for generate in (False, True):
                case = {"tokenizer": name if name in tokenizers else "llama3", "template": name, "chat": chat_name, "add_generation_prompt": generate}
                try:
                    case["text"] = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=generate)
                    ids = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=True, add_generation_prompt=generate, return_dict=True)
                    case["ids"] = ids["input_ids"]
                    if name == "generation" and not generate:
                        masked = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
                        case["assistant_masks"] = masked["assistant_masks"]
                except Exception as error:
                    case["error"] = str(error)[:200]
                cases.append(case)
    golden = {"transformers": transformers.__version__, "templates": TEMPLATES, "chats": CHATS, "cases": cases}
    (OUT / "chat_templates.json").write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")))
    texts = ["Hello world", "", " ", "  two  spaces", "The patient, a 54-year-old man, has BP 140/90 mmHg.\n\nDiagnosis?", "12345678 mg",
             "naïve café – 漢字 🙂 👩🏽‍⚕️", "tabs\tand\r\nnewlines\n\n\n", "e\u0301 decomposed", "don't I'LL we've", "a\u200bb\u00a0c", "x" * 300,
             "ΑΒΓ абв עברית हिन्दी", "1.5e-3; 10⁻³ μg/mL ±0.5%", "def f(x):\n    return x ** 2\n"]
    plain = {key: [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False)} for text in texts] for key, tokenizer in tokenizers.items()}
    minilm = AutoTokenizer.from_pretrained(str(MODELS / "all-minilm-l6-v2"))
    plain["minilm"] = [{"text": text, "ids": minilm.encode(text)} for text in texts]
    (OUT / "tokenizers.json").write_text(json.dumps(plain, ensure_ascii=False, separators=(",", ":")))
    joint(tokenizers)
    print(len(cases), "cases,", sum("error" in c for c in cases), "errors")

main()
