"""What is asked of TensorRT's runtime and of CUDA, of stand-ins that compute on the CPU and refuse what they would."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from blockwright.compile.decoder import decoder_graph
from blockwright.compile.flavour import Flavour
from blockwright.compile.generate import generate_ids
from blockwright.compile.sampling import Sampling
from blockwright.compile.tensorrt_executor import GpuExecutor
from blockwright.compile.tensorrt_session import TensorRtDecoder
from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FP32, Attention, Block, GatedFFN, NoOp
from tensorrt_on_cpu import engine_of, open_on_cpu
from tensorrt_runtime_on_cpu import WORKSPACE_BYTES, World, pretend_cuda

SLOTS = 64
LAYERS = (
    Block(mixer=NoOp(), ffn=GatedFFN(width=48)),
    Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=64)),
)
MODEL = llama(LAYERS, hidden_size=64, num_heads=4, head_dim=16, vocab_size=80, max_positions=SLOTS)


@pytest.fixture(params=["TensorRT-RTX fused", "TensorRT fused", "TensorRT decomposed"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    name = "decomposed" if "decomposed" in request.param else "standard"
    weights = {n: 8 * array if array.ndim == 2 else array for n, array in random_weights(MODEL, seed=1).items()}
    graph = decoder_graph(replace(MODEL, embedding_weights=FP32), weights, SLOTS, Flavour(name=name, slots=SLOTS))
    world = World(graph.SerializeToString(), is_rtx="RTX" in request.param)
    pretend_cuda(world, monkeypatch)
    return world


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.plan"
    path.write_bytes(b"plan")
    return path


def _decoder(world: World, plan: Path) -> TensorRtDecoder:
    is_decomposed = any(each.name.startswith("new_") for each in world.session.get_outputs())
    return TensorRtDecoder(engine_of(MODEL, SLOTS, is_decomposed), GpuExecutor(world.package(), plan, "cpu"))


def _expected(prompts: list[list[int]], num_tokens: int, sampling: Sampling) -> list[list[int]]:
    decoder = open_on_cpu(MODEL, SLOTS)[0]
    return [ids_B.tolist() for ids_B in generate_ids(decoder, prompts, num_tokens, sampling)]


def test_texts_are_written_by_replays(world: World, plan: Path) -> None:
    sampling, prompts = Sampling(temperature=0.8, top_k=9, seed=2), [[3, 1, 4], [1, 5]]
    found = [ids_B.tolist() for ids_B in generate_ids(_decoder(world, plan), prompts, 12, sampling)]
    assert found == _expected(prompts, 12, sampling)
    assert world.num_replays == 12 - 2
    prefill, decode = sorted(world.contexts, key=lambda context: context.profile or 0)
    assert (prefill.profile, decode.profile) == (0, 1)
    assert decode.was_captured and not prefill.was_captured
    assert prefill.memory == decode.memory and prefill.memory is not None and prefill.memory[1] == WORKSPACE_BYTES
    if world.is_rtx:
        assert (prefill.specialisation, decode.specialisation) == ("lazy", "eager")


def test_sequences_written_in_turn_leave_each_others_contexts_alone(world: World, plan: Path) -> None:
    decoder = _decoder(world, plan)
    texts = [([[3, 1, 4]], Sampling()), ([[9], [2, 6, 5, 3]], Sampling(temperature=1.0, seed=4))]
    both = [generate_ids(decoder, prompts, 9, sampling) for prompts, sampling in texts]
    in_turn = [[ids_B.tolist() for ids_B in pair] for pair in zip(*both, strict=True)]
    for index, (prompts, sampling) in enumerate(texts):
        assert [pair[index] for pair in in_turn] == _expected(prompts, 9, sampling)
    assert sum(context.was_captured for context in world.contexts) == 2


def test_single_steps_are_recorded_too(world: World, plan: Path) -> None:
    ours, theirs = _decoder(world, plan).start(1, 20), open_on_cpu(MODEL, SLOTS)[0].start(1, 20)
    np.testing.assert_allclose(ours.prefill([[7, 8, 9]]), theirs.prefill([[7, 8, 9]]), atol=1e-4)
    for token in range(6):
        np.testing.assert_allclose(ours.step(np.array([token])), theirs.step(np.array([token])), atol=1e-4)
    assert world.num_replays == 5


def test_what_cannot_be_captured_is_launched_anew_and_said(world: World, plan: Path) -> None:
    if not world.is_rtx:
        pytest.skip("TensorRT has no such question")
    world.is_capturable = False
    with pytest.warns(UserWarning, match="launched anew, not as a recorded CUDA graph; .*: TensorRT allocates memory"):
        found = [ids_B.tolist() for ids_B in generate_ids(_decoder(world, plan), [[3, 1]], 6, Sampling())]
    assert found == _expected([[3, 1]], 6, Sampling()) and world.num_replays == 0


@pytest.mark.parametrize("call", ["open", "context", "profile", "address", "shape", "run"])
def test_what_tensorrt_refuses_is_told_in_its_own_words(call: str, world: World, plan: Path) -> None:
    world.fails = call
    with pytest.raises(InputError, match=f"Error Code 1: {call} is refused; expected TensorRT to open and run"):
        _decoder(world, plan).start(1, 8).prefill([[3]])


def test_a_driver_that_tensorrt_does_not_start_with_is_told(world: World, plan: Path) -> None:
    package = world.package()

    def null(log: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    package.trt.Runtime = null
    with pytest.raises(InputError, match=r"driver: got .*; expected a CUDA driver that TensorRT(-RTX)? 0 starts with"):
        GpuExecutor(package, plan, "cpu")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "GPU memory: got CUDA out of memory"),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), "GPU: got CUDA error: an illegal memory"),
    ],
)
@pytest.mark.parametrize("num_calls", range(4))
def test_errors_of_cuda_are_told_wherever_they_come(
    num_calls: int, error: Exception, said: str, world: World, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, left = _decoder(world, plan), [None] * num_calls

    def on_stream(work: object) -> object:
        if not left:
            raise error
        left.pop()
        return work()  # type: ignore[operator]

    monkeypatch.setattr(decoder._executor, "on_stream", on_stream)
    with pytest.raises(InputError, match=said):
        list(generate_ids(decoder, [[3]], 4, Sampling()))


def test_errors_that_show_when_waiting_are_told(world: World, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = _decoder(world, plan)

    def fails(tensor: torch.Tensor) -> object:
        def wait() -> np.ndarray:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")

        return wait

    monkeypatch.setattr(decoder._executor, "fetch", fails)
    with pytest.raises(InputError, match="GPU: got CUDA error: device-side assert"):
        decoder.start(1, 8).prefill([[3]])
