"""Work in other processes and on other machines, by Ray (the extra ``[distributed]``).

The only file that knows Ray. What tasks share lies in its object store: written once, read by all tasks of a machine
from the same memory, and made again where the machine that held it is lost. A task whose worker is lost runs again, up
to `RETRIES` times; so a task must come to the same each time, and write its files whole or not at all.

Functions and what they are given travel to workers by name: all machines need this version of Blockwright, and see
the folders that tasks read and write under the same paths.
"""

import contextlib
import importlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from blockwright.errors import InputError

RETRIES = 3
"""A task that loses its worker this often is given up: it takes its worker with it."""
_LOCAL = re.compile(r"local:([1-9]\d*)")
_REMEDY = "pip install 'blockwright[distributed]', or leave --ray out."

Key = TypeVar("Key")
Ref = Any
"""What a task will have come to, or what is shared; may be given to tasks, which get the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A tensor as it lies in shared memory, which NumPy reads without a copy and torch's own pickles do not."""

    bytes_N: Any
    shape: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> "Packed":
        """Packs a tensor; on the CPU without a copy."""
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        return Packed(bytes_N=flat.numpy(), shape=tuple(tensor.shape), dtype=tensor.dtype)

    def tensor(self) -> Tensor:
        """The tensor, which must not be written to."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that what is shared must not be written to
            flat = torch.from_numpy(self.bytes_N)
        return flat.view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Processes to give tasks to."""

    ray: Any
    options: Mapping[str, Any]
    num_threads: int
    """Of each task: as many as here, for sums over other parts have other last bits."""
    num_workers: int
    """Tasks that run at once."""
    store_bytes: int
    """Shared memory, of all machines together."""

    def share(self, value: Any) -> Ref:
        """Puts a value where all tasks can read it."""
        return self.ray.put(value)

    def start(self, name: str, function: Callable[..., Any], *arguments: Any) -> Ref:
        """Starts a task as soon as what it is given is there and a worker is free."""
        task = self.ray.remote(_task).options(**self.options, name=name)
        return task.remote(self.num_threads, function, *arguments)

    def as_done(self, tasks: Sequence[tuple[Key, Ref]]) -> Iterator[tuple[Key, Any]]:
        """What tasks come to, each as soon as it is done, with its key.

        Raises:
            InputError: a task met input to be mended, or lost its worker too often. The others are stopped.
        """
        keys = {ref: key for key, ref in tasks}
        waiting = list(keys)
        try:
            while waiting:
                done, waiting = self.ray.wait(waiting)
                for ref in done:
                    yield keys[ref], self._value(ref)
        finally:
            for ref in waiting:
                self.ray.cancel(ref, force=True)

    def _value(self, ref: Ref) -> Any:
        errors = self.ray.exceptions
        try:
            return self.ray.get(ref)
        except errors.RayTaskError as error:
            cause: Any = error
            while isinstance(cause, errors.RayTaskError):  # a task's own, or that of what it was to be given
                cause = cause.cause
            if isinstance(cause, _RefusedError):
                raise InputError(**cause.args[0]) from None
            raise
        except (errors.WorkerCrashedError, errors.ObjectLostError, errors.OutOfMemoryError) as error:
            raise InputError(
                "a worker",
                got=f"lost {RETRIES + 1} times at the same task: {str(error).splitlines()[0]}",
                expected="workers that live through a task",
                remedy="See that they have memory enough and run the same command again: finished tasks are kept.",
            ) from error


class _RefusedError(Exception):
    """An InputError's fields, which travel between processes as the error itself does not."""


@contextlib.contextmanager
def workers(where: str, device: str = "cpu") -> Iterator[Workers]:
    """Workers of a cluster, or on this machine.

    Args:
        where: ``local:2`` for two processes here, ``auto`` for the cluster that this machine is part of, or the
            address of a cluster. A connection that this process has already is used as it is.
        device: what tasks work on; those on ``cuda`` have a GPU each, others none.

    Raises:
        InputError: Ray is not installed, or there is no such cluster, or none with a GPU where tasks need one.
    """
    check_where(where)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise InputError("--ray", got="no package ray", expected="Ray", remedy=_REMEDY) from error
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(ray, where)
    try:
        resources, needs_gpu = ray.cluster_resources(), device.startswith("cuda")
        if needs_gpu and not resources.get("GPU"):
            raise InputError(
                "--ray",
                got=f"{where}, whose machines have no GPU that Ray knows of",
                expected=f"GPUs, for --device {device}",
                remedy="Start Ray where there are GPUs, or leave --device out to use CPUs.",
            )
        yield Workers(
            ray=ray,
            options={"num_cpus": 1, "num_gpus": int(needs_gpu), "max_retries": RETRIES},
            num_threads=torch.get_num_threads(),
            num_workers=max(1, int(resources.get("GPU" if needs_gpu else "CPU", 1))),
            store_bytes=int(resources.get("object_store_memory", 0)),
        )
    finally:
        if is_ours:
            ray.shutdown()


def check_where(where: str) -> None:
    """Refuses what cannot be the place of any workers, before anything else is done.

    Raises:
        InputError: it is none of the forms.
    """
    if not where or (where.startswith("local") and not _LOCAL.fullmatch(where)):
        raise InputError(
            "--ray", got=repr(where), expected="auto, an address, or local:N with N workers", remedy="Name one."
        )


def num_local(where: str) -> int | None:
    """The workers on this machine that ``local:N`` asks for; None for a cluster."""
    local = _LOCAL.fullmatch(where)
    return int(local[1]) if local else None


def _connect(ray: Any, where: str) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    local = _LOCAL.fullmatch(where)
    try:
        if local:
            ray.init(address="local", num_cpus=int(local[1]), include_dashboard=False, **quiet)
        else:
            ray.init(address=where, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            "--ray",
            got=f"{where}: {str(error).strip().splitlines()[0]}",
            expected="a cluster that answers",
            remedy="Start one (`ray start --head`), or use workers on this machine: --ray local:2.",
        ) from error


def _task(num_threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    torch.set_num_threads(num_threads)
    try:
        return function(*arguments)
    except InputError as error:
        fields = {"field": error.field, "got": str(error.got), "expected": error.expected, "remedy": error.remedy}
        raise _RefusedError(fields) from error
