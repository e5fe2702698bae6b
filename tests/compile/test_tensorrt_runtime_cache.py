"""Kernels that TensorRT-RTX compiled on the device are there when the plan is opened again, in another process."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blockwright.compile import tensorrt_runtime_cache
from blockwright.compile.decoder import decoder_graph
from blockwright.compile.engine import ENGINE_FILE, StoredFile
from blockwright.compile.flavour import Flavour
from blockwright.compile.generate import generate_ids
from blockwright.compile.sampling import Sampling
from blockwright.compile.tensorrt_engine import PLAN_FILE
from blockwright.compile.tensorrt_executor import GpuExecutor
from blockwright.compile.tensorrt_package import Package, find_package
from blockwright.compile.tensorrt_runtime_cache import kernels_file
from blockwright.compile.tensorrt_session import TensorRtDecoder
from blockwright.compile.tensorrt_target import gpu_identity
from blockwright.errors import InputError
from blockwright.files import write_json
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FP32, Attention, Block, GatedFFN
from blockwright.strict import to_data
from tensorrt_here import needs_rtx
from tensorrt_on_cpu import engine_of
from tensorrt_runtime_on_cpu import Context, Engine, RuntimeConfig, World, pretend_cuda
from tensorrt_runtime_on_cpu import RuntimeCache as StandIn

SLOTS = 64
LAYERS = (Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=64)),)
MODEL = llama(LAYERS, hidden_size=32, num_heads=2, head_dim=16, vocab_size=80, max_positions=SLOTS)
GPU = ("NVIDIA H200", "sm86", "CUDA 13000")
PLAN = b"plan"
PROMPT = [3, 1, 4]
DIGEST_BYTES = 32

NewWorld = Callable[..., World]
Open = Callable[[World], TensorRtDecoder]


@pytest.fixture(scope="module")
def graph() -> bytes:
    weights = random_weights(MODEL, seed=1)
    flavour = Flavour(name="standard", slots=SLOTS)
    return decoder_graph(replace(MODEL, embedding_weights=FP32), weights, SLOTS, flavour).SerializeToString()


@pytest.fixture
def new_world(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> NewWorld:
    """Another process, on the same machine unless something is said of it: `new_world(gpu="another")`."""

    def make(is_rtx: bool = True, **changes: object) -> World:
        world = World(graph, is_rtx)
        for name, value in changes.items():
            setattr(world, name, value)
        pretend_cuda(world, monkeypatch)
        return world

    return make


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept kernels, which is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "blockwright" / "tensorrt"


@pytest.fixture
def open_in(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens an engine's folder as a user does."""
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / PLAN_FILE).write_bytes(PLAN)
    stored = StoredFile(size_bytes=len(PLAN), sha256=sha256(PLAN).hexdigest())

    def open_engine(world: World) -> TensorRtDecoder:
        package = replace(world.package(), version="1.7.1")
        engine = replace(engine_of(MODEL, SLOTS), package=package.name, files={PLAN_FILE: stored})
        write_json(folder / ENGINE_FILE, to_data(engine))
        session = "blockwright.compile.tensorrt_session"
        monkeypatch.setattr(f"{session}.find_package", lambda names: package)
        monkeypatch.setattr(f"{session}.gpu_capability", lambda: GPU[1])
        monkeypatch.setattr(f"{session}.gpu_identity", lambda: GPU)
        monkeypatch.setattr(f"{session}.GpuExecutor", partial(GpuExecutor, device="cpu"))
        return TensorRtDecoder.open(folder)

    return open_engine


def _write(decoder: TensorRtDecoder, prompt: Sequence[int] = PROMPT, num_tokens: int = 4) -> list[int]:
    return [int(ids_B[0]) for ids_B in generate_ids(decoder, [prompt], num_tokens, Sampling())]


def _names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir()) if folder.exists() else []


def test_a_second_process_compiles_nothing(new_world: NewWorld, open_in: Open, kept: Path) -> None:
    first = new_world()
    text = _write(open_in(first))
    assert first.num_compiled == 2, "for reading three tokens, and for writing one"
    assert _names(kept) == [".kernels"]
    second = new_world()
    assert _write(open_in(second)) == text
    assert second.num_compiled == 0


def test_contexts_of_one_process_share_their_kernels(new_world: NewWorld, open_in: Open) -> None:
    world = new_world()
    decoder = open_in(world)
    for _ in range(3):
        _write(decoder)
    assert len(world.contexts) == 1 + 3 and world.num_compiled == 2
    assert len(world.configs) == 2 and world.configs[0].cache is world.configs[1].cache


def test_full_tensorrt_keeps_nothing(new_world: NewWorld, open_in: Open, kept: Path) -> None:
    world = new_world(is_rtx=False)
    _write(open_in(world))
    assert not world.configs and not world.num_compiled and not kept.exists()


def test_kernels_are_written_after_a_text_that_nobody_read_to_its_end(
    new_world: NewWorld, open_in: Open, kept: Path
) -> None:
    decoder = open_in(new_world())
    ids = generate_ids(decoder, [PROMPT], 9, Sampling())
    next(ids)
    assert _names(kept) == []
    del ids
    assert _names(kept) == [".kernels"]


def test_kernels_are_written_when_a_text_is_interrupted_and_not_when_it_fails(
    new_world: NewWorld, open_in: Open, kept: Path
) -> None:
    sequences = open_in(new_world()).start(1, 12)
    for error, left in ((InputError("GPU", got="", expected="", remedy=""), []), (KeyboardInterrupt(), [".kernels"])):
        text: Any = sequences.write([PROMPT], 9, Sampling())
        next(text)
        with pytest.raises(type(error)):
            text.throw(error)
        assert _names(kept) == left


def test_kernels_are_written_when_a_prompt_was_read_without_a_text(
    new_world: NewWorld, open_in: Open, kept: Path
) -> None:
    open_in(new_world()).start(1, 8).prefill([PROMPT])
    assert _names(kept) == [".kernels"]


def test_nothing_is_written_again_unless_kernels_were_added(new_world: NewWorld, open_in: Open, kept: Path) -> None:
    decoder = open_in(new_world())
    _write(decoder)
    (file,) = kept.iterdir()
    before = file.stat().st_ino, file.stat().st_mtime_ns
    _write(decoder)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == before
    _write(decoder, [1, 2])
    _write(decoder, [1, 2])
    assert (file.stat().st_ino, file.stat().st_mtime_ns) != before
    anew = new_world()
    _write(open_in(anew), [1, 2])
    assert not anew.num_compiled


def test_kernels_are_asked_for_ever_more_rarely(new_world: NewWorld, open_in: Open) -> None:
    world = new_world()
    decoder = open_in(world)
    for _ in range(17):
        _write(decoder, num_tokens=1)
    assert world.num_serialised == 5, "after texts 1, 2, 4, 8 and 16"


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-9],
        lambda data: b"",
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[-DIGEST_BYTES:],
    ],
)
def test_a_broken_file_is_passed_over_and_replaced(
    harm: Callable[[bytes], bytes], new_world: NewWorld, open_in: Open, kept: Path
) -> None:
    text = _write(open_in(new_world()))
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(harm(whole))
    world = new_world()
    assert _write(open_in(world)) == text and world.num_compiled == 2
    assert file.read_bytes() == whole


def test_what_tensorrt_does_not_take_is_replaced(new_world: NewWorld, open_in: Open, kept: Path) -> None:
    _write(open_in(new_world()))
    for num_compiled in (2, 0):
        anew = new_world(gpu="one with a newer driver")
        _write(open_in(anew))
        assert anew.num_compiled == num_compiled and _names(kept) == [".kernels"]


def test_a_file_that_ended_the_last_process_is_not_taken_again(new_world: NewWorld, open_in: Open, kept: Path) -> None:
    _write(open_in(new_world()))
    killed = new_world()
    ids = generate_ids(open_in(killed), [PROMPT], 9, Sampling())
    next(ids)
    assert _names(kept) == [".kernels", ".opening"], "as it is left where a process ends here"
    after = new_world()
    _write(open_in(after))
    assert after.num_compiled == 2 and _names(kept) == [".kernels"]
    healed = new_world()
    _write(open_in(healed))
    assert healed.num_compiled == 0
    del ids


def test_two_processes_at_once_are_fine(new_world: NewWorld, open_in: Open, kept: Path) -> None:
    worlds = [new_world(), new_world()]
    decoders = [open_in(world) for world in worlds]
    for decoder, prompt in zip(decoders, ([1, 2], [1, 2, 3, 4, 5]), strict=True):
        _write(decoder, prompt)
    assert _names(kept) == [".kernels"]
    last = new_world()
    decoder = open_in(last)
    _write(decoder, [1, 2, 3, 4, 5])
    assert last.num_compiled == 0, "the last one to write has its kernels kept"
    _write(decoder, [1, 2])
    both = new_world()
    decoder = open_in(both)
    _write(decoder, [1, 2, 3, 4, 5])
    _write(decoder, [1, 2])
    assert both.num_compiled == 0, "and the other's are added by who comes next"


@pytest.mark.parametrize("call", ["cache", "serialise"])
def test_a_cache_that_tensorrt_does_not_give_is_done_without(
    call: str, new_world: NewWorld, open_in: Open, kept: Path
) -> None:
    text = _write(open_in(new_world()))
    assert _write(open_in(new_world(fails=call))) == text


def test_a_folder_that_cannot_be_written_to_is_no_error(new_world: NewWorld, open_in: Open, kept: Path) -> None:
    kept.parent.parent.write_text("a file where the folder should be")
    for _ in range(2):
        world = new_world()
        assert len(_write(open_in(world))) == 4 and world.num_compiled == 2


def test_kernels_are_neither_taken_nor_kept_where_others_can_put_theirs(
    new_world: NewWorld, open_in: Open, kept: Path
) -> None:
    _write(open_in(new_world()))
    (file,) = kept.iterdir()
    kept.chmod(0o777)
    before, world = file.stat().st_mtime_ns, new_world()
    _write(open_in(world), [1, 2])
    assert world.num_compiled == 2 and file.stat().st_mtime_ns == before


def test_a_cache_that_outgrows_its_file_leaves_it_as_it_is(
    new_world: NewWorld, open_in: Open, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = open_in(new_world())
    _write(decoder)
    (file,) = kept.iterdir()
    before = file.read_bytes()
    monkeypatch.setattr(tensorrt_runtime_cache, "MOST_BYTES", len(before) - DIGEST_BYTES)
    for length in range(4, 12):
        _write(decoder, list(range(length)))
    assert file.read_bytes() == before


def test_the_files_of_plans_that_nobody_opens_go_first(
    new_world: NewWorld, open_in: Open, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.mkdir(parents=True, mode=0o700)
    for age, name in enumerate(("newer", "older")):
        (kept / name).write_bytes(bytes(1000))
        os.utime(kept / name, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(tensorrt_runtime_cache, "MOST_BYTES_OF_ALL", 1500)
    _write(open_in(new_world()))
    assert len(list(kept.iterdir())) == 2 and not (kept / "older").exists()


def test_kernels_of_others_have_other_files(kept: Path) -> None:
    package = Package(name="tensorrt_rtx", version="1.7.1", trt=None)
    files = {
        kernels_file("plan", package, GPU),
        kernels_file("another plan", package, GPU),
        kernels_file("plan", replace(package, version="1.8.0"), GPU),
        *(kernels_file("plan", package, (*GPU[:i], "another", *GPU[i + 1 :])) for i in range(len(GPU))),
    }
    assert len(files) == 6 and {file.parent for file in files if file} == {kept}


def test_somebody_without_a_home_has_kernels_in_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    package = Package(name="tensorrt_rtx", version="1.7.1", trt=None)
    assert kernels_file("plan", package, GPU) is None


@pytest.mark.parametrize(("refusal", "said"), [(0, GPU), (3, None)])
def test_a_gpu_is_told_apart_by_its_driver_too(
    refusal: int, said: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(number: Any) -> int:
        number._obj.value = 13000
        return refusal

    assert gpu_identity() is None or torch.cuda.is_available()
    monkeypatch.setattr("blockwright.compile.tensorrt_target.gpu_capability", lambda: GPU[1])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: GPU[0])
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(cuDriverGetVersion=version))
    assert gpu_identity() == said


@needs_rtx
def test_the_stand_in_has_the_names_of_the_real_interface() -> None:
    trt = find_package(("tensorrt_rtx",)).trt
    own = {"world", "inputs", "names", "memory", "cache", "kernels"}
    for stand_in, real in (
        (Engine, trt.ICudaEngine),
        (Context, trt.IExecutionContext),
        (RuntimeConfig, trt.IRuntimeConfig),
        (StandIn, trt.IRuntimeCache),
    ):
        names = {name for name in vars(stand_in) if not name.startswith("_")} - own
        assert names and names <= set(dir(real)), f"{real.__name__} lacks {names - set(dir(real))}"
    config, cache = trt.IRuntimeConfig, trt.IRuntimeCache
    assert isinstance(config.dynamic_shapes_kernel_specialization_strategy, property)
    for method, arguments, answer in (
        (config.create_runtime_cache, "self", "IRuntimeCache"),
        (config.set_runtime_cache, "cache", "bool"),
        (cache.deserialize, "blob", "bool"),
        (cache.serialize, "self", "IHostMemory"),
    ):
        signature = method.__doc__.strip().splitlines()[0]
        assert f"{arguments}: " in signature and signature.split("->")[1].strip().endswith(answer)
