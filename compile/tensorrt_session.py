"""Opens a TensorRT engine where it can run, and says why it cannot elsewhere; `tensorrt_writing` runs it."""

from collections.abc import Callable
from pathlib import Path

from blockwright.compile.checked_files import check_once
from blockwright.compile.tensorrt_engine import PLAN_FILE, TensorRtEngine, read_tensorrt_engine
from blockwright.compile.tensorrt_executor import Executor, GpuExecutor, cuda_errors_told
from blockwright.compile.tensorrt_package import Package, find_package
from blockwright.compile.tensorrt_runtime_cache import RuntimeCache, kernels_file
from blockwright.compile.tensorrt_target import gpu_capability, gpu_identity
from blockwright.compile.tensorrt_writing import TensorRtSequences
from blockwright.errors import InputError


class TensorRtDecoder:
    """An engine opened for running."""

    def __init__(
        self, engine: TensorRtEngine, executor: Executor, text_written: Callable[[], None] = lambda: None
    ) -> None:
        self.engine = engine
        self._executor, self._text_written = executor, text_written

    @classmethod
    def open(cls, folder: Path) -> "TensorRtDecoder":
        """Opens an engine's folder on the GPU at hand.

        Raises:
            InputError: the engine is broken, or was built for another GPU or by another TensorRT than are here.
        """
        engine, gpu = read_tensorrt_engine(folder), gpu_capability()
        try:
            package = find_package((engine.package,))
        except InputError:
            check_gpu(engine, gpu)  # where there is none, to install TensorRT would not help
            raise
        check_version(engine, package)
        check_gpu(engine, gpu)
        plan = engine.files.get(PLAN_FILE)
        check_once(folder, {} if plan is None else {PLAN_FILE: plan})
        told = gpu_identity()
        cache = RuntimeCache(None if plan is None or told is None else kernels_file(plan.sha256, package, told))
        return cls(engine, GpuExecutor(package, folder / PLAN_FILE, cache=cache), cache.text_written)

    def start(self, batch: int, num_tokens: int) -> "TensorRtSequences":
        """Makes room for a batch of new sequences of up to `num_tokens` each.

        Raises:
            InputError: they are longer or more than the engine was built for, or the GPU's memory is too small.
        """
        engine = self.engine
        could_be_longer = engine.num_positions < engine.model.max_positions
        for field, got, most, larger in (
            ("prompt and new tokens", num_tokens, engine.num_positions, "--context" if could_be_longer else None),
            ("sequences", batch, engine.most_sequences, "--batch"),
        ):
            if got > most:
                remedy = "Ask for less" + (f", or compile with a larger {larger}." if larger else ".")
                raise InputError(field, got=got, expected=f"at most {most}", remedy=remedy)
        with cuda_errors_told():
            return self._executor.on_stream(
                lambda: TensorRtSequences(engine, self._executor, batch, self._text_written)
            )


def check_gpu(engine: TensorRtEngine, gpu: str | None) -> None:
    """Refuses to open an engine where it cannot run.

    Raises:
        InputError: there is no GPU, or it is another one.
    """
    if gpu in engine.compute_capabilities:
        return
    built_for = ", ".join(engine.compute_capabilities)
    raise InputError(
        "GPU",
        got="none that torch sees" if gpu is None else f"an {gpu}",
        expected=f"a GPU of {built_for}, for which this TensorRT engine was built",
        remedy="Run it there, with torch's CUDA build; for this machine's CPU compile without --target tensorrt."
        if gpu is None
        else f"Compile again with --for {gpu}.",
    )


def check_version(engine: TensorRtEngine, package: Package) -> None:
    """Refuses a plan of another version: TensorRT's plans open in the one that built them.

    Raises:
        InputError: names both.
    """
    if package.version != engine.package_version:
        raise InputError(
            "engine",
            got=f"a plan of version {engine.package_version}",
            expected=f"one of {package.title}, which is installed",
            remedy=f"Compile again, or install {engine.package}=={engine.package_version}.",
        )
