"""Packs what TensorRT needs to build an engine on the device itself, where neither torch nor Blockwright is installed.

A kit is a zip: the graph and its weights, the tokenizer, ``kit.json``, and two ways to build. ``build.py`` (in the
repository `tensorrt_kit_run.py`) needs Python 3.10, as JetPack 6 has it, and the tensorrt package, checks the parsed
network and the plan as `blockwright compile` does, and leaves an engine's folder. ``sh build.sh`` needs trtexec only,
and checks nothing.

`blockwright generate` opens the folder on such a device where Python is 3.11 or later, as Blockwright needs. With
JetPack 6 a program of one's own runs the plan: `decoder` and `decomposed` name its inputs and outputs.
"""

import hashlib
import json
import stat
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import onnx

import blockwright
from blockwright.compile.checkpoint import read_weights
from blockwright.compile.described import SCHEMA_VERSION
from blockwright.compile.engine import GRAPH_FILE, TOKENIZER_FILE, special_ids, write_graph
from blockwright.compile.slots import slots_for
from blockwright.compile.tensorrt_build import TokenRange
from blockwright.compile.tensorrt_checks import expected_of, int4_bytes
from blockwright.compile.tensorrt_engine import PLAN_FILE, flavour_of, takes_one_token, token_ranges
from blockwright.compile.tensorrt_package import Form, PackageName
from blockwright.compile.tensorrt_stored import Stored
from blockwright.files import new_file
from blockwright.spec import format_of_model
from blockwright.strict import to_data

KIT_FILE, BUILDER_FILE, SCRIPT_FILE = "kit.json", "build.py", "build.sh"
_MODULES = ("__init__", "errors", "files", "unfinished", "strict", "spec", "count")
_COMPILE_MODULES = (
    "__init__",
    "described",
    "older_python",
    "replaced",
    "tensorrt_build",
    "tensorrt_checks",
    "tensorrt_package",
)
"""What the builder imports; a test holds this against what it really does."""

_FIRST_OF_ALL = "\nfrom blockwright.compile import older_python as older_python\n"
"""What is imported before the rest, in every process that finds a kit's modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRtKitOrder:
    """What a kit is to build."""

    stored: Stored
    num_positions: int
    most_sequences: int
    capabilities: tuple[str, ...] | None
    """For TensorRT-RTX, as ``sm86``; None for the GPU of the device, which is all that TensorRT builds for."""
    built_from: str
    """Digest of the checkpoint."""
    form: Form = "fused"


def write_tensorrt_kit(order: TensorRtKitOrder, checkpoint: Path, path: Path) -> int:
    """Writes a kit, whole or not at all.

    Args:
        order: what it is to build.
        checkpoint: the folder that weights and tokenizer come from.
        path: the zip.

    Returns:
        Its size in bytes.

    Raises:
        InputError: the checkpoint is broken.
    """
    slots, stored = slots_for(order.num_positions), order.stored
    flavour = flavour_of(order.form, stored, slots)
    with tempfile.TemporaryDirectory(dir=path.parent) as home, new_file(path) as temporary:
        folder = Path(home)
        files = write_graph(stored.model, read_weights(checkpoint), order.num_positions, flavour, folder)
        inputs = _inputs(folder / GRAPH_FILE)
        builder = _builder() | {SCRIPT_FILE: _trtexec(inputs, token_ranges(slots), order.most_sequences)}
        digests = {name: file.sha256 for name, file in files.items()}
        digests |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in builder.items()}
        tokenizer = (checkpoint / TOKENIZER_FILE).read_bytes()
        digests |= {TOKENIZER_FILE: hashlib.sha256(tokenizer).hexdigest()}
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in files:
                # Weights hardly shrink, and packing them takes longer than carrying them.
                archive.write(folder / name, name, zipfile.ZIP_STORED)
            archive.writestr(TOKENIZER_FILE, tokenizer)
            described = _description(order, checkpoint, to_data(files)) | {"digests": digests}
            archive.writestr(KIT_FILE, json.dumps(described, indent=1))
            for name, text in builder.items():
                _write(archive, name, text, is_program=name == SCRIPT_FILE)
    return path.stat().st_size


def _description(order: TensorRtKitOrder, checkpoint: Path, files: dict[str, Any]) -> dict[str, Any]:
    """What the builder is to do, and what is known of the engine before it."""
    stop_ids, start_id = special_ids(checkpoint)
    slots, model = slots_for(order.num_positions), order.stored.model
    packages: tuple[PackageName, ...] = ("tensorrt", "tensorrt_rtx")
    return {
        "schema_version": SCHEMA_VERSION,
        "capabilities": None if order.capabilities is None else list(order.capabilities),
        "expected": to_data(expected_of(model, order.form)),
        "int4_bytes": int4_bytes(model),
        "profiles": {
            name: to_data(token_ranges(slots, takes_one_token(name, order.stored, order.most_sequences)))
            for name in packages
        },
        "engine": {
            "schema_version": SCHEMA_VERSION,
            "target": "tensorrt",
            "form": order.form,
            "format": format_of_model(model),
            "activations": order.stored.activations,
            "model": to_data(model),
            "num_positions": order.num_positions,
            "slots": slots,
            "most_sequences": order.most_sequences,
            "stop_ids": list(stop_ids),
            "start_id": start_id,
            "files": files,
            "built_from": order.built_from,
            "versions": {"blockwright": blockwright.__version__, "onnx": onnx.__version__},
        },
    }


def _inputs(graph: Path) -> dict[str, list[int | str]]:
    """The graph's inputs by name: sizes, or the names of those that are open."""
    declared = onnx.load(graph, load_external_data=False).graph.input
    return {
        each.name: [size.dim_param or size.dim_value for size in each.type.tensor_type.shape.dim] for each in declared
    }


def _trtexec(inputs: dict[str, list[int | str]], ranges: tuple[TokenRange, ...], most_sequences: int) -> str:
    """A shell script, never run here. Its flags stand in TensorRT 10.15's documentation, and in 10.5's ``--help``."""

    def shapes(batch: int, tokens: int) -> str:
        sizes = {"batch": batch, "tokens": tokens}
        each = (f"{name}:" + "x".join(str(sizes.get(str(s), s)) for s in shape) for name, shape in inputs.items())
        return ",".join(each)

    lines = ["#!/bin/sh", "# Builds with trtexec alone. Nothing is checked: build.py does that too.", "set -eu"]
    lines += ['PATH="$PATH:/usr/src/tensorrt/bin"  # where Jetsons have it']
    lines += [
        "if ! command -v trtexec > /dev/null; then",
        "  echo 'error: trtexec: got none; expected the one of TensorRT. Put it on PATH, or run build.py.' >&2",
        "  exit 2",
        "fi",
    ]
    lines += ['cd "$(dirname "$0")"', f"trtexec --onnx={GRAPH_FILE} --stronglyTyped --saveEngine={PLAN_FILE} \\"]
    for number, one in enumerate(ranges):
        lines += [
            f"  --profile={number} \\",
            f"  --minShapes={shapes(1, one.fewest)} \\",
            f"  --optShapes={shapes(most_sequences, one.typical)} \\",
            f"  --maxShapes={shapes(most_sequences, one.most)} \\",
        ]
    lines += [
        "  --skipInference",
        f"echo '{PLAN_FILE} is built. Next, with the version that trtexec told of above:'",
        f'echo "  python3 $(pwd)/{BUILDER_FILE} --plan $(pwd)/{PLAN_FILE} --version VERSION --out engine"',
    ]
    return "\n".join(lines) + "\n"


def _builder() -> dict[str, str]:
    """The program that builds, and what it imports, by the names that they have in a kit."""
    compiling, shared = resources.files("blockwright.compile"), resources.files("blockwright")
    texts = {BUILDER_FILE: (compiling / "tensorrt_kit_run.py").read_text()}
    for name in _MODULES:
        text = (shared / f"{name}.py").read_text()
        texts[f"blockwright/{name}.py"] = text + _FIRST_OF_ALL * (name == "__init__")
    for name in _COMPILE_MODULES:
        texts[f"blockwright/compile/{name}.py"] = (compiling / f"{name}.py").read_text()
    return texts


def _write(archive: zipfile.ZipFile, name: str, text: str, is_program: bool) -> None:
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = (stat.S_IFREG | (0o755 if is_program else 0o644)) << 16
    archive.writestr(entry, text)
