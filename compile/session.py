"""Runs an engine in ONNX Runtime: caches bound in place, prefill in chunks, one token at a time after that.

Shapes: B batch, T new tokens, S slots, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from blockwright.compile.checked_files import read_checked_engine
from blockwright.compile.contrib import set_accuracy_level
from blockwright.compile.cpu_attention import use_own_attention
from blockwright.compile.cpu_library import own_library
from blockwright.compile.cpu_products import DOMAIN, use_own_products
from blockwright.compile.engine import ENGINE_FILE, GRAPH_FILE, Engine, SessionSettings, read_engine
from blockwright.compile.places import Chunk, logits_after, places, reach_by_mask
from blockwright.compile.runtime import ORT_ERRORS, RUNNING_ERRORS, ort, refused
from blockwright.compile.slots import PREFILL_CHUNK, slots_for, slots_now
from blockwright.errors import InputError
from blockwright.spec import Attention, Model

DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
"""Of what a graph reads and writes, by ONNX Runtime's words."""

OperatorsOf = Literal["fastest", "onnxruntime"]
"""Whose int4 products and attention: the faster ones of this machine, or ONNX Runtime's, their reference."""


class Session(ort.InferenceSession):
    """A session that keeps alive what it reads of ours."""

    given: dict[str, ort.OrtValue]
    """Weights in our own order, by name."""


def make_session(
    graph: Path | bytes, settings: SessionSettings, data_folder: Path | None = None, operators: OperatorsOf = "fastest"
) -> Session:
    """Opens a graph in ONNX Runtime; one in memory may have its weights in files of a folder."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in session_entries(settings).items():
        options.add_session_config_entry(key, value)
    source = graph if isinstance(graph, bytes) else str(graph)
    library = own_library() if operators == "fastest" else None
    given: dict[str, ort.OrtValue] = {}
    if library is not None:
        data_folder = graph.parent if isinstance(graph, Path) else data_folder
        source, given = _with_own_operators(graph, data_folder, settings)
        options.register_custom_ops_library(str(library))
        for name, value in given.items():
            options.add_initializer(name, value)
    if data_folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data_folder))
    session = Session(source, options, providers=["CPUExecutionProvider"])
    session.given = given
    return session


def _with_own_operators(
    graph: Path | bytes, data_folder: Path | None, settings: SessionSettings
) -> tuple[bytes, dict[str, ort.OrtValue]]:
    """A graph with our own operators, and the weights that they read."""
    data = graph if isinstance(graph, bytes) else graph.read_bytes()
    try:
        model = onnx.load_from_string(data)
    except DecodeError:
        return data, {}  # ONNX Runtime says what is wrong with it
    has_attention = use_own_attention(model.graph)
    woven = use_own_products(model.graph, data_folder) if settings.accuracy_level == 4 else {}
    if not has_attention and not woven:
        return data, {}
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return model.SerializeToString(), {n: ort.OrtValue.ortvalue_from_numpy(array) for n, array in woven.items()}


def session_entries(settings: SessionSettings) -> dict[str, str]:
    """What a session is configured with beside its threads."""
    return {
        "session.intra_op.allow_spinning": str(int(settings.spins)),
        "session.set_denormal_as_zero": str(int(settings.zeroes_denormals)),
        "session.qdq_matmulnbits_accuracy_level": str(settings.accuracy_level),
    }


def _session_of_other_level(folder: Path, settings: SessionSettings, operators: OperatorsOf) -> Session:
    """Opens an engine at another accuracy level than its graph names."""
    graph = onnx.load(folder / GRAPH_FILE, load_external_data=False)
    set_accuracy_level(graph, settings.accuracy_level)
    return make_session(graph.SerializeToString(), settings, data_folder=folder, operators=operators)


class Decoder:
    """An engine opened for running."""

    def __init__(self, engine: Engine, session: Session) -> None:
        self.engine = engine
        self.session = session

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: SessionSettings | None = None,
        operators: OperatorsOf = "fastest",
        is_fresh: bool = False,
    ) -> "Decoder":
        """Opens an engine's folder, with its own session settings or others; one that is fresh is not held to its sums.

        Raises:
            InputError: the engine is incomplete or broken, or engine.json is of another model than the graph.
        """
        engine = read_engine(folder) if is_fresh else read_checked_engine(folder)
        settings = settings or engine.session
        try:
            if engine.flavour == "contrib" and settings.accuracy_level != engine.session.accuracy_level:
                session = _session_of_other_level(folder, settings, operators)
            else:
                session = make_session(folder / GRAPH_FILE, settings, operators=operators)
        except (*ORT_ERRORS, MemoryError) as error:
            raise refused(error, str(folder / GRAPH_FILE), "a graph that ONNX Runtime opens", "this machine") from error
        check_is_of(engine.model, session, folder)
        return cls(engine, session)

    def start(self, batch: int, num_tokens: int) -> "Sequences":
        """Makes room for a batch of new sequences of up to `num_tokens` each.

        Raises:
            InputError: that is longer than the engine was built for.
        """
        check_fits(self.engine, num_tokens)
        return Sequences(self.session, self.engine.model, batch, slots_for(num_tokens))


def check_fits(engine: Engine, num_tokens: int) -> None:
    """Refuses sequences that are longer than an engine was built for.

    Raises:
        InputError: they are.
    """
    if num_tokens > engine.num_positions:
        is_longest = engine.num_positions >= engine.model.max_positions
        longer = "the model's own context is no longer" if is_longest else "or compile with a longer --context"
        raise InputError(
            "prompt and new tokens",
            got=f"{num_tokens} tokens",
            expected=f"at most {engine.num_positions}",
            remedy=f"Shorten the prompt or ask for fewer tokens; {longer}.",
        )


Cache = dict[str, np.ndarray]
"""Buffers by the graph's input names, ``past_key_3`` and so on."""


def make_cache(model: Model, batch: int, slots: int) -> Cache:
    """Empty key-value buffers for every attention layer."""
    cache: Cache = {}
    for index, block in enumerate(model.layers):
        if isinstance(block.mixer, Attention):
            shape = (batch, block.mixer.num_kv_heads, slots, model.head_dim)
            for word in ("key", "value"):
                cache[f"past_{word}_{index}"] = np.zeros(shape, dtype=np.float32)
    return cache


def widened(old: np.ndarray, slots: int) -> np.ndarray:
    """A buffer of more slots that holds what the old one does."""
    new = np.zeros((*old.shape[:2], slots, old.shape[3]), dtype=old.dtype)
    new[:, :, : old.shape[2]] = old
    return new


def rows_at_once(session: ort.InferenceSession, lengths_B: np.ndarray) -> list[slice]:
    """Which prompts are read side by side: all, or where the flavour knows each text's last slot only, short ones."""
    batch = len(lengths_B)
    if lengths_B.max() > PREFILL_CHUNK and any(each.name == "last_slot" for each in session.get_inputs()):
        return [slice(row, row + 1) for row in range(batch)]
    return [slice(0, batch)]


def check_is_of(model: Model, session: ort.InferenceSession, folder: Path) -> None:
    """Refuses a description whose caches or vocabulary the graph has not; widths within layers it does not show."""
    described = {name: (array.shape[1], array.shape[3]) for name, array in make_cache(model, 1, 1).items()}
    caches = [each for each in session.get_inputs() if each.name.startswith("past_")]
    found = {each.name: (each.shape[1], each.shape[3]) for each in caches}
    described |= {"logits": (model.vocab_size,)}
    found |= {each.name: tuple(each.shape[1:]) for each in session.get_outputs() if each.name == "logits"}
    for name in sorted(described.keys() | found.keys()):
        if described.get(name) != found.get(name):
            raise InputError(
                f"{folder / ENGINE_FILE}: model",
                got=f"{name} of {described.get(name, 'no size')}",
                expected=f"{found.get(name, 'none')}, as {GRAPH_FILE} has it",
                remedy="It was changed, or is another engine's: compile the engine again.",
            )


class Binding:
    """The graph bound to buffers for T new tokens of B sequences; `run` reads and writes them in place."""

    def __init__(self, session: Session, model: Model, cache: Cache, shape: tuple[int, int, int]) -> None:
        batch, num_tokens, slots = shape
        self._session = session
        self._binding = session.io_binding()
        self._num_tokens = num_tokens
        self._slot_S = np.arange(slots)
        self._masks = reach_by_mask(model)
        sizes: dict[str, int] = {"batch": batch, "tokens": num_tokens, "slots": slots}
        declared = {each.name: each for each in (*session.get_inputs(), *session.get_outputs())}
        self.arrays: dict[str, np.ndarray] = {
            name: np.zeros([sizes[n] if isinstance(n, str) else n for n in each.shape], dtype=DTYPES[each.type])
            for name, each in declared.items()
            if not name.startswith(("past_", "present_"))
        }
        # On the CPU an OrtValue shares the array's memory, so writing to the array is all it takes.
        arrays = self.arrays | cache
        self._values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        for each in session.get_inputs():
            self._binding.bind_ortvalue_input(each.name, self._values[each.name])
        for each in session.get_outputs():
            self._binding.bind_ortvalue_output(each.name, self._values[each.name.replace("present_", "past_")])

    def place(self, starts_B: np.ndarray) -> None:
        """Says where the T new tokens of each sequence stand, in the words of the graph's flavour."""
        for name, value in places(self._masks, starts_B, self._num_tokens, self._slot_S).items():
            if name in self.arrays:
                self.arrays[name][...] = value()

    def run(self) -> None:
        """Runs the graph on what the arrays hold.

        Raises:
            InputError: ONNX Runtime fails, as where memory is too small.
        """
        try:
            self._session.run_with_iobinding(self._binding)
        except RUNNING_ERRORS as error:
            raise refused(error, "the engine", "a graph that ONNX Runtime runs", "this machine") from error


class Sequences:
    """A batch of sequences being written, with their cache, which grows with them up to `most_slots`."""

    def __init__(self, session: Session, model: Model, batch: int, most_slots: int) -> None:
        self._session, self._model, self._most_slots = session, model, most_slots
        self.cache = make_cache(model, batch, slots_now(0, most_slots))
        self._slots = slots_now(0, most_slots)
        self._step: Binding | None = None
        self.lengths_B = np.zeros(batch, dtype=np.int64)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Reads the prompts, shorter ones padded on the right, and returns the logits after each, logits_BV."""
        self.lengths_B = np.array([len(prompt) for prompt in prompts])
        self.make_room(int(self.lengths_B.max()))
        return np.concatenate([self._read(prompts[row], row) for row in rows_at_once(self._session, self.lengths_B)])

    def step(self, ids_B: np.ndarray) -> np.ndarray:
        """Appends one token to each sequence and returns the logits after it, logits_BV, valid until the next step."""
        self.make_room(int(self.lengths_B.max()) + 1)
        if self._step is None:
            self._step = self._bind(slice(0, len(ids_B)), 1)
        self._step.arrays["ids"][:, 0] = ids_B
        self._step.place(self.lengths_B)
        self._step.run()
        self.lengths_B += 1
        return self._step.arrays["logits"]

    def make_room(self, num_tokens: int) -> None:
        """Makes the cache as large as so many tokens need, keeping what it holds."""
        slots = slots_now(num_tokens, self._most_slots)
        if slots <= self._slots:
            return
        self._step = None
        for name in self.cache:  # one after another, so that old and new never stand side by side in full
            self.cache[name] = widened(self.cache[name], slots)
        self._slots = slots

    def _read(self, prompts: Sequence[Sequence[int]], rows: slice) -> np.ndarray:
        """Reads some rows' prompts in chunks, all rows at once."""

        def read(chunk: Chunk) -> np.ndarray:
            binding = self._bind(rows, chunk.ids_BT.shape[1])
            binding.arrays["ids"][:] = chunk.ids_BT
            binding.arrays["last"][:] = chunk.last_B
            binding.place(np.full(len(prompts), chunk.start))
            binding.run()
            return binding.arrays["logits"]

        return logits_after(prompts, self._model.vocab_size, read)

    def _bind(self, rows: slice, num_tokens: int) -> Binding:
        cache = {name: array[rows] for name, array in self.cache.items()}
        return Binding(self._session, self._model, cache, (rows.stop - rows.start, num_tokens, self._slots))
