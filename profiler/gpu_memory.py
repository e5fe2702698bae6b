"""What a whole model takes of a GPU's memory while it is open, weighed where it is timed.

Counted is what the device has less of, whoever asked for it: TensorRT takes the weights, its contexts and its kernels
from the driver itself, the driver takes what recorded graphs need, and torch takes caches and the workspace, in pieces
that it keeps. Not counted is what is there before any model is: CUDA's context, and what libraries load when they are
first used and keep. `blockwright measure` leaves that aside too. Beside a budget, a device must have room for it and
for what opening a plan takes for a moment.

Torch may put a cache into what it had kept before, and then the device has no less. So of torch's part the larger one
counts: what it reserves more than before, or what it has given out more than before.
"""

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from blockwright.cost import Load
from blockwright.hw_profiles.profile import Backend, MemoryRow
from blockwright.profiler.counted import counting_of
from blockwright.profiler.gpu_device import Taken, TorchDevice
from blockwright.spec import Format, Model

Notes = dict[str, Any]


class Scales:
    """Weighs what is opened on a device.

    Args:
        device: the device.
        open_once: opens and runs something small, and drops it, so that libraries have loaded what they keep. Called
            before anything is weighed, where somebody counts on the device.
    """

    def __init__(self, device: TorchDevice, open_once: Callable[[], None]) -> None:
        self._device, self._open_once = device, open_once
        self._is_ready = False

    def before(self) -> Taken | None:
        """What is taken of the device before a model is opened; None where nobody counts."""
        if self._device.taken() is None:
            return None
        if not self._is_ready:
            self._is_ready = True
            with contextlib.suppress(RuntimeError):  # as of a case: what is weighed next fails by itself, or does not
                self._open_once()
        return self._device.taken()


def added_bytes(before: Taken, after: Taken) -> int:
    """What was taken in between."""
    reserved, given_out = after.reserved_bytes - before.reserved_bytes, after.given_out_bytes - before.given_out_bytes
    return after.used_bytes - before.used_bytes - reserved + max(reserved, given_out)


def memory_row(
    backend: Backend, weights: Format, model: Model, load: Load, taken: tuple[Taken, Taken | None]
) -> tuple[MemoryRow, Notes]:
    """What was weighed, beside what of it is counted.

    Args:
        backend: who ran the model.
        weights: of all its layers.
        model: what was open.
        load: the workload that it was opened for.
        taken: of the device, before and while it was open.

    Raises:
        RuntimeError: it came to less than weights and caches, for somebody else gave memory back meanwhile.
    """
    before, after = taken
    assert after is not None, "somebody counted before"
    counted, added = counting_of(backend).whole_bytes(model, load), added_bytes(before, after)
    if added < counted:
        raise RuntimeError(
            f"the device has {added} bytes less, where weights and caches alone are {counted}: "
            "something else gave memory back meanwhile"
        )
    row = MemoryRow(
        backend=backend,
        format=str(weights),
        batch=load.batch,
        prompt_tokens=load.prompt_tokens,
        new_tokens=load.new_tokens,
        peak_bytes=added,
        exact_bytes=counted,
        origin="measured",
    )
    return row, {"before": asdict(before), "after": asdict(after)}
