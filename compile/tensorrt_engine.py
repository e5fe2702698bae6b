"""A TensorRT engine on disk: the plan, the graph it was built from, the tokenizer, and engine.json.

The graph of the fused form is the one that runs in ONNX Runtime, in fp16 or bf16 and with caches of a fixed size, for
TensorRT updates a cache in place and must know how long it is. Before 10.15 it does not: there the graph is decomposed,
and returns what its caller writes. One plan has two profiles, for reading a prompt and for writing token by
token, each with the text of its kernels, which is what a plan has beside the weights. The second takes exactly one
token, for which kernels are simpler, unless that costs a second copy of weights (`takes_one_token`).
"""

import hashlib
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

import blockwright
from blockwright.compile.checkpoint import read_weights
from blockwright.compile.described import SCHEMA_VERSION, read_description
from blockwright.compile.engine import (
    DATA_FILE,
    ENGINE_FILE,
    GRAPH_FILE,
    TOKENIZER_FILE,
    StoredFile,
    check_digests,
    check_sizes,
    special_ids,
    write_graph,
)
from blockwright.compile.flavour import Flavour
from blockwright.compile.graph import Activations
from blockwright.compile.slots import PREFILL_CHUNK, slots_for
from blockwright.compile.tensorrt_build import BuildRequest, TokenRange, build_apart
from blockwright.compile.tensorrt_checks import check_plan_size, expected_of, int4_bytes
from blockwright.compile.tensorrt_package import Form, Package, PackageName
from blockwright.compile.tensorrt_stored import Stored
from blockwright.files import new_folder, write_json
from blockwright.spec import Model, format_of_model
from blockwright.strict import from_data, to_data

PLAN_FILE = "model.plan"
TIMING_FILE = "timing.cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRtEngine:
    """What engine.json says."""

    schema_version: Literal[1]
    target: Literal["tensorrt"]
    package: PackageName
    package_version: str
    """A plan opens in this version only."""
    form: Form = "fused"
    """A decomposed one returns new keys and values, which the caller writes into the caches (`compile/decomposed.py`).
    Engines from before there were two do not say."""
    compute_capabilities: tuple[str, ...]
    format: str
    """Of the layers; ``mixed`` where they differ, as `model` says."""
    activations: Activations
    model: Model
    num_positions: int
    """Longest sequence, prompt and new tokens together."""
    slots: int
    """Of every cache."""
    most_sequences: int
    """Side by side."""
    profiles: tuple[TokenRange, ...]
    census: dict[str, int] | None
    """Layers of the parsed network by kind; None, as in the next two, of a plan that trtexec made."""
    is_attention_decomposed: bool | None
    """Of the fused form: TensorRT has no kernel for heads of this size, and writes out all scores instead."""
    weight_bytes: int
    """Of the weights as the graph stores them."""
    build_s: float | None
    stop_ids: tuple[int, ...]
    start_id: int | None
    files: dict[str, StoredFile]
    built_from: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRtOrder:
    """What to build."""

    stored: Stored
    num_positions: int
    most_sequences: int
    package: Package
    capabilities: tuple[str, ...]
    built_from: str
    """Digest of the checkpoint."""
    form: Form = "fused"


def flavour_of(form: Form, stored: Stored, slots: int) -> Flavour:
    """In which operators the graph of a form is written."""
    name = "standard" if form == "fused" else "decomposed"
    return Flavour(name=name, activations=stored.activations, slots=slots, codes_in="words")


def takes_one_token(package: PackageName, stored: Stored, most_sequences: int) -> bool:
    """Whether the profile for writing can take one token and no more, without a second copy of any weight.

    TensorRT-RTX 1.7.1 copies fp16 matrices where batch and tokens are both fixed (a plan of 746 MB in place of 415),
    and none in int4. What full TensorRT does was not tried.
    """
    return package == "tensorrt_rtx" and (most_sequences > 1 or stored.is_all_int4)


def token_ranges(slots: int, decode_takes_one: bool = False) -> tuple[TokenRange, ...]:
    """The profiles of an engine whose caches have so many slots; else both allow the same numbers of tokens."""
    most = min(PREFILL_CHUNK, slots)
    return (
        TokenRange(name="prefill", fewest=1, typical=most, most=most),
        TokenRange(name="decode", fewest=1, typical=1, most=1 if decode_takes_one else most),
    )


def build_tensorrt_engine(order: TensorRtOrder, checkpoint: Path, folder: Path) -> TensorRtEngine:
    """Builds an engine from a checkpoint's folder, whole or not at all.

    Raises:
        InputError: the checkpoint is broken, or TensorRT refuses what is made of it.
    """
    stop_ids, start_id = special_ids(checkpoint)
    slots, stored, package = slots_for(order.num_positions), order.stored, order.package
    profiles = token_ranges(slots, takes_one_token(package.name, stored, order.most_sequences))
    flavour = flavour_of(order.form, stored, slots)
    with new_folder(folder) as temporary:
        files = write_graph(stored.model, read_weights(checkpoint), order.num_positions, flavour, temporary)
        if package.name == "tensorrt" and (folder / TIMING_FILE).exists():
            shutil.copyfile(folder / TIMING_FILE, temporary / TIMING_FILE)
        built = build_apart(_request(order, profiles, temporary), package)
        files |= {PLAN_FILE: _stored_file(temporary / PLAN_FILE)}
        weight_bytes = files[DATA_FILE].size_bytes
        check_plan_size(files[PLAN_FILE].size_bytes, weight_bytes, int4_bytes(stored.model), len(profiles))
        shutil.copyfile(checkpoint / TOKENIZER_FILE, temporary / TOKENIZER_FILE)
        engine = TensorRtEngine(
            schema_version=SCHEMA_VERSION,
            target="tensorrt",
            package=package.name,
            package_version=package.version,
            form=order.form,
            compute_capabilities=order.capabilities,
            format=format_of_model(stored.model),
            activations=stored.activations,
            model=stored.model,
            num_positions=order.num_positions,
            slots=slots,
            most_sequences=order.most_sequences,
            profiles=profiles,
            census=built.census,
            is_attention_decomposed=built.is_attention_decomposed,
            weight_bytes=weight_bytes,
            build_s=built.build_s,
            stop_ids=stop_ids,
            start_id=start_id,
            files=files,
            built_from=order.built_from,
            versions=_versions(),
        )
        write_json(temporary / ENGINE_FILE, to_data(engine))
    return engine


def read_tensorrt_engine(folder: Path, is_whole: bool = False) -> TensorRtEngine:
    """Reads an engine's description.

    Args:
        folder: the engine's.
        is_whole: hold every byte of its files against what was written.

    Raises:
        InputError: there is none, or a file of it is missing or broken.
    """
    engine = from_data(TensorRtEngine, read_description(folder, "tensorrt"), str(folder / ENGINE_FILE))
    check_sizes(folder, engine.files)
    if is_whole:
        check_digests(folder, engine.files)
    return engine


def _request(order: TensorRtOrder, profiles: tuple[TokenRange, ...], folder: Path) -> BuildRequest:
    return BuildRequest(
        package=order.package.name,
        graph=str(folder / GRAPH_FILE),
        plan=str(folder / PLAN_FILE),
        capabilities=order.capabilities,
        profiles=profiles,
        most_sequences=order.most_sequences,
        expected=expected_of(order.stored.model, order.form),
        # TensorRT-RTX: «Timing cache operations are no-ops».
        timing_cache=str(folder / TIMING_FILE) if order.package.name == "tensorrt" else None,
    )


def _stored_file(path: Path) -> StoredFile:
    with path.open("rb") as stream:
        return StoredFile(size_bytes=path.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


def _versions() -> dict[str, str]:
    return {"blockwright": blockwright.__version__, "onnx": onnx.__version__, "python": platform.python_version()}
