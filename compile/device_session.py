"""Runs an engine in ONNX Runtime on a device: caches, inputs and logits stay there, tokens go in and logits come out.

The same graphs as `compile/session.py`, in ONNX Runtime's own operators. On ``cpu`` it is tested against that; on
``cuda`` it was never run: no GPU was at hand. Sampling and growing caches go through the host's memory.

Shapes: B batch, T new tokens, S slots, V vocabulary.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from blockwright.compile.checked_files import read_checked_engine
from blockwright.compile.engine import GRAPH_FILE, Engine
from blockwright.compile.places import Chunk, logits_after, places, reach_by_mask
from blockwright.compile.providers import DeviceName, open_on
from blockwright.compile.runtime import RUNNING_ERRORS, ort, refused
from blockwright.compile.session import DTYPES, check_fits, check_is_of, make_cache, rows_at_once, widened
from blockwright.compile.slots import slots_for, slots_now


class DeviceDecoder:
    """An engine opened for running on a device."""

    def __init__(self, engine: Engine, session: ort.InferenceSession, device: DeviceName) -> None:
        self.engine = engine
        self.session = session
        self.device: DeviceName = device

    @classmethod
    def open(cls, folder: Path, device: DeviceName = "cuda") -> "DeviceDecoder":
        """Opens an engine's folder with its own session settings.

        Raises:
            InputError: the engine is incomplete or broken, engine.json is of another model than the graph, or ONNX
                Runtime cannot use the device.
        """
        engine = read_checked_engine(folder)
        session = open_on(device, folder / GRAPH_FILE, engine.session)
        check_is_of(engine.model, session, folder)
        return cls(engine, session, device)

    def start(self, batch: int, num_tokens: int) -> "DeviceSequences":
        """Makes room for a batch of new sequences of up to `num_tokens` each.

        Raises:
            InputError: that is longer than the engine was built for.
        """
        check_fits(self.engine, num_tokens)
        return DeviceSequences(self, batch, slots_for(num_tokens))


class DeviceSequences:
    """A batch of sequences being written, with their cache, which grows with them up to `most_slots`."""

    def __init__(self, decoder: DeviceDecoder, batch: int, most_slots: int) -> None:
        self._decoder, self._most_slots = decoder, most_slots
        self._slots = slots_now(0, most_slots)
        empty = make_cache(decoder.engine.model, batch, self._slots)
        self._cache = {name: on_device(array, decoder.device) for name, array in empty.items()}
        self._step: _Binding | None = None
        self.lengths_B = np.zeros(batch, dtype=np.int64)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Reads the prompts, shorter ones padded on the right, and returns the logits after each, logits_BV."""
        self.lengths_B = np.array([len(prompt) for prompt in prompts])
        self._make_room(int(self.lengths_B.max()))
        rows = rows_at_once(self._decoder.session, self.lengths_B)
        return np.concatenate([self._read(prompts[row], row) for row in rows])

    def step(self, ids_B: np.ndarray) -> np.ndarray:
        """Appends one token to each sequence and returns the logits after it, logits_BV, valid until the next step."""
        self._make_room(int(self.lengths_B.max()) + 1)
        if self._step is None:
            self._step = self._bind(slice(0, len(ids_B)), 1)
        logits_BV = self._step.run(ids_B[:, None], np.zeros_like(self.lengths_B), self.lengths_B)
        self.lengths_B = self.lengths_B + 1
        return logits_BV

    def _make_room(self, num_tokens: int) -> None:
        slots = slots_now(num_tokens, self._most_slots)
        if slots <= self._slots:
            return
        self._step = None
        for name in self._cache:  # one after another, so that old and new never stand side by side in full
            self._cache[name] = on_device(widened(self._cache[name].numpy(), slots), self._decoder.device)
        self._slots = slots

    def _read(self, prompts: Sequence[Sequence[int]], rows: slice) -> np.ndarray:
        def read(chunk: Chunk) -> np.ndarray:
            binding = self._bind(rows, chunk.ids_BT.shape[1])
            return binding.run(chunk.ids_BT, chunk.last_B, np.full(len(prompts), chunk.start))

        return logits_after(prompts, self._decoder.engine.model.vocab_size, read)

    def _bind(self, rows: slice, num_tokens: int) -> "_Binding":
        return _Binding(self._decoder, self._cache, rows, num_tokens, self._slots)


class _Binding:
    """The graph bound to memory of the device for T new tokens of some rows; the caches are read and written there."""

    def __init__(
        self, decoder: DeviceDecoder, cache: dict[str, ort.OrtValue], rows: slice, num_tokens: int, slots: int
    ) -> None:
        session, device = decoder.session, decoder.device
        self._session, self._binding, self._slot_S = session, session.io_binding(), np.arange(slots)
        self._device = device
        self._masks, self._num_tokens = reach_by_mask(decoder.engine.model), num_tokens
        self._cache = cache  # kept alive: it is bound by address
        sizes = {"batch": rows.stop - rows.start, "tokens": num_tokens, "slots": slots}
        self._values: dict[str, ort.OrtValue] = {}
        for each in (*session.get_inputs(), *session.get_outputs()):
            bind = (
                self._binding.bind_output if each.name.startswith(("present_", "logits")) else self._binding.bind_input
            )
            shape, dtype = [sizes[n] if isinstance(n, str) else n for n in each.shape], DTYPES[each.type]
            cached = cache.get(each.name.replace("present_", "past_"))
            if cached is None:
                self._values[each.name] = room_on(device, shape, dtype)
                address = self._values[each.name].data_ptr()
            else:  # rows lie one behind the other, so a few of them are a buffer of their own
                address = cached.data_ptr() + rows.start * math.prod(shape[1:]) * np.dtype(dtype).itemsize
            bind(each.name, device, 0, dtype, shape, address)
        self._dtypes = {each.name: DTYPES[each.type] for each in session.get_inputs()}

    def run(self, ids_BT: np.ndarray, last_B: np.ndarray, starts_B: np.ndarray) -> np.ndarray:
        """Reads tokens that stand from these positions on; returns logits_BV, valid until the next run.

        Raises:
            InputError: ONNX Runtime fails, as where the device's memory is too small.
        """
        known = places(self._masks, starts_B, self._num_tokens, self._slot_S)
        made = {"ids": lambda: ids_BT, "last": lambda: last_B} | known
        for name, value in self._values.items():
            if name in self._dtypes:
                value.update_inplace(np.ascontiguousarray(made[name](), dtype=self._dtypes[name]))
        try:
            self._session.run_with_iobinding(self._binding)
            return self._values["logits"].numpy()
        except RUNNING_ERRORS as error:
            raise refused(
                error, "the engine", f"a graph that ONNX Runtime runs on {self._device}", self._device
            ) from error


def on_device(array: np.ndarray, device: DeviceName) -> ort.OrtValue:
    """A copy of an array in memory that the device owns."""
    value = room_on(device, array.shape, array.dtype.type)
    value.update_inplace(array)
    return value


def room_on(device: DeviceName, shape: Sequence[int], dtype: type[np.generic]) -> ort.OrtValue:
    """Memory of a device for an array.

    Raises:
        InputError: it has no more.
    """
    try:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)
    except RUNNING_ERRORS as error:
        expected = f"room for {math.prod(shape) * np.dtype(dtype).itemsize} bytes more"
        raise refused(error, f"memory of {device}", expected, device) from error
