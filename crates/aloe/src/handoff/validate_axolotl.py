"""Has axolotl's own validation judge a generated configuration: validate_axolotl.py engine.yaml GPUS_OF_A_NODE NODES. Exit code 1 and its
words where it refuses.

This may run on a login node, so the GPUs are made up: as many as the job has, of compute capability 9.0 (H100).
"""

import os
import sys

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"

import yaml
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault

path, n_gpus, n_nodes = sys.argv[1:]
has_gpus = int(n_gpus) > 0
capabilities = {
    "bf16": has_gpus, "fp8": False, "tf32": has_gpus, "n_gpu": max(1, int(n_gpus)), "n_node": int(n_nodes),
    "compute_capability": "sm_90" if has_gpus else None,
}
with open(path, encoding="utf-8") as file:
    config = yaml.safe_load(file)
try:
    validate_config(DictDefault(config), capabilities=capabilities, env_capabilities={"torch_version": "2.13.0"})
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
