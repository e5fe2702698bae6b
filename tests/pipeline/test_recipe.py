"""A recipe that no run can use is refused when it is read, by the name of its key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from blockwright.errors import InputError
from blockwright.pipeline.recipe import read_recipe

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
NAN, INF = float("nan"), float("inf")

Write = Callable[[str, Any], Path]


@pytest.fixture
def demo_with(tmp_path: Path) -> Write:
    """Writes the demo's recipe with one key changed: `demo_with("score.tokens", 0)`."""

    def write(key: str, value: Any) -> Path:
        data = part = yaml.safe_load(DEMO.read_text())
        *sections, name = key.split(".")
        for section in sections:
            part = part[section]
        part[name] = value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    return write


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("seed", value) for value in (-1, 2**32)),
        *(("window_tokens", value) for value in (-256, 0, 1)),
        ("loads", {}),
        ("budgets", []),
        *(("engine.formats", value) for value in ([], ["bf16"], ["fp32", "fp16"], ["int3"], ["fp32-g32"])),
        *(("engine.formats", value) for value in (["fp32", "fp32"], ["int4", "fp32", "int4-g32"])),
        *(("engine.threads", value) for value in (-1, 0)),
        *(("profile.seconds_per_measurement", value) for value in (-1.0, 0, NAN, INF)),
        *(("profile.backends", value) for value in ([], ["torch"], ["onnxruntime", "onnxruntime"])),
        *((f"{section}.tokens", value) for section in ("library", "score", "distill", "measure") for value in (0, 255)),
        *((f"{section}.tokens", 511) for section in ("score", "measure")),
        *((f"{section}.tokens", -(2**20)) for section in ("library", "score", "distill", "measure")),
        *(("score.metrics", value) for value in ([], ["kl", "kl"])),
        *(("score.formats", value) for value in ([], ["bf16"], ["int4", "int4-g32"])),
        *((f"{section}.batch_windows", value) for section in ("library", "distill") for value in (-1, 0)),
        *((f"{section}.learning_rate", value) for section in ("library", "distill") for value in (-1e-3, 0, NAN, INF)),
        *(("search.time_limit_s", value) for value in (-1.0, 0, NAN, INF)),
        ("search.frontier_points", -1),
        *(("distill.cosine_weight", value) for value in (-1.0, NAN, INF)),
        *(("measure.seconds", value) for value in (-1.0, 0, NAN, INF)),
        *(("measure.new_tokens", value) for value in (-1, 0)),
        *(("measure.temperature", value) for value in (-0.1, NAN, INF)),
    ],
)
def test_a_value_that_no_run_can_use_is_refused_by_its_key(key: str, value: Any, demo_with: Write) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe(demo_with(key, value))
    assert caught.value.field == key


def test_who_scores_what_no_run_builds_is_told(demo_with: Write) -> None:
    with pytest.raises(InputError, match="scored by `blockwright score`"):
        read_recipe(demo_with("score.formats", ["fp16"]))


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../../x", "/tmp/x", "a/b", "a\\b", "a\nb", "a\0", " a", "a ", "a.", ".hidden", "-rf", "a:b"],
)
def test_a_name_that_is_no_plain_folder_is_refused(name: str, demo_with: Write) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe(demo_with("name", name))
    assert (caught.value.field, caught.value.got) == ("name", repr(name))


@pytest.mark.parametrize("name", ["a", "demo", "Qwen3-0.6B", "llama 3.2", "élan_2", "a.b"])
def test_a_plain_name_is_accepted(name: str, demo_with: Write) -> None:
    assert read_recipe(demo_with("name", name)).name == name


def test_an_empty_prompt_is_refused_by_its_place(demo_with: Write) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe(demo_with("measure.prompts", ["def", ""]))
    assert caught.value.field == "measure.prompts[1]"


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, NAN])
@pytest.mark.parametrize("key", ["space.kv_head_shares", "space.ffn_width_shares"])
def test_a_share_outside_0_to_1_is_refused_by_its_place(key: str, share: float, demo_with: Write) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe(demo_with(key, [0.5, share]))
    assert caught.value.field == f"{key}[1]"
    assert str(caught.value.got) == str(share)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("engine.formats", ["int8-g64", "int4-g128"]),
        ("search.frontier_points", 0),
        ("score.tokens", 512),
        ("library.tokens", 256),
        ("distill.cosine_weight", 0),
        ("measure.temperature", 0),
        ("measure.prompts", []),
        ("space.kv_head_shares", []),
    ],
)
def test_a_value_on_the_edge_is_accepted(key: str, value: Any, demo_with: Write) -> None:
    section, _, name = key.partition(".")
    found = getattr(getattr(read_recipe(demo_with(key, value)), section), name)
    assert found == (tuple(value) if isinstance(value, list) else value)


def test_a_space_may_stand_in_a_file_of_its_own(demo_with: Write, tmp_path: Path) -> None:
    keys = {"kv_heads": [2], "windows": [64], "overrides": [{"layers": "0-1", "has_no_op": False}]}
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(keys))
    assert read_recipe(demo_with("space", str(path))).space == read_recipe(demo_with("space", keys)).space
    path.write_text("kv_head: [2]")
    with pytest.raises(InputError) as caught:
        read_recipe(demo_with("space", str(path)))
    assert caught.value.field == f"{path}: kv_head"
