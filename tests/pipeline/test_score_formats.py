"""Scores in fp16 and bf16: of weights rounded as engines store them, beside a model that was rounded by torch."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blockwright.cli.main import BAD_INPUT, main
from blockwright.errors import InputError
from blockwright.library import Library, read_library
from blockwright.model.parent import Parent, load_model, open_parent
from blockwright.pipeline.candidates import candidate_layers, candidates_in, stored
from blockwright.pipeline.inputs import read_text, windows_of
from blockwright.pipeline.library import LibraryOrder, build_library
from blockwright.pipeline.score import ScoreOrder, score_library
from blockwright.search.scores import format_of
from blockwright.search.scoring import reference_kl
from blockwright.search.space import SpaceSettings
from blockwright.spec import FP32, Candidate, GatedFFN, NoOp, parse_format, stored_as

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_ABOVE_FP16 = 70_000.0


@pytest.fixture(scope="module")
def parent(small_parent: Path) -> Parent:
    return open_parent(str(small_parent))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, parent: Parent, small_text: Path) -> Path:
    folder = tmp_path_factory.mktemp("score-formats") / "library"
    space = SpaceSettings(kv_head_shares=(0.5,), ffn_width_shares=(0.5,))
    order = LibraryOrder(
        space=space, text=str(small_text), window_tokens=32, seed=0, tokens=512, batch_windows=4, learning_rate=1e-3
    )
    build_library(parent, order, folder)
    return folder


def _rounded_layer(parent: Parent, index: Library, folder: Path, candidate: Candidate) -> nn.Module:
    """The fp32 candidate's layer, or the parent's own, with its part's matrices rounded by torch."""
    model = load_model(parent)
    plain = replace(candidate, variant=stored_as(candidate.variant, FP32))
    layers = candidate_layers(model, index, folder, [plain])
    layer: Any = copy.deepcopy(layers.get(plain, model.model.layers[candidate.layer]))
    part = layer.self_attn if candidate.part == "mixer" else layer.mlp
    for parameter in part.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.to(DTYPES[format_of(candidate)]).float()
    return layer


@pytest.mark.parametrize("text", ["fp16", "bf16"])
def test_layers_hold_the_numbers_that_torch_rounds_to(text: str, parent: Parent, library: Path) -> None:
    index, model = read_library(library), load_model(parent)
    candidates = [c for c in candidates_in(index, [parse_format(text)]) if not isinstance(c.variant, NoOp)]
    found = candidate_layers(model, index, library, candidates)
    assert len(found) == len(candidates), "the parent's own parts among them"
    for candidate, layer in found.items():
        expected = _rounded_layer(parent, index, library, candidate).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize("text", ["fp16", "bf16"])
def test_scores_are_those_of_whole_models_with_rounded_weights(
    text: str, parent: Parent, library: Path, small_text: Path, tmp_path: Path
) -> None:
    order = ScoreOrder(text=str(small_text), window_tokens=16, tokens=512, seed=0, formats=(text,))
    table = score_library(parent, library, order, tmp_path / "scores.parquet")
    assert {format_of(score.candidate) for score in table.scores} == {text, ""}
    training = read_text(order.text).training
    windows: Tensor = windows_of(parent, training, length=16, num_tokens=512, seed=1).ids_NT
    model, index = load_model(parent), read_library(library)
    for score in table.scores:
        if format_of(score.candidate):
            layer = _rounded_layer(parent, index, library, score.candidate)
            kl_B = torch.cat([reference_kl(model, score.candidate, layer, ids_BT) for ids_BT in windows.split(8)])
            assert score.estimate.value == pytest.approx(kl_B.mean().item(), rel=1e-4, abs=1e-7)


def test_a_weight_that_fp16_cannot_hold_is_refused_and_bf16_takes_it() -> None:
    weights = {"mlp.up_proj.weight": torch.tensor([[1.0, _ABOVE_FP16]]), "norm.weight": torch.tensor([_ABOVE_FP16])}
    with pytest.raises(InputError, match="70000") as caught:
        stored(weights, parse_format("fp16"), "layer-01-ffn-ffn-64")
    assert caught.value.field == "weights: layer-01-ffn-ffn-64 mlp.up_proj.weight"
    assert "bf16" in caught.value.remedy
    found = stored(weights, parse_format("bf16"), "layer-01-ffn-ffn-64")
    assert found["mlp.up_proj.weight"][0, 1] == torch.tensor(_ABOVE_FP16).bfloat16().float()
    assert torch.equal(found["norm.weight"], weights["norm.weight"]), "norms are not rounded"


def test_a_space_may_keep_a_layer_to_fp16(parent: Parent, library: Path) -> None:
    index = read_library(library)
    fp16, int4 = parse_format("fp16"), parse_format("int4")
    kept = replace(index, formats=((fp16,), (fp16, int4)))
    ffns = [c for c in candidates_in(kept, [fp16, int4]) if isinstance(c.variant, GatedFFN)]
    assert {(c.layer, format_of(c)) for c in ffns} == {(0, "fp16"), (1, "fp16"), (1, "int4-g32")}
    assert SpaceSettings(formats=("fp16", "bf16", "int4")).formats == ("fp16", "bf16", "int4")


def test_a_format_that_no_engine_stores_is_refused(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(library), "--text", "nowhere", "--format", "int3"]) == BAD_INPUT
    told = " ".join(capsys.readouterr().err.split())
    assert "fp32, fp16, bf16, int8-g32" in told
