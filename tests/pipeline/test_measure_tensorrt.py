"""Measuring TensorRT engines side by side, with ONNX Runtime in TensorRT's place."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockwright.cli.main import main
from blockwright.compile.engine import ENGINE_FILE
from blockwright.compile.tensorrt_session import TensorRtDecoder
from blockwright.cost import Load
from blockwright.count import parameters
from blockwright.errors import InputError
from blockwright.files import write_json
from blockwright.llama import llama
from blockwright.pipeline.measure_tensorrt import check_tensorrt_promises_hold_here, measure_tensorrt_costs
from blockwright.spec import FP16, Attention, Block, Format, GatedFFN, NoOp, parse_format
from blockwright.strict import to_data
from tensorrt_on_cpu import engine_of, open_on_cpu

SLOTS = 64
INT4 = parse_format("int4")
BLOCK = Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=128))
PARENT = llama((BLOCK,) * 6, hidden_size=64, num_heads=4, head_dim=16, vocab_size=80, max_positions=SLOTS)
CHILD = replace(PARENT, layers=(BLOCK, Block(mixer=NoOp(), ffn=NoOp())))
LOADS = {"chat": Load(batch=1, prompt_tokens=9, new_tokens=12), "two": Load(batch=2, prompt_tokens=9, new_tokens=5)}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    folders = (tmp_path / "parent", tmp_path / "child")
    for folder, model in zip(folders, (PARENT, CHILD), strict=True):
        write_json(folder / ENGINE_FILE, to_data(engine_of(model, SLOTS)))
    return folders


class _Memory:
    """Of a device on which an engine takes 1000 bytes, or 400, and its caches 100, as long as they are there.

    What opens the first one takes 70 bytes, which it keeps.
    """

    def __init__(self) -> None:
        self.living: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.most, self.kept = 0, 0

    def open(self, folder: Path) -> TensorRtDecoder:
        decoder = open_on_cpu({"parent": PARENT, "child": CHILD}[folder.name], SLOTS)[0]
        self.kept = 70
        self.living[decoder] = 1000 if folder.name == "parent" else 400
        start = TensorRtDecoder.start

        def watched(batch: int, num_tokens: int) -> Any:
            living = decoder_of()
            assert living is not None
            sequences = start(living, batch, num_tokens)
            self.living[sequences] = 100
            return sequences

        decoder_of = weakref.ref(decoder)
        decoder.start = watched  # type: ignore[method-assign]
        return decoder

    def used_bytes(self) -> int:
        self.most = max(self.most, len(self.living))
        return self.kept + sum(self.living.values())


def test_every_quantity_is_measured_of_both_at_every_load(pair: tuple[Path, Path]) -> None:
    memory = _Memory()
    gc.disable()  # nothing may hang on when Python looks for circles
    try:
        costs = measure_tensorrt_costs(pair, LOADS, 0.05, memory.open, memory.used_bytes)
    finally:
        gc.enable()
    assert [(cost.load, cost.quantity) for cost in costs] == [
        (load, quantity)
        for load in LOADS
        for quantity in ("time_per_token", "time_to_first_token", "memory", "parameters")
    ]
    assert memory.most == 4, "two engines and their texts"
    for cost in costs:
        assert cost.format == "fp32" and cost.parent.low <= cost.parent.value <= cost.parent.high
        assert cost.child.value < cost.parent.value, "a third of the layers"
        if cost.quantity == "memory":
            assert (cost.parent.value, cost.child.value) == (1100, 500)
        if cost.quantity == "parameters":
            assert (cost.parent.value, cost.child.value) == (parameters(PARENT), parameters(CHILD))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"format": "int4-g32"}, "int4-g32 on tensorrt; expected the engine's, fp32 on tensorrt"),
        ({"backend": "torch"}, "fp32 on torch"),
        ({"profile": "another"}, "got another; expected this GPU's, rtx-4090"),
    ],
)
def test_promises_are_held_where_and_of_what_they_were_made(changes: dict[str, str], said: str | None) -> None:
    class Promises:
        format, backend, profile = "fp32", "tensorrt", "rtx-4090"

    plan: Any = Promises()
    for name, value in changes.items():
        setattr(plan, name, value)
    if said is None:
        check_tensorrt_promises_hold_here(plan, engine_of(CHILD, SLOTS), "rtx-4090")
        return
    with pytest.raises(InputError, match=said):
        check_tensorrt_promises_hold_here(plan, engine_of(CHILD, SLOTS), "rtx-4090")


@pytest.mark.parametrize("changes", [{"head_weights": INT4}, {"embedding_weights": INT4, "head_weights": FP16}])
def test_promises_are_not_held_against_tables_that_no_profile_measured(changes: dict[str, Format]) -> None:
    plan: Any = type("Plan", (), {"format": "fp32", "backend": "tensorrt", "profile": "rtx-4090"})()
    engine = engine_of(replace(CHILD, **changes), SLOTS)
    with pytest.raises(InputError, match=r"head and embedding: got .*; expected fp32 and fp32, as the plan"):
        check_tensorrt_promises_hold_here(plan, engine, "rtx-4090")


def test_engines_of_two_runtimes_are_not_compared(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "other" / ENGINE_FILE, {"target": "onnxruntime", "schema_version": 1})
    assert main(["measure", str(pair[1]), "--against", str(tmp_path / "other")]) == 2
    said = capsys.readouterr().err
    assert "one for tensorrt and one for onnxruntime" in said and "--target tensorrt" in said


def test_without_a_gpu_measuring_says_so(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this is what is said where there is no GPU")
    assert main(["measure", str(pair[1]), "--against", str(pair[0]), "--load", "chat=1x8+8"]) == 2
    assert "a GPU of sm86, sm120" in capsys.readouterr().err
