"""Kernels that TensorRT-RTX compiled on the device are there when the plan is opened again, in another process."""

import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blockwright.compile import tensorrt_runtime_cache
from blockwright.compile.generate import generate_ids
from blockwright.compile.sampling import Sampling
from blockwright.compile.tensorrt_package import Package, find_package
from blockwright.compile.tensorrt_runtime_cache import kernels_file
from blockwright.compile.tensorrt_target import gpu_identity
from blockwright.errors import InputError
from tensorrt_here import needs_rtx
from tensorrt_machine import GPU, PROMPT, Machine, write
from tensorrt_runtime_on_cpu import Context, Engine, RuntimeCache, RuntimeConfig

DIGEST_BYTES = 32


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_second_process_compiles_nothing(machine: Machine) -> None:
    first = machine.process()
    text = write(machine.open(first))
    assert first.num_compiled == 2, "for reading three tokens, and for writing one"
    assert machine.names() == [".kernels"]
    second = machine.process()
    assert write(machine.open(second)) == text
    assert second.num_compiled == 0


def test_contexts_of_one_process_share_their_kernels(machine: Machine) -> None:
    world = machine.process()
    decoder = machine.open(world)
    for _ in range(3):
        write(decoder)
    assert len(world.contexts) == 1 + 3 and world.num_compiled == 2
    assert len(world.configs) == 2 and world.configs[0].cache is world.configs[1].cache


def test_full_tensorrt_keeps_nothing(machine: Machine) -> None:
    world = machine.process(is_rtx=False)
    write(machine.open(world))
    assert not world.configs and not world.num_compiled and not machine.kept.exists()


def test_kernels_are_written_after_a_text_that_nobody_read_to_its_end(machine: Machine) -> None:
    decoder = machine.open(machine.process())
    ids = generate_ids(decoder, [PROMPT], 9, Sampling())
    next(ids)
    assert machine.names() == []
    del ids
    assert machine.names() == [".kernels"]


def test_kernels_are_written_when_a_text_is_interrupted_and_not_when_it_fails(machine: Machine) -> None:
    sequences = machine.open(machine.process()).start(1, 12)
    for error, left in ((InputError("GPU", got="", expected="", remedy=""), []), (KeyboardInterrupt(), [".kernels"])):
        text: Any = sequences.write([PROMPT], 9, Sampling())
        next(text)
        with pytest.raises(type(error)):
            text.throw(error)
        assert machine.names() == left


def test_kernels_are_written_when_a_prompt_was_read_without_a_text(machine: Machine) -> None:
    machine.open(machine.process()).start(1, 8).prefill([PROMPT])
    assert machine.names() == [".kernels"]


def test_nothing_is_written_again_unless_kernels_were_added(machine: Machine) -> None:
    decoder = machine.open(machine.process())
    write(decoder)
    (file,) = machine.kept.iterdir()
    before = file.stat().st_ino, file.stat().st_mtime_ns
    write(decoder)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == before
    write(decoder, [1, 2])
    write(decoder, [1, 2])
    assert (file.stat().st_ino, file.stat().st_mtime_ns) != before
    anew = machine.process()
    write(machine.open(anew), [1, 2])
    assert not anew.num_compiled


def test_kernels_are_asked_for_ever_more_rarely(machine: Machine) -> None:
    world = machine.process()
    decoder = machine.open(world)
    for _ in range(17):
        write(decoder, num_tokens=1)
    assert world.num_serialised == 5, "after texts 1, 2, 4, 8 and 16"


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-9],
        lambda data: b"",
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: sha256(b"").digest(),
    ],
)
def test_a_broken_file_is_passed_over_and_replaced(harm: Callable[[bytes], bytes], machine: Machine) -> None:
    text = write(machine.open(machine.process()))
    (file,) = machine.kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(harm(whole))
    world = machine.process()
    assert write(machine.open(world)) == text and world.num_compiled == 2
    assert file.read_bytes() == whole


def test_what_tensorrt_does_not_take_is_replaced(machine: Machine) -> None:
    write(machine.open(machine.process()))
    for num_compiled in (2, 0):
        anew = machine.process(gpu="one with a newer driver")
        write(machine.open(anew))
        assert anew.num_compiled == num_compiled and machine.names() == [".kernels"]


def test_a_file_that_ended_the_last_process_is_not_taken_again(machine: Machine) -> None:
    write(machine.open(machine.process()))
    killed = machine.process()
    ids = generate_ids(machine.open(killed), [PROMPT], 9, Sampling())
    next(ids)
    assert machine.names() == [".kernels", ".opening"], "as it is left where a process ends here"
    after = machine.process()
    write(machine.open(after))
    assert after.num_compiled == 2 and machine.names() == [".kernels"]
    healed = machine.process()
    write(machine.open(healed))
    assert healed.num_compiled == 0
    del ids


def test_a_process_that_keeps_no_kernels_does_not_clear_the_file_of_another(machine: Machine) -> None:
    write(machine.open(machine.process()))
    ids = generate_ids(machine.open(machine.process()), [PROMPT], 9, Sampling())
    next(ids)
    assert machine.names() == [".kernels", ".opening"]
    write(machine.open(machine.process(fails="serialise")))
    assert machine.names() == [".kernels", ".opening"]
    del ids


def test_two_processes_at_once_are_fine(machine: Machine) -> None:
    worlds = [machine.process(), machine.process()]
    decoders = [machine.open(world) for world in worlds]
    for decoder, prompt in zip(decoders, ([1, 2], [1, 2, 3, 4, 5]), strict=True):
        write(decoder, prompt)
    assert machine.names() == [".kernels"]
    last = machine.process()
    decoder = machine.open(last)
    write(decoder, [1, 2, 3, 4, 5])
    assert last.num_compiled == 0, "the last one to write has its kernels kept"
    write(decoder, [1, 2])
    both = machine.process()
    decoder = machine.open(both)
    write(decoder, [1, 2, 3, 4, 5])
    write(decoder, [1, 2])
    assert both.num_compiled == 0, "and the other's are added by who comes next"


@pytest.mark.parametrize("call", ["cache", "serialise"])
def test_a_cache_that_tensorrt_does_not_give_is_done_without(call: str, machine: Machine) -> None:
    text = write(machine.open(machine.process()))
    assert write(machine.open(machine.process(fails=call))) == text


def test_a_folder_that_cannot_be_written_to_is_no_error(machine: Machine) -> None:
    machine.kept.parent.parent.write_text("a file where the folder should be")
    for _ in range(2):
        world = machine.process()
        assert len(write(machine.open(world))) == 4 and world.num_compiled == 2


def test_kernels_are_neither_taken_nor_kept_where_others_can_put_theirs(machine: Machine) -> None:
    write(machine.open(machine.process()))
    (file,) = machine.kept.iterdir()
    machine.kept.chmod(0o777)
    before, world = file.stat().st_mtime_ns, machine.process()
    write(machine.open(world), [1, 2])
    assert world.num_compiled == 2 and file.stat().st_mtime_ns == before


def test_a_cache_that_outgrows_its_file_leaves_it_as_it_is(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = machine.open(machine.process())
    write(decoder)
    (file,) = machine.kept.iterdir()
    before = file.read_bytes()
    monkeypatch.setattr(tensorrt_runtime_cache, "MOST_BYTES", len(before) - DIGEST_BYTES)
    for length in range(4, 12):
        write(decoder, list(range(length)))
    assert file.read_bytes() == before


def test_the_files_of_plans_that_nobody_opens_go_first(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.kept.mkdir(parents=True, mode=0o700)
    newer, older = (machine.kept / f"{letter * 32}.kernels" for letter in "ab")
    for age, file in enumerate((newer, older)):
        file.write_bytes(bytes(1000))
        os.utime(file, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(tensorrt_runtime_cache, "MOST_BYTES_OF_ALL", 1500)
    write(machine.open(machine.process()))
    assert len(list(machine.kept.iterdir())) == 2 and newer.exists() and not older.exists()


def test_what_is_no_kernels_file_stays(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = machine.kept / f"{'a' * 32}.kernels"
    folder.mkdir(parents=True, mode=0o700)
    machine.kept.chmod(0o700)
    others = [machine.kept / f".{'b' * 32}.kernels.0a1b2c3d", machine.kept / "notes.txt"]
    for file in others:
        file.write_bytes(bytes(1000))
        os.utime(file, (1e9, 1e9))
    old = machine.kept / f"{'c' * 32}.opening"
    old.touch()
    os.utime(old, (1e9, 1e9))
    monkeypatch.setattr(tensorrt_runtime_cache, "MOST_BYTES_OF_ALL", 900)
    monkeypatch.setattr(tensorrt_runtime_cache, "_MOST_FILES", 1)
    write(machine.open(machine.process()))
    assert folder.exists() and all(file.exists() for file in others) and not old.exists()
    assert len(list(machine.kept.iterdir())) == 4, "and the new one's kernels"


def test_kernels_of_others_have_other_files(machine: Machine) -> None:
    package = Package(name="tensorrt_rtx", version="1.7.1", trt=None)
    files = {
        kernels_file("plan", package, GPU),
        kernels_file("another plan", package, GPU),
        kernels_file("plan", replace(package, version="1.8.0"), GPU),
        *(kernels_file("plan", package, (*GPU[:i], "another", *GPU[i + 1 :])) for i in range(len(GPU))),
    }
    assert len(files) == 6 and {file.parent for file in files if file} == {machine.kept}


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
        (RuntimeCache, trt.IRuntimeCache),
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
