"""What training leaves of each trainee, as files: its weights, and beside them its errors and its curve.

The second file is written last: where it stands, the trainee is done.

Shapes: S steps.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from blockwright.errors import InputError
from blockwright.files import new_file, read_json, write_json
from blockwright.library import Kept
from blockwright.strict import from_data, to_data
from blockwright.tensors import writing_tensors
from blockwright.train.bld import Trainee
from blockwright.train.students import Student

_CURVE_POINTS = 200
"""Of a curve on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What became of one trainee; errors on held-out text as in `blockwright.library.Entry`."""

    trainee: Trainee
    file: str
    initial_nmse: float
    nmse: float
    initial_delta_nmse: float
    delta_nmse: float
    trained_nmse: float | None
    trained_delta_nmse: float | None
    initial_reserved_nmse: float
    """On training text that nothing learns from, which says what is kept."""
    trained_reserved_nmse: float | None
    kept: Kept
    stopped_at: int | None
    trained_steps: int
    curve: dict[str, tuple[float, ...]]
    """``step``, ``output`` and ``delta``: each point the mean of the steps up to it."""


def read_trained(folder: Path, trainee: Trainee) -> Trained:
    """What became of a trainee.

    Raises:
        InputError: it was not trained, or the file is broken.
    """
    path = facts_path(folder, trainee)
    return from_data(Trained, read_json(path), str(path))


def facts_path(folder: Path, trainee: Trainee) -> Path:
    """The file that says what became of a trainee."""
    return folder / f"{trainee.name}.json"


def state_path(folder: Path, trainee: Trainee) -> Path:
    """The file that a trainee goes on from while it is not done."""
    return folder / f"{trainee.name}.state"


def write_result(folder: Path, student: Student) -> None:
    """Writes weights, then what became of them, which says that it is done; then the state may go."""
    trainee, initial = student.trainee, student.initial
    assert initial is not None
    trained = student.trained
    final = initial if trained is None or student.kept == "initial" else trained
    if not all(math.isfinite(value) for value in (*initial, *final)):
        raise InputError(
            f"{trainee.name}: error",
            got=f"{initial.output} before training and {final.output} after",
            expected="numbers",
            remedy="The parent's own states are no numbers on this text: try --precision fp32, or mend its weights.",
        )
    path = folder / f"{trainee.name}.safetensors"
    with new_file(path) as temporary, writing_tensors(path):
        save_file({name: tensor.cpu() for name, tensor in student.weights().items()}, temporary)
    result = Trained(
        trainee=trainee,
        file=path.name,
        initial_nmse=initial.output,
        nmse=final.output,
        initial_delta_nmse=initial.delta,
        delta_nmse=final.delta,
        trained_nmse=None if trained is None else trained.output,
        trained_delta_nmse=None if trained is None else trained.delta,
        initial_reserved_nmse=initial.reserved,
        trained_reserved_nmse=None if trained is None else trained.reserved,
        kept=student.kept,
        stopped_at=student.stopped_at,
        trained_steps=student.step,
        curve=_thin(student.curve_S2, student.num_steps if student.stopped_at is None else student.stopped_at),
    )
    write_json(facts_path(folder, trainee), to_data(result))
    state_path(folder, trainee).unlink(missing_ok=True)


def _thin(curve_S2: Tensor, num_steps: int) -> dict[str, tuple[float, ...]]:
    per_point = max(1, -(-num_steps // _CURVE_POINTS))
    pieces = curve_S2[:num_steps].split(per_point) if num_steps else ()
    means = [piece.double().mean(dim=0).tolist() for piece in pieces]
    steps = [min((index + 1) * per_point, num_steps) for index in range(len(means))]
    return {
        "step": tuple(float(step) for step in steps),
        "output": tuple(mean[0] for mean in means),
        "delta": tuple(mean[1] for mean in means),
    }
