"""Who runs the blocks that a GPU is measured for: torch, or the installed TensorRT, in each format asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blockwright.compile.tensorrt_checks import check_groups, expected_of
from blockwright.compile.tensorrt_stored import stored_for_tensorrt
from blockwright.compile.tensorrt_target import choose_capabilities, choose_package, gpu_capability
from blockwright.errors import InputError
from blockwright.profiler.gpu_bench import Bench, Runtime, with_scales
from blockwright.profiler.gpu_blocks import BF16, TorchRuntime
from blockwright.profiler.gpu_clock import GpuClock
from blockwright.profiler.gpu_device import TorchDevice
from blockwright.profiler.gpu_tensorrt import InOnnxRuntime, InPlans, Opener, TensorRtRuntime
from blockwright.spec import FP16, Format, Model, with_format

DeviceName = Literal["cuda", "cpu"]
GpuBackend = Literal["torch", "tensorrt"]
_ENGINE_FOLDER = "engine"
_STAND_IN = {"tensorrt": "none: ONNX Runtime in its place"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Who runs blocks, found before anything is written."""

    backend: GpuBackend
    formats: tuple[Format, ...]
    software: dict[str, str]
    """What runs them, beside what is always there."""
    opener: Opener | None = None
    """Of TensorRT."""

    def runtimes(self, device: TorchDevice) -> list[Runtime]:
        """One for each format."""
        if self.opener is None:
            return [TorchRuntime(device)]
        return [TensorRtRuntime(weights, self.opener) for weights in self.formats]

    def bench(self, parent: Model, clock: GpuClock, device: TorchDevice, runtime: Runtime) -> Bench:
        """What blocks of a parent are measured with; TensorRT's whole models are weighed too."""
        bench = Bench(parent=with_format(parent, runtime.weights), clock=clock, device=device, runtime=runtime)
        return bench if self.opener is None else with_scales(bench)


def choose_runtimes(
    backend: GpuBackend, formats: Sequence[Format], parent: Model, device: DeviceName, work: Path
) -> Chosen:
    """Finds what runs a parent's blocks here.

    Args:
        backend: torch computes in bf16 only.
        formats: of layers; none for bf16 in torch, fp16 in TensorRT.
        parent: whose blocks.
        device: on the CPU, TensorRT's graphs run in ONNX Runtime, to try the code out.
        work: the sitting's folder, which need not be there yet.

    Raises:
        InputError: a format is none of the backend's or does not fit the parent's blocks, no TensorRT is installed, or
            it does not build for this GPU.
    """
    if backend == "torch":
        if not set(formats) <= {BF16}:
            raise InputError(
                "--format",
                got=", ".join(map(str, formats)),
                expected=f"{BF16}, in which torch's blocks are measured on a GPU",
                remedy="Leave it out, or measure with --backend tensorrt.",
            )
        return Chosen(backend=backend, formats=(BF16,), software={})
    formats = tuple(formats) or (FP16,)
    narrow = [name for weights in formats for name in stored_for_tensorrt(parent, weights).narrow]
    folder = work / _ENGINE_FOLDER
    if device == "cpu":
        return Chosen(backend=backend, formats=formats, software=_STAND_IN, opener=InOnnxRuntime(folder=folder))
    gpu = gpu_capability()
    package = choose_package(gpu)
    for weights in formats:
        check_groups(expected_of(stored_for_tensorrt(parent, weights).model), package)
    capabilities = choose_capabilities(package, None if gpu is None else (gpu,), gpu, tuple(dict.fromkeys(narrow)))
    opener = InPlans(package=package, capabilities=capabilities, folder=folder)
    return Chosen(backend=backend, formats=formats, software={"tensorrt": package.title}, opener=opener)
