"""A space's own candidates are what is measured, here and by a kit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.model.parent import open_parent
from blockwright.pipeline.kit import offered
from blockwright.pipeline.profile import ProfileOrder
from blockwright.profiler.kit import KitOrder
from blockwright.search.space import SpaceSettings, candidates
from blockwright.search.space_file import read_space
from blockwright.spec import NoOp, Variant, variant_name

SPACE = """
kv_head_shares: []
windows: [16, 24]
ffn_widths: [24]
has_linear: false
overrides:
  - {layers: 0, ffn_widths: [40], has_no_op: false}
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path / "space.yaml"


def _names(variants: list[Variant]) -> set[str]:
    return {variant_name(variant) for variant in variants if not isinstance(variant, NoOp)}


def _offered(parent: Path, space: Path) -> set[str]:
    spec = open_parent(str(parent)).spec
    return _names([candidate.variant for candidate in candidates(spec, read_space(space, spec))])


def test_profile_measures_what_the_space_offers(
    small_parent: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ProfileOrder] = []
    monkeypatch.setattr("blockwright.pipeline.profile.profile_machine", lambda order, output: asked.append(order))
    monkeypatch.setattr("blockwright.pipeline.tables.print_profile", lambda profile: None)
    for words in (["--space", str(space)], []):
        assert main(["profile", "--for", str(small_parent), *words, "-o", str(tmp_path / "profile")]) == 0
    assert {"ffn-24", "ffn-40"} <= _offered(small_parent, space)
    mixers, ffns = offered(asked[0].parent, asked[0].space)
    assert _names([*mixers, *ffns]) == _offered(small_parent, space)
    assert asked[1].space == SpaceSettings()


def test_a_kit_holds_what_the_space_offers(
    small_parent: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[KitOrder] = []

    def write(order: KitOrder, output: Path, advance: Callable[[], None]) -> int:
        output.touch()
        packed.append(order)
        return 0

    monkeypatch.setattr("blockwright.pipeline.kit.write_kit", write)
    words = f"profile pack --for {small_parent} --space {space} --out {tmp_path / 'kit.zip'}"
    assert main(words.split()) == 0
    assert _names([*packed[0].mixers, *packed[0].ffns]) == _offered(small_parent, space)


def test_a_space_without_a_parent_or_on_a_gpu_is_refused(
    space: Path, small_parent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        ([], "without --for"),
        (["--for", str(small_parent), "--device", "cuda"], "with --device cuda"),
    ):
        assert main(["profile", "--space", str(space), *words]) == 2
        message = capsys.readouterr().err
        assert "error in --space\n" in message and told in message
