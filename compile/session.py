"""Runs an engine in ONNX Runtime: caches bound in place, prefill in chunks, one token at a time after that.

Shapes: B batch, T new tokens, S slots, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from blockwright.compile.decoder import mask_name
from blockwright.compile.engine import GRAPH_FILE, Engine, SessionSettings, read_engine
from blockwright.compile.runtime import ORT_ERRORS, ort
from blockwright.compile.slots import PREFILL_CHUNK, slots_for
from blockwright.errors import InputError
from blockwright.spec import Attention, Full, Model, Reach, Window


def make_session(graph: Path | bytes, settings: SessionSettings) -> ort.InferenceSession:
    """Opens a graph in ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in session_entries(settings).items():
        options.add_session_config_entry(key, value)
    source = graph if isinstance(graph, bytes) else str(graph)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def session_entries(settings: SessionSettings) -> dict[str, str]:
    """What a session is configured with beside its threads."""
    return {
        "session.intra_op.allow_spinning": "0",  # waiting threads would take the core
        "session.set_denormal_as_zero": "1",  # denormals are several times as slow
        "session.qdq_matmulnbits_accuracy_level": str(settings.accuracy_level),
    }


class Decoder:
    """An engine opened for running."""

    def __init__(self, engine: Engine, session: ort.InferenceSession) -> None:
        self.engine = engine
        self.session = session

    @classmethod
    def open(cls, folder: Path, settings: SessionSettings | None = None) -> "Decoder":
        """Opens an engine's folder, with its own session settings or others.

        Raises:
            InputError: the engine is incomplete or broken.
        """
        engine = read_engine(folder)
        try:
            session = make_session(folder / GRAPH_FILE, settings or engine.session)
        except ORT_ERRORS as error:
            raise InputError(
                str(folder / GRAPH_FILE),
                got=str(error).splitlines()[0],
                expected="a graph that ONNX Runtime opens",
                remedy="Compile the engine again with the installed versions.",
            ) from error
        return cls(engine, session)

    def start(self, batch: int, num_tokens: int) -> "Sequences":
        """Makes room for a batch of new sequences of up to `num_tokens` each.

        Raises:
            InputError: that is longer than the engine was built for.
        """
        if num_tokens > self.engine.num_positions:
            raise InputError(
                "prompt and new tokens",
                got=f"{num_tokens} tokens",
                expected=f"at most {self.engine.num_positions}",
                remedy="Shorten the prompt, ask for fewer tokens, or compile with a longer context.",
            )
        slots = slots_for(num_tokens)
        return Sequences(self.session, self.engine.model, make_cache(self.engine.model, batch, slots), slots)


Cache = dict[str, ort.OrtValue]
"""Buffers by the graph's input names, ``past_key_3`` and so on."""


def make_cache(model: Model, batch: int, slots: int) -> Cache:
    """Empty key-value buffers for every attention layer."""
    cache: Cache = {}
    for index, block in enumerate(model.layers):
        if isinstance(block.mixer, Attention):
            shape = (batch, block.mixer.num_kv_heads, slots, model.head_dim)
            for word in ("key", "value"):
                cache[f"past_{word}_{index}"] = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=np.float32))
    return cache


class Binding:
    """The graph bound to buffers for T new tokens of B sequences; `run` reads and writes them in place."""

    def __init__(
        self, session: ort.InferenceSession, model: Model, cache: Cache, shape: tuple[int, int, int], data: str = "ids"
    ) -> None:
        batch, num_tokens, slots = shape
        self._session = session
        self._binding = session.io_binding()
        self.reaches = list({b.mixer.reach: None for b in model.layers if isinstance(b.mixer, Attention)})
        self.arrays: dict[str, np.ndarray] = {
            "positions": np.zeros((batch, num_tokens), dtype=np.int64),
            "write_index": np.zeros(batch, dtype=np.int64),
        }
        self.arrays |= {mask_name(r): np.zeros((batch, 1, num_tokens, slots), dtype=bool) for r in self.reaches}
        if data == "ids":
            self.arrays["ids"] = np.zeros((batch, num_tokens), dtype=np.int64)
            self.arrays["last"] = np.full(batch, num_tokens - 1, dtype=np.int64)
            self.arrays["logits"] = np.zeros((batch, model.vocab_size), dtype=np.float32)
        else:
            self.arrays["hidden_in"] = np.zeros((batch, num_tokens, model.hidden_size), dtype=np.float32)
            self.arrays["hidden_out"] = np.zeros((batch, num_tokens, model.hidden_size), dtype=np.float32)
        self._slot_S = np.arange(slots)
        # On the CPU an OrtValue shares the array's memory, so writing to the array is all it takes.
        self._values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self.arrays.items()}
        known = self._values | cache
        for declared in session.get_inputs():
            self._binding.bind_ortvalue_input(declared.name, known[declared.name])
        for declared in session.get_outputs():
            buffer = known[declared.name.replace("present_", "past_")]
            self._binding.bind_ortvalue_output(declared.name, buffer)

    def place(self, starts_B: np.ndarray) -> None:
        """Says where the T new tokens of each sequence stand: positions, slots, and what they may see."""
        num_tokens = self.arrays["positions"].shape[1]
        positions_BT = starts_B[:, None] + np.arange(num_tokens)
        self.arrays["positions"][:] = positions_BT
        self.arrays["write_index"][:] = starts_B
        for reach in self.reaches:
            self.arrays[mask_name(reach)][:, 0] = visible(reach, positions_BT, self._slot_S)

    def run(self) -> None:
        """Runs the graph on what the arrays hold."""
        self._session.run_with_iobinding(self._binding)


def visible(reach: Reach, positions_BT: np.ndarray, slot_S: np.ndarray) -> np.ndarray:
    """Which slots tokens at these positions may see, mask_BTS; slot and position are the same number."""
    mask_BTS = slot_S <= positions_BT[..., None]
    if isinstance(reach, Window):
        mask_BTS &= slot_S > positions_BT[..., None] - reach.num_tokens
    else:
        assert isinstance(reach, Full)
    return mask_BTS


class Sequences:
    """A batch of sequences being written, with their cache."""

    def __init__(self, session: ort.InferenceSession, model: Model, cache: Cache, slots: int) -> None:
        self._session, self._model, self._cache, self._slots = session, model, cache, slots
        self._step: Binding | None = None
        self.lengths_B = np.zeros(0, dtype=np.int64)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Reads the prompts, shorter ones padded on the right, and returns the logits after each, logits_BV."""
        batch, longest = len(prompts), max(map(len, prompts))
        self.lengths_B = np.array([len(prompt) for prompt in prompts])
        ids_BT = np.zeros((batch, longest), dtype=np.int64)
        for row, prompt in zip(ids_BT, prompts, strict=True):
            row[: len(prompt)] = prompt
        logits_BV: np.ndarray | None = None
        for start in range(0, longest, PREFILL_CHUNK):
            chunk_BT = ids_BT[:, start : start + PREFILL_CHUNK]
            binding = self._bind(chunk_BT.shape[0], chunk_BT.shape[1])
            binding.arrays["ids"][:] = chunk_BT
            last_B = self.lengths_B - 1 - start
            binding.arrays["last"][:] = last_B.clip(0, chunk_BT.shape[1] - 1)
            binding.place(np.full(batch, start))
            binding.run()
            ends_here_B = (last_B >= 0) & (last_B < chunk_BT.shape[1])
            found_BV = binding.arrays["logits"]
            logits_BV = found_BV if logits_BV is None else np.where(ends_here_B[:, None], found_BV, logits_BV)
        assert logits_BV is not None
        return logits_BV

    def step(self, ids_B: np.ndarray) -> np.ndarray:
        """Appends one token to each sequence and returns the logits after it, logits_BV, valid until the next step."""
        if self._step is None:
            self._step = self._bind(len(ids_B), 1)
        self._step.arrays["ids"][:, 0] = ids_B
        self._step.place(self.lengths_B)
        self._step.run()
        self.lengths_B += 1
        return self._step.arrays["logits"]

    def _bind(self, batch: int, num_tokens: int) -> Binding:
        return Binding(self._session, self._model, self._cache, (batch, num_tokens, self._slots))
