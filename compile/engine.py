"""An engine on disk: the graph, its tokenizer, and engine.json, which says what it is and how to run it."""

import hashlib
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import onnx

import blockwright
from blockwright.compile.checkpoint import Weights, read_weights
from blockwright.compile.contrib import set_accuracy_level
from blockwright.compile.decoder import decoder_graph
from blockwright.compile.described import ENGINE_FILE, SCHEMA_VERSION, read_description
from blockwright.compile.flavour import Flavour, FlavourName, best_flavour
from blockwright.compile.weight_file import WeightFile
from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.files import new_file, new_folder, read_json, write_json
from blockwright.spec import Format, Model, format_of_model, with_format
from blockwright.strict import from_data, to_data

GRAPH_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
DATA_FILE = "model.onnx.data"


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
    operators: str | None = None
    """Whose multiplied and attended, as `cpu_library` names them; engines from before there were ours do not say."""
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
class StoredFile:
    """What a file was when it was written."""

    size_bytes: int
    sha256: str


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
    files: dict[str, StoredFile] = field(default_factory=dict)
    """The graph and its weights by name; engines from before weights were streamed do not say."""
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
    stop_ids, start_id = special_ids(checkpoint)
    with new_folder(folder) as temporary:
        engine = write_engine(order, read_weights(checkpoint), temporary, stop_ids, start_id)
        shutil.copyfile(checkpoint / TOKENIZER_FILE, temporary / TOKENIZER_FILE)
    return engine


def write_engine(
    order: EngineOrder, weights: Weights, folder: Path, stop_ids: tuple[int, ...] = (), start_id: int | None = None
) -> Engine:
    """Writes an engine without a tokenizer into an existing folder: all that running it on token ids needs."""
    weights_format = order.weights_format
    model = order.model if weights_format is None else with_format(order.model, weights_format)
    name = best_flavour(model) if order.flavour is None else order.flavour
    flavour = Flavour(name=name, accuracy_level=order.session.accuracy_level)
    files = write_graph(model, weights, order.num_positions, flavour, folder)
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
        files=files,
        built_from=order.built_from,
        versions={
            "blockwright": blockwright.__version__,
            "onnx": onnx.__version__,
            "python": platform.python_version(),
        },
    )
    write_json(folder / ENGINE_FILE, to_data(engine))
    return engine


def write_graph(
    model: Model,
    weights: Weights,
    num_positions: int,
    flavour: Flavour,
    folder: Path,
    make: Callable[..., onnx.ModelProto] = decoder_graph,
) -> dict[str, StoredFile]:
    """Writes the graph of a decoder, or of its layers alone by `stack_graph`, and its weights into a file beside it."""
    with new_file(folder / DATA_FILE) as temporary, temporary.open("wb") as stream:
        store = WeightFile(stream, DATA_FILE)
        graph = make(model, weights, num_positions, flavour, store)
    return {
        GRAPH_FILE: _write_graph(graph, folder),
        DATA_FILE: StoredFile(size_bytes=store.size_bytes, sha256=store.sha256),
    }


def adopt_tuning(folder: Path, tuning: Tuning) -> Engine:
    """Gives an engine the fastest of the settings that were tried with it.

    Raises:
        InputError: the engine is incomplete or broken.
    """
    engine, settings = read_engine(folder), tuning.fastest.settings
    files = engine.files
    if engine.flavour == "contrib" and settings.accuracy_level != engine.session.accuracy_level:
        graph = onnx.load(folder / GRAPH_FILE, load_external_data=False)
        set_accuracy_level(graph, settings.accuracy_level)
        files = files | {GRAPH_FILE: _write_graph(graph, folder)}
    engine = replace(engine, session=settings, tuning=tuning, graph_bytes=_size_of_graph(folder), files=files)
    write_json(folder / ENGINE_FILE, to_data(engine))
    return engine


def read_engine(folder: Path) -> Engine:
    """Reads an engine's description.

    Raises:
        InputError: there is none, it is broken, or its graph is missing or cut short.
    """
    engine = from_data(Engine, read_description(folder, "onnxruntime"), str(folder / ENGINE_FILE))
    check_sizes(folder, engine.files)
    size = _size_of_graph(folder)
    _check_same(folder / GRAPH_FILE, f"{size} bytes with its data", f"{engine.graph_bytes} bytes with its data")
    return engine


def read_whole_engine(folder: Path) -> Engine:
    """As `read_engine`, and every byte of the graph and its weights is held against what was written.

    Raises:
        InputError: one differs too.
    """
    engine = read_engine(folder)
    check_digests(folder, engine.files)
    return engine


def check_sizes(folder: Path, files: dict[str, StoredFile]) -> None:
    """Refuses files that are gone or cut short."""
    for name, stored in files.items():
        path = folder / name
        got = f"{_size_of(path)} bytes" if path.exists() else "no such file"
        _check_same(path, got, f"{stored.size_bytes} bytes")


def check_digests(folder: Path, files: dict[str, StoredFile]) -> None:
    """Refuses files of which a byte is another."""
    for name, stored in files.items():
        with (folder / name).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != stored.sha256:
            raise InputError(
                str(folder / name),
                got=f"other bytes than were written, SHA-256 {found[:12]}…",
                expected=f"SHA-256 {stored.sha256[:12]}…, by {ENGINE_FILE}",
                remedy="It was changed or damaged. Copy the engine again, or compile it again.",
            )


def _check_same(file: Path, got: str, expected: str) -> None:
    if got != expected:
        remedy = "The engine is incomplete: compile it again."
        raise InputError(str(file), got=got, expected=expected, remedy=remedy)


def _write_graph(graph: onnx.ModelProto, folder: Path) -> StoredFile:
    data = graph.SerializeToString()
    with new_file(folder / GRAPH_FILE) as temporary:
        temporary.write_bytes(data)
    return StoredFile(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _size_of_graph(folder: Path) -> int:
    return _size_of(folder / GRAPH_FILE) + _size_of(folder / DATA_FILE)


def _size_of(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def special_ids(checkpoint: Path) -> tuple[tuple[int, ...], int | None]:
    """The tokens that end a text and the one that begins it, of a checkpoint that can be shipped with its tokenizer.

    Raises:
        InputError: the tokenizer or the configuration is missing.
    """
    tokenizer = checkpoint / TOKENIZER_FILE
    if not tokenizer.exists():
        raise InputError(
            str(tokenizer),
            got="no such file",
            expected="the tokenizer in the format of the tokenizers library",
            remedy="Save it there with AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        )
    config = read_json(checkpoint / "config.json")
    start_id, stop = config.get("bos_token_id"), config.get("eos_token_id")
    stop_ids = set(stop if isinstance(stop, list) else [] if stop is None else [stop])
    # Some models end a text with the token that begins the next one.
    return tuple(sorted(stop_ids | (set() if start_id is None else {start_id}))), start_id
