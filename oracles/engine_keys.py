#!/usr/bin/env python3
"""The keys of a training engine's configuration, with types and choices, for crates/aloe-handoff/src/engine/keys.

    python oracles/engine_keys.py trl      in an environment with trl 1.16.0, transformers 5.23.0, accelerate 1.15.0 -> trl-1.16.json
    python oracles/engine_keys.py axolotl  in an environment with axolotl 0.19.0 -> axolotl-0.19.json

TRL: the fields of the dataclasses that `trl sft` and `trl dpo` parse, with the nested ones: `datasets` (DatasetConfig), `accelerator_config`,
and `fsdp_config`, whose keys are those that transformers reads or documents. axolotl: the JSON schema of its pydantic model.
A value is a list of what a key takes: int, float, bool, text, null, map (any), list (any), {"one_of": [..]}, {"list": value} or {"map": {key: value}}.
`required` and `must` are our own: without the first nothing is trained, and the second keeps NaN visible and data at home.
"""

import dataclasses
import enum
import inspect
import json
import os
import pathlib
import re
import sys
import types
import typing

os.environ["HF_HUB_OFFLINE"] = "1"
KEYS = pathlib.Path(__file__).parent.parent / "crates/aloe-handoff/src/engine/keys"
PLAIN = {int: "int", float: "float", bool: "bool", str: "text", type(None): "null", dict: "map", list: "list"}


def alternatives(kind, field=None):
    """What a key of this Python type takes."""
    choices = (field.metadata or {}).get("choices") if field is not None else None
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        found = []
        for part in typing.get_args(kind):
            found += [entry for entry in alternatives(part, field) if entry not in found]
        has_choices = any(isinstance(entry, dict) and "one_of" in entry for entry in found)
        return [entry for entry in found if not (has_choices and entry == "text")]
    if kind is type(None):
        return ["null"]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [{"one_of": sorted(str(member.value) for member in kind)}]
    if origin is typing.Literal:
        return [{"one_of": [str(value) for value in typing.get_args(kind)]}]
    if kind is str and choices:
        return [{"one_of": sorted(choices)}]
    if origin in (list, tuple):
        inner = [part for part in typing.get_args(kind) if part is not Ellipsis]
        return [{"list": alternatives(inner[0])}] if inner else ["list"]
    if origin is dict:
        return ["map"]
    if kind in PLAIN:
        return [PLAIN[kind]]
    return ["any"]


def fields_of(cls):
    hints = typing.get_type_hints(cls)
    return {field.name: alternatives(hints[field.name], field) for field in dataclasses.fields(cls) if field.init}


def trl():
    import accelerate
    import transformers
    import trl
    from transformers import trainer_pt_utils, training_args
    from trl import DPOConfig, ModelConfig, ScriptArguments, SFTConfig
    from trl.scripts.utils import DatasetConfig, DatasetMixtureConfig

    versions = {module.__name__: module.__version__ for module in (trl, transformers, accelerate)}
    assert versions == {"trl": "1.16.0", "transformers": "5.23.0", "accelerate": "1.15.0"}, versions
    source = inspect.getsource(training_args)
    read = re.findall(r'fsdp_config(?:\.get\(|\[)"([a-z_0-9]+)"', source)
    documented = re.findall(r"^ {16}- (?:fsdp_)?([a-z_0-9]+) \(", source[source.index("fsdp_config (`str`") :][:6000], re.M)
    fsdp = {}
    for name in sorted((set(read) | set(documented)) - {"buffer_dtype", "compute_dtype"}):
        fsdp[name] = {
            "version": ["int"], "min_num_params": ["int"], "auto_wrap_policy": [{"one_of": ["NO_WRAP", "SIZE_BASED_WRAP", "TRANSFORMER_BASED_WRAP"]}],
            "transformer_layer_cls_to_wrap": [{"list": ["text"]}, "text"], "state_dict_type": [{"one_of": ["FULL_STATE_DICT", "SHARDED_STATE_DICT"]}],
            "reshard_after_forward": ["bool"], "backward_prefetch": ["text"], "xla_fsdp_settings": ["map"],
        }.get(name, ["bool"])
    # Values of enum-like text keys that the dataclasses declare as plain text.
    losses = ["sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"]
    dpo_source = inspect.getsource(sys.modules[DPOConfig.__module__])
    assert all(f"'{loss}'" in dpo_source for loss in losses)
    shared, programs = {}, {}
    for name, config in (("sft", SFTConfig), ("dpo", DPOConfig)):
        keys = {}
        for cls in (ScriptArguments, config, ModelConfig, DatasetMixtureConfig):
            keys.update(fields_of(cls))
        keys["datasets"] = [{"list": [{"map": fields_of(DatasetConfig)}]}]
        keys["fsdp_config"] = [{"map": fsdp}, "null"]
        keys["fsdp"] = ["bool", "null"]
        keys["accelerator_config"] = [{"map": fields_of(trainer_pt_utils.AcceleratorConfig)}, "null"]
        keys["attn_implementation"] = [{"one_of": ["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]}, "null"]
        keys["report_to"] = ["text", {"list": ["text"]}, "null"]
        keys["env"] = ["map"]
        if name == "sft":
            keys["dataset_kwargs"] = [{"map": {"skip_prepare_dataset": ["bool"]}}, "null"]
        else:
            keys["loss_type"] = [{"list": [{"one_of": losses}]}]
            keys["f_divergence_type"] = [{"one_of": ["alpha_divergence", "forward_kl", "js_divergence", "reverse_kl"]}]
        programs[name] = keys
    for key in list(programs["sft"]):
        if programs["dpo"].get(key) == programs["sft"][key]:
            shared[key] = programs["sft"].pop(key)
            del programs["dpo"][key]
    manifest = {
        "engine": "trl", "versions": versions,
        "required": ["model_name_or_path", "datasets", "output_dir", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"],
        "must": {"logging_nan_inf_filter": False, "report_to": "none", "push_to_hub": False, "logging_steps": 1, "train_sampling_strategy": "sequential"},
        "shared": shared, "programs": programs,
    }
    write("trl-1.16.json", manifest)


def write(name, manifest):
    KEYS.mkdir(exist_ok=True)
    lines = ["{"]
    for at, (key, value) in enumerate(manifest.items()):
        end = "," if at + 1 < len(manifest) else ""
        if key in ("shared", "keys"):
            inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(value.items()))
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}{end}")
        elif key == "programs":
            inner = ",\n".join(
                f"  {json.dumps(program)}: {{\n" + ",\n".join(f"   {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(keys.items())) + "\n  }"
                for program, keys in value.items()
            )
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}{end}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}{end}")
    (KEYS / name).write_text("\n".join(lines) + "\n}\n")
    print(name, (KEYS / name).stat().st_size, "bytes")


def axolotl():
    import axolotl
    from pydantic.json_schema import GenerateJsonSchema
    from pydantic_core import PydanticSerializationError

    from axolotl.utils.schemas.config import AxolotlInputConfig

    assert axolotl.__version__ == "0.19.0", axolotl.__version__
    class Schema(GenerateJsonSchema):
        def enum_schema(self, schema):
            try:
                return super().enum_schema(schema)
            except PydanticSerializationError:  # an enum of torch.dtype, which a file cannot name by value
                return {"type": "string"}

    schema = AxolotlInputConfig.model_json_schema(schema_generator=Schema)
    definitions = schema.get("$defs", {})

    def value(entry, depth=0):
        if "$ref" in entry:
            entry = definitions[entry["$ref"].rsplit("/", 1)[1]]
        for many in ("anyOf", "oneOf"):
            if many in entry:
                found = []
                for part in entry[many]:
                    found += [kind for kind in value(part, depth) if kind not in found]
                return found
        if "allOf" in entry:
            return value(entry["allOf"][0], depth)
        if "enum" in entry or "const" in entry:
            return [{"one_of": [str(choice) for choice in entry.get("enum", [entry.get("const")])]}]
        kind = entry.get("type")
        if kind == "object" and entry.get("properties") and depth < 6:
            return [{"map": {name: value(inner, depth + 1) for name, inner in sorted(entry["properties"].items())}}]
        if kind == "array":
            return [{"list": value(entry["items"], depth + 1)}] if entry.get("items") else ["list"]
        return [{"string": "text", "integer": "int", "number": "float", "boolean": "bool", "null": "null", "object": "map"}.get(kind, "any")]

    keys = {name: value(entry) for name, entry in schema["properties"].items()}
    keys["learning_rate"] = ["float"]  # axolotl takes any text and fails on it once the model is loaded
    manifest = {
        "engine": "axolotl", "versions": {"axolotl": axolotl.__version__},
        "required": ["base_model", "datasets", "output_dir", "max_steps", "micro_batch_size", "gradient_accumulation_steps", "learning_rate"],
        "must": {}, "shared": keys, "programs": {"sft": {}, "dpo": {}},
    }
    write("axolotl-0.19.json", manifest)


if __name__ == "__main__":
    {"trl": trl, "axolotl": axolotl}[sys.argv[1]]()
