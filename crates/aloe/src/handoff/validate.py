"""Has TRL's own parser read a generated configuration: validate.py sft|dpo engine.yaml. Exit code 1 and the parser's words where it refuses.

Keys that need a GPU are turned off in a copy that is parsed: this may run on a login node. Everything else is as it will be used.
"""

import sys
import tempfile

import yaml
from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

kind, path = sys.argv[1:]
with open(path, encoding="utf-8") as file:
    config = yaml.safe_load(file)
for key in ("bf16", "tf32"):
    if config.get(key):
        config[key] = False
config["use_cpu"] = True
with tempfile.NamedTemporaryFile("w", suffix=".yaml") as shadow:
    yaml.safe_dump(config, shadow)
    shadow.flush()
    parser = TrlParser((ScriptArguments, SFTConfig if kind == "sft" else DPOConfig, ModelConfig, DatasetMixtureConfig))
    try:
        parser.parse_args_and_config(args=["--config", shadow.name], fail_with_unknown_args=True)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
