"""An engine on disk: the graph, its tokenizer, and engine.json, which says what it is and how to run it."""

import platform
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from safetensors import SafetensorError, safe_open

import blockwright
from blockwright.compile.contrib import set_accuracy_level
from blockwright.compile.decoder import Weights, decoder_graph
from blockwright.compile.flavour import Flavour, FlavourName, best_flavour
from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.files import new_file, new_folder, read_json, write_json
from blockwright.spec import Format, Model, format_of_model, with_format
from blockwright.strict import from_data, to_data

ENGINE_FILE = "engine.json"
GRAPH_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
SCHEMA_VERSION = 1
DATA_FILE = "model.onnx.data"
_MIN_EXTERNAL_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How the runtime is set up for an engine."""

    num_threads: int
    accuracy_level: Literal[0, 4] = 4
    """For integer weights: 4 rounds activations to int8 as well, which is faster; 0 computes in fp32."""
    spins: bool = False
    """Threads wait for work without sleeping: faster with several on a quiet machine, slower on a busy one."""
    zeroes_denormals: bool = True
    """Numbers too small for full precision, which are several times as slow, count as 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What an engine was measured to take with some settings."""

    settings: SessionSettings
    time_per_token_s: float
    time_to_first_token_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How the settings of an engine were chosen."""

    device: str
    load: Load
    tried: tuple[Tried, ...]

    @property
    def fastest(self) -> Tried:
        """Takes the least time for the whole load."""
        return min(self.tried, key=self.time_s)

    def time_s(self, tried: Tried) -> float:
        """Reading the prompt and writing the new tokens."""
        return tried.time_to_first_token_s + self.load.new_tokens * tried.time_per_token_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What engine.json says."""

    schema_version: Literal[1]
    target: Literal["onnxruntime"]
    flavour: FlavourName = "standard"
    """In which operators the graph is written; engines from before there were two do not say."""
    format: str
    """Of the layers; ``mixed`` where they differ, as `model` says."""
    model: Model
    num_positions: int
    """Longest sequence, prompt and new tokens together."""
    stop_ids: tuple[int, ...]
    start_id: int | None
    """What an empty prompt begins with."""
    session: SessionSettings
    tuning: Tuning | None = None
    """What the settings were chosen by; None where they are those that are good on most machines."""
    graph_bytes: int
    built_from: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOrder:
    """What to build."""

    model: Model
    weights_format: Format | None
    """Of all layers, with a head that suits it; None to store everything as the model says."""
    num_positions: int
    session: SessionSettings
    built_from: str
    """Digest of the checkpoint."""
    flavour: FlavourName | None = None
    """None for the default one where the model can be written in it."""


def build_engine(order: EngineOrder, checkpoint: Path, folder: Path) -> Engine:
    """Builds an engine from a checkpoint's folder, whole or not at all.

    Raises:
        InputError: the checkpoint's weights or tokenizer are missing or broken.
    """
    tokenizer = checkpoint / TOKENIZER_FILE
    if not tokenizer.exists():
        raise InputError(
            str(tokenizer),
            got="no such file",
            expected="the tokenizer in the format of the tokenizers library",
            remedy="Save it there with AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        )
    stop_ids, start_id = _special_ids(read_json(checkpoint / "config.json"))
    with new_folder(folder) as temporary:
        engine = write_engine(order, read_weights(checkpoint), temporary, stop_ids, start_id)
        shutil.copyfile(tokenizer, temporary / TOKENIZER_FILE)
    return engine


def write_engine(
    order: EngineOrder, weights: Weights, folder: Path, stop_ids: tuple[int, ...] = (), start_id: int | None = None
) -> Engine:
    """Writes an engine without a tokenizer into an existing folder: all that running it on token ids needs."""
    weights_format = order.weights_format
    model = order.model if weights_format is None else with_format(order.model, weights_format)
    name = best_flavour(model) if order.flavour is None else order.flavour
    flavour = Flavour(name=name, accuracy_level=order.session.accuracy_level)
    _save_graph(decoder_graph(model, weights, order.num_positions, flavour), folder / GRAPH_FILE)
    engine = Engine(
        schema_version=SCHEMA_VERSION,
        target="onnxruntime",
        flavour=name,
        format=format_of_model(model) if weights_format is None else str(weights_format),
        model=model,
        num_positions=order.num_positions,
        stop_ids=stop_ids,
        start_id=start_id,
        session=order.session,
        graph_bytes=_size_of_graph(folder),
        built_from=order.built_from,
        versions={
            "blockwright": blockwright.__version__,
            "onnx": onnx.__version__,
            "python": platform.python_version(),
        },
    )
    write_json(folder / ENGINE_FILE, to_data(engine))
    return engine


def adopt_tuning(folder: Path, tuning: Tuning) -> Engine:
    """Gives an engine the fastest of the settings that were tried with it.

    Raises:
        InputError: the engine is incomplete or broken.
    """
    engine, settings = read_engine(folder), tuning.fastest.settings
    if engine.flavour == "contrib" and settings.accuracy_level != engine.session.accuracy_level:
        graph = onnx.load(folder / GRAPH_FILE, load_external_data=False)
        set_accuracy_level(graph, settings.accuracy_level)
        with new_file(folder / GRAPH_FILE) as temporary:
            temporary.write_bytes(graph.SerializeToString())
    engine = replace(engine, session=settings, tuning=tuning, graph_bytes=_size_of_graph(folder))
    write_json(folder / ENGINE_FILE, to_data(engine))
    return engine


def read_engine(folder: Path) -> Engine:
    """Reads an engine's description.

    Raises:
        InputError: there is none, it is broken, or its graph is missing or cut short.
    """
    engine = from_data(Engine, read_json(folder / ENGINE_FILE), str(folder / ENGINE_FILE))
    size = _size_of_graph(folder)
    if size != engine.graph_bytes:
        raise InputError(
            str(folder / GRAPH_FILE),
            got=f"{size} bytes with its data",
            expected=f"{engine.graph_bytes} bytes",
            remedy="The engine is incomplete: compile it again.",
        )
    return engine


def read_weights(folder: Path) -> Weights:
    """All tensors of a checkpoint, in fp32.

    Raises:
        InputError: a file is missing or broken; or, later, a tensor that is looked up is missing.
    """
    weights = _Tensors(folder)
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    weights[name] = tensors.get_tensor(name).astype(np.float32)
        except (SafetensorError, OSError) as error:
            raise InputError(
                str(file), got=str(error), expected="a whole safetensors file", remedy="Write the checkpoint again."
            ) from error
    if not weights:
        raise InputError(
            str(folder), got="no safetensors file", expected="a checkpoint", remedy="Name a checkpoint's folder."
        )
    return weights


class _Tensors(dict[str, np.ndarray]):
    """A checkpoint's tensors; one that is asked for and missing is the user's matter."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> np.ndarray:
        raise InputError(
            f"{self._folder}: weights",
            got=f"no tensor {name}",
            expected="the weights of every block",
            remedy="Write the checkpoint again, or compile the one that belongs to this plan.",
        )


def _save_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Keeps the weights in a file of their own, which ONNX Runtime maps into memory instead of copying."""
    onnx.save_model(graph, path, save_as_external_data=True, location=DATA_FILE, size_threshold=_MIN_EXTERNAL_BYTES)
    for file in (path, path.parent / DATA_FILE):
        if file.exists():
            file.chmod(0o644)  # onnx writes its data for the owner only


def _size_of_graph(folder: Path) -> int:
    files = (folder / GRAPH_FILE, folder / DATA_FILE)
    return sum(file.stat().st_size for file in files if file.exists())


def _special_ids(config: dict[str, Any]) -> tuple[tuple[int, ...], int | None]:
    start_id, stop = config.get("bos_token_id"), config.get("eos_token_id")
    stop_ids = set(stop if isinstance(stop, list) else [] if stop is None else [stop])
    # Some models end a text with the token that begins the next one.
    return tuple(sorted(stop_ids | (set() if start_id is None else {start_id}))), start_id
