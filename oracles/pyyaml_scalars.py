"""Golden values of crates/aloe-merge/tests/golden/pyyaml.json: how PyYAML's safe_load types scalars and documents.

Made with PyYAML 6.0.3, Python 3.11. Run: python oracles/pyyaml_scalars.py > crates/aloe-merge/tests/golden/pyyaml.json
"""

import datetime
import json
import math

import yaml

assert yaml.__version__ == "6.0.3", yaml.__version__

SCALARS = """yes Yes YES yEs y Y no No NO n N true True TRUE tRUE false False FALSE on On ON off Off OFF oFF
null Null NULL nULL ~ ~~ None none nan NaN .nan .NaN .NAN .nAN -.nan +.nan .inf .Inf .INF -.inf +.inf -.INF inf -inf
0 -0 +0 00 01 010 0777 08 09 -010 +017 0o17 0o8 0_7 0_ 1_000 _1 1_ 1__0 1,000 123456789 -42 +42 ++1 --1 1- 1+1
0b0 0b101 0b1_01 -0b11 0b 0b2 0B1 0x0 0xFF 0xff 0x_f -0x1A 0x 0xg 0XFF
1:30 1:30:00 -1:30 0:30 1:60 1:5 1:05 190:20:30 1:2:3:4 12:30:45 01:30 1_0:30 1:3_0 1: :30 1:30.5 190:20:30.15 1:60.5 -1:30.25 0:30.5 01:30.5 1:30.
1.0 1. .5 -.5 +.5 0.5 -0.5 +0.5 1_0.5 1.5_0 1._5 ._5 . .. 1.2.3 1.0.0 0.53 0.40 007.5 09.5
1e3 1E3 1e+3 1e-3 1.e3 1.e+3 1.0e3 1.0e+3 1.0e-3 1.0E-3 1.5E+10 .5e3 .5e+3 -.5e-3 1.0e 1.0e+ e5 2e-7 2.0e-7 1_0.0e+1_0 1:30.0e+1
2024-04-18 2024-4-18 2024-4-8T1:02:03 2024-04-18T12:30:45Z 2024-04-18T12:30:45.5+02:00 2024-04-18t12:30:45-5 2024-04-18T12:30 2024-04-18x 02024-04-18
<< = == <<< bfloat16 float32 meta-llama/Meta-Llama-3-8B ./model /tmp/a+b model@main a:b a::b C:/x 0.5.1 v1 1st 5% 10-20 true: 3.14abc 0x1.8p3 +- - -- ... !x""".split()

DOCUMENTS = [
    "",
    "# only a comment\n",
    "a: 1\nb: [1, 2.5, yes, ~, 'no', \"01\"]\n",
    "models:\n  - model: x\n    parameters: {weight: 0.4, density: [0, 0.5, 1]}\n  - model: y\nmerge_method: dare_ties\nbase_model: b\ndtype: bfloat16\n",
    "base: &b {weight: 1, density: 0.5}\nuse:\n  <<: *b\n  density: 0.9\n",
    "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc:\n  <<: [*a, *b]\n  w: 0\n",
    "a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, x: 9}\n",
    "a: &v 0.5\nb: *v\nc: [*v, *v]\n",
    "a: !!str 010\nb: !!int '7'\nc: !!float 3\nd: !!bool 'yes'\ne: !!null ''\nf: ! 5\n",
    "a: |\n  one\n  two\nb: >\n  one\n  two\n",
    "? a\n: 1\n? b\n: 2\n",
    "'<<': 1\n'=': 2\n",
    "=: 3\n",
    "- 1\n- - 2\n  - 3\n-\n",
    "yes: no\n2: one\n~: nothing\n",
    "a: 'it''s'\nb: \"tab\\tnew\\u00e9\"\nc: plain # comment\nd: x#y\n",
    "key with spaces: value with: no\n",
    "a:\n- 1\n- 2\nb: {c: [], d: {}}\n",
    "a: b: c\n",
    "a: [1, 2\n",
    "a: 1\n b: 2\n",
    "a: *nowhere\n",
    "a: !!python/object:os.system x\n",
    "a: 1\n---\nb: 2\n",
    "a: &a [*a]\n",
    "a: {<<: 5}\n",
    "a: <<\n",
    "a: =\n",
    "[a]: 1\n",
    "a:\n\t- 1\n",
]


def shape(value):
    """A value as [type, JSON]: JSON alone cannot tell 1 from 1.0 or keep the order and types of keys."""
    if value is None:
        return ["null", None]
    if isinstance(value, bool):
        return ["bool", value]
    if isinstance(value, int):
        return ["int", value]
    if isinstance(value, float):
        return ["float", repr(value) if not math.isnan(value) else "nan"]
    if isinstance(value, str):
        return ["text", value]
    if isinstance(value, (datetime.date, datetime.datetime)):
        return ["date", None]
    if isinstance(value, list):
        return ["list", [shape(item) for item in value]]
    if isinstance(value, dict):
        return ["mapping", [[shape(key), shape(item)] for key, item in value.items()]]
    raise TypeError(type(value))


def load(text):
    try:
        return shape(yaml.safe_load(text))
    except Exception:  # noqa: BLE001: any failure of PyYAML is the answer "refused"
        return ["refused", None]


def scalar_shape(text):
    node = yaml.nodes.ScalarNode(
        yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False)), text
    )
    if node.tag == "tag:yaml.org,2002:merge":
        return ["merge", None]
    if node.tag == "tag:yaml.org,2002:value":
        return ["value", None]
    try:
        return shape(yaml.SafeLoader("").construct_document(node))
    except Exception:  # noqa: BLE001
        return ["refused", None]


print(
    json.dumps(
        {
            "made_with": f"PyYAML {yaml.__version__}, oracles/pyyaml_scalars.py",
            "scalars": [[text, scalar_shape(text)] for text in [*SCALARS, "2024-04-18 12:30:45", "2024-04-18 12:30:45 +2", ""]],
            "documents": [[text, load(text)] for text in DOCUMENTS],
        },
        indent=0,
    )
)
