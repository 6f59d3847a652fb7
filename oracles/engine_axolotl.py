#!/usr/bin/env python3
"""Has axolotl 0.19's own validation judge the configuration and the misspelt keys of crates/aloe-handoff/tests/engine.rs, on a made H100.

    python oracles/engine_axolotl.py     in an environment with axolotl 0.19.0

It must take the configuration, and (why our check exists) also each of the ten with a misspelt key. Exits with 1 where it does not.
"""

import os
import pathlib
import re
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"

import yaml
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault

source = (pathlib.Path(__file__).parent.parent / "crates/aloe-handoff/tests/engine.rs").read_text()
text = re.search(r'const AXOLOTL: &str = "\\\n(.*?)";', source, re.S)[1].replace("\\n", "\n")
typos = re.search(r"let typos = \[(.*?)\n    \];", source, re.S)[1]
typos = re.findall(r'\(\s*"(\w+)",\s*"(\w+)",', typos)
assert len(typos) == 10, typos
CAPABILITIES = {"bf16": True, "n_gpu": 4, "n_node": 2, "compute_capability": "sm_90", "fp8": False, "tf32": True}
failed = []
for name, changed in [("as it is", text), *((f"{a} -> {b}", text.replace(f"{a}:", f"{b}:", 1)) for a, b in typos)]:
    try:
        validate_config(DictDefault(yaml.safe_load(changed)), capabilities=CAPABILITIES, env_capabilities={"torch_version": "2.13.0"})
        print("accepted", name)
    except Exception as error:
        failed.append(name)
        print("REFUSED", name, str(error)[:300].replace("\n", " "))
sys.exit(1 if failed else 0)
