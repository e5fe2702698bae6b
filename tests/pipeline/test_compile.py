"""The compile stage: one format for all layers, or each as a plan says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockwright.cli.main import main
from blockwright.compile.engine import DATA_FILE, Engine, read_engine
from blockwright.compile.session import Decoder
from blockwright.count import ffn_weight_bytes, mixer_weight_bytes, shared_weight_bytes
from blockwright.errors import InputError
from blockwright.model.parent import open_parent
from blockwright.pipeline.compile import CompileOrder, compile_checkpoint
from blockwright.search.plan import Plan, write_plan
from blockwright.spec import Attention, Block, Format, GatedFFN, Model, parse_format, stored_as
from plans import plan_here

INT4 = parse_format("int4")
AS_THE_PLAN_SAYS = CompileOrder(format=None, threads=1)


@pytest.fixture
def parent(small_parent: Path) -> Model:
    return open_parent(str(small_parent)).spec


@pytest.fixture
def mixed(parent: Model) -> Plan:
    """The parent's own blocks, the second ffn and the first mixer in int4."""
    first, second = parent.layers
    layers = (replace(first, mixer=stored_as(first.mixer, INT4)), replace(second, ffn=stored_as(second.ffn, INT4)))
    return plan_here(parent, replace(parent, layers=layers))


def _weight_bytes(model: Model) -> int:
    layers = sum(mixer_weight_bytes(model, b.mixer) + ffn_weight_bytes(model, b.ffn) for b in model.layers)
    return layers + shared_weight_bytes(model)


def _logits(folder: Path) -> list[float]:
    return Decoder.open(folder).start(1, 8).prefill([[1, 2, 3]])[0].tolist()


def test_an_engine_of_a_plan_stores_each_layer_as_the_plan_says(
    small_parent: Path, mixed: Plan, tmp_path: Path
) -> None:
    built = compile_checkpoint(str(small_parent), AS_THE_PLAN_SAYS, tmp_path / "mixed", plan=mixed)
    assert (built.format, built.model) == ("mixed", mixed.child)
    assert read_engine(tmp_path / "mixed") == built
    plain = compile_checkpoint(str(small_parent), CompileOrder(format="fp32", threads=1), tmp_path / "fp32")
    saved = _weight_bytes(plain.model) - _weight_bytes(built.model)
    assert plain.graph_bytes - built.graph_bytes == pytest.approx(saved, rel=0.1)
    assert _logits(tmp_path / "mixed") != _logits(tmp_path / "fp32")


def test_a_plan_of_one_format_keeps_its_own_head(small_parent: Path, parent: Model, tmp_path: Path) -> None:
    layers = tuple(Block(mixer=stored_as(b.mixer, INT4), ffn=stored_as(b.ffn, INT4)) for b in parent.layers)
    plan = plan_here(parent, replace(parent, layers=layers))
    built = compile_checkpoint(str(small_parent), AS_THE_PLAN_SAYS, tmp_path / "plan", plan=plan)
    whole = compile_checkpoint(str(small_parent), CompileOrder(format="int4", threads=1), tmp_path / "int4")
    assert built.format == whole.format == "int4-g32"
    assert (str(built.model.embedding_weights), str(whole.model.embedding_weights)) == ("fp32", "int8-g32")


@pytest.mark.parametrize("part", ["head", "embedding", "both"])
@pytest.mark.parametrize("head", ["int4-g32", "fp16"])
def test_embedding_and_head_may_be_stored_apart_from_the_layers(
    small_parent: Path, tmp_path: Path, head: str, part: str
) -> None:
    built = dict[str | None, Engine]()
    for name in (None, head):
        asked: dict[str, Any] = {each: name for each in ("head", "embedding") if part in (each, "both")}
        order = CompileOrder(format="int4", threads=1, **asked)
        built[name] = compile_checkpoint(str(small_parent), order, tmp_path / str(name))
    for name, engine in built.items():
        tables = {"head": engine.model.head_format, "embedding": engine.model.embedding_weights}
        for each, stored in tables.items():
            assert str(stored) == (name if name and part in (each, "both") else "int8-g32")
    assert {engine.format for engine in built.values()} == {"int4-g32"}
    saved = _weight_bytes(built[None].model) - _weight_bytes(built[head].model)
    sizes = {name: engine.files[DATA_FILE].size_bytes for name, engine in built.items()}
    assert sizes[None] - sizes[head] == pytest.approx(saved, abs=64)  # places in the file are round numbers
    assert _logits(tmp_path / "None") != _logits(tmp_path / head)


def test_a_plan_may_be_given_another_head(small_parent: Path, mixed: Plan, tmp_path: Path) -> None:
    order = replace(AS_THE_PLAN_SAYS, head="int8")
    built = compile_checkpoint(str(small_parent), order, tmp_path / "engine", plan=mixed)
    assert built.model == replace(mixed.child, head_weights=parse_format("int8"))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--head", "int3"], "--head"),
        (["--head", "bf16"], "--head"),
        (["--head", "int4", "--target", "llama.cpp"], "--head"),
    ],
)
def test_a_head_that_cannot_be_stored_is_refused(
    small_parent: Path, tmp_path: Path, flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(small_parent), "--out", str(tmp_path / "engine"), *flags]) == 2
    assert f"error in {named}" in capsys.readouterr().err
    assert not (tmp_path / "engine").exists()


def test_another_plan_makes_another_engine_and_the_same_one_none(
    small_parent: Path, mixed: Plan, tmp_path: Path
) -> None:
    def build(plan: Plan) -> tuple[Engine, int]:
        engine = compile_checkpoint(str(small_parent), AS_THE_PLAN_SAYS, tmp_path / "engine", plan=plan)
        return engine, (tmp_path / "engine" / "engine.json").stat().st_ino

    first, again, other = build(mixed), build(mixed), build(plan_here(mixed.parent, mixed.parent))
    assert first == again
    assert other != first and other[0].format == "fp32"


@pytest.mark.parametrize(
    ("block", "got"),
    [
        (
            Block(mixer=Attention(num_kv_heads=1, weights=INT4), ffn=GatedFFN(width=64)),
            "attention-kv1 and ffn-64 as",
        ),
        (None, "the child of another parent"),
    ],
)
def test_a_plan_of_other_blocks_is_refused(
    block: Block | None, got: str, small_parent: Path, mixed: Plan, tmp_path: Path
) -> None:
    layers = mixed.child.layers[:1] if block is None else (mixed.child.layers[0], block)
    other = replace(mixed, child=replace(mixed.child, layers=layers))
    with pytest.raises(InputError, match=f"plan: child: got {got}"):
        compile_checkpoint(str(small_parent), AS_THE_PLAN_SAYS, tmp_path / "engine", plan=other)
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("table", ["embedding_weights", "head_weights"])
def test_a_plan_with_a_table_in_a_format_that_cannot_be_built_is_refused(
    table: str, small_parent: Path, mixed: Plan, tmp_path: Path
) -> None:
    plan = replace(mixed, child=replace(mixed.child, **{table: parse_format("bf16")}))
    with pytest.raises(InputError, match="plan: child: got 'bf16'"):
        compile_checkpoint(str(small_parent), AS_THE_PLAN_SAYS, tmp_path / "engine", plan=plan)


def test_one_format_of_head_and_embedding_is_one_model_whoever_says_it(
    small_parent: Path, mixed: Plan, tmp_path: Path
) -> None:
    said = replace(mixed, child=replace(mixed.child, head_weights=mixed.child.embedding_weights))
    assert said.child != mixed.child
    built = [
        compile_checkpoint(str(small_parent), AS_THE_PLAN_SAYS, tmp_path / str(index), plan=plan)
        for index, plan in enumerate((mixed, said))
    ]
    assert built[0].model == built[1].model == mixed.child


def test_a_plan_in_a_format_that_cannot_be_built_is_refused(small_parent: Path, mixed: Plan, tmp_path: Path) -> None:
    first, second = mixed.child.layers
    layers = (first, replace(second, ffn=stored_as(second.ffn, Format(name="bf16"))))
    other = replace(mixed, child=replace(mixed.child, layers=layers))
    with pytest.raises(InputError, match="plan: child: got 'bf16'"):
        compile_checkpoint(str(small_parent), AS_THE_PLAN_SAYS, tmp_path / "engine", plan=other)


def test_the_command_line_goes_from_a_mixed_plan_to_text_and_times(
    small_parent: Path, mixed: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, engine, other = (str(tmp_path / name) for name in ("plan.json", "engine", "parent-engine"))
    write_plan(mixed, Path(plan))
    assert main(["compile", str(small_parent), "--plan", plan, "--out", engine]) == 0
    assert "mixed" in capsys.readouterr().out
    assert main(["compile", str(small_parent), "--out", other]) == 0
    assert main(["generate", engine, "--prompt", "the cat", "--tokens", "4"]) == 0
    assert "the cat" in capsys.readouterr().out
    assert main(["measure", engine, "--against", other, "--plan", plan, "--seconds", "0.01"]) == 0
    assert main(["measure", other, "--against", engine, "--plan", plan, "--seconds", "0.01"]) == 2
    assert "the engine's, fp32" in capsys.readouterr().err


def test_a_format_beside_a_plan_is_refused(
    small_parent: Path, mixed: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(mixed, tmp_path / "plan.json")
    words = ["compile", str(small_parent), "--plan", str(tmp_path / "plan.json"), "--format", "int4"]
    assert main([*words, "--out", str(tmp_path / "engine")]) == 2
    assert "error in --format, --plan" in capsys.readouterr().err
