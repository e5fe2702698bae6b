"""Times in torch: what is run is the model, and what comes out is rows that predict."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from blockwright.compile.engine import SessionSettings
from blockwright.cost import Load, Quantity
from blockwright.hw_profiles.folder import read_profile, shipped_profiles
from blockwright.hw_profiles.profile import MemoryRow, Point, Profile, TimeRow, WholeRow
from blockwright.model.child import build_child, load_weights
from blockwright.model.parent import spec_of
from blockwright.profiler.bench import Bench
from blockwright.profiler.clock import Effort, timing_of
from blockwright.profiler.cost_model import part_costs, predict
from blockwright.profiler.measure import Request, Row, cases, measure, mix
from blockwright.profiler.torch_blocks import build_random, hf_config, sample_models, sample_variants
from blockwright.spec import (
    FP32,
    Attention,
    Block,
    Family,
    Format,
    Full,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    Rope,
    Window,
    variant_name,
)

MIXERS = (Attention(num_kv_heads=2), LinearMixer(), NoOp())
FFNS = (GatedFFN(width=512), GatedFFN(width=64), LinearFFN(), NoOp())
LOAD = Load(batch=1, prompt_tokens=40, new_tokens=24)
SESSION = SessionSettings(num_threads=1)


def _model(family: Family = "llama", window: int | None = None, **changes: object) -> Model:
    reach = Full() if window is None else Window(num_tokens=window)
    block = Block(mixer=Attention(num_kv_heads=2, reach=reach), ffn=GatedFFN(width=512))
    model = Model(
        family=family,
        vocab_size=96,
        hidden_size=64,
        num_heads=4,
        head_dim=32,
        max_positions=256,
        norm_eps=1e-5,
        rope=Rope(theta=1e4),
        activation="silu",
        has_tied_embeddings=True,
        has_qkv_bias=family == "qwen2",
        has_output_bias=False,
        has_ffn_bias=False,
        has_qk_norm=family == "qwen3",
        layers=(block,) * 4,
    )
    return replace(model, **changes)


def _measure(seconds: float, min_turns: int) -> list[Row]:
    request = Request(
        parent=_model(),
        mixers=MIXERS,
        ffns=FFNS,
        formats=(Format(name="int4", group_size=32),),
        loads=(LOAD,),
        session=SESSION,
        effort=Effort(seconds=seconds, min_turns=min_turns),
        backends=("torch",),
    )
    return [row for case in cases(request) for row in measure(case)]


def _profile(rows: Sequence[Row]) -> Profile:
    return replace(
        read_profile(shipped_profiles()[0]),
        model=_model(),
        times=tuple(row for row in rows if isinstance(row, TimeRow)),
        wholes=tuple(row for row in rows if isinstance(row, WholeRow)),
        memory=tuple(row for row in rows if isinstance(row, MemoryRow)),
    )


@pytest.mark.parametrize(
    "model",
    [
        _model(),
        _model(has_qkv_bias=True, has_output_bias=True, has_ffn_bias=True, has_tied_embeddings=False),
        _model(rope=Rope(theta=5e5, scaling="linear", parameters=(("factor", 2.0),))),
        _model("mistral"),
        _model("mistral", window=16),
        _model("qwen2"),
        _model("qwen2", window=16),
        _model("qwen3", window=16),
    ],
)
def test_a_spec_survives_becoming_a_configuration(model: Model) -> None:
    assert spec_of(hf_config(model)) == model


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_kind_of_block_runs_in_every_family(family: Family) -> None:
    layers = tuple(Block(mixer=mixer, ffn=ffn) for mixer in MIXERS for ffn in FFNS)
    child = build_random(_model(family, layers=layers))
    with torch.inference_mode():
        assert child(torch.arange(8)[None]).logits.isfinite().all()


def test_a_step_is_timed_over_the_same_cache_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.Tensor] = []

    def call_four_times(runs: Sequence, *_: object) -> list:
        chosen.extend(run() for run in runs for _ in range(4))
        return []

    monkeypatch.setattr("blockwright.profiler.torch_blocks.sample_in_turn", call_four_times)
    model = _model("mistral", window=16)
    bench = Bench(backend="torch", weights=FP32, model=model, session=SESSION, effort=Effort())
    sample_models(bench, [model], Point(batch=2, new_tokens=1, slots=64))
    with torch.inference_mode():
        at_once = build_random(model)(torch.arange(64).expand(2, -1)).logits[:, -1:].argmax(-1)
    assert len(chosen) == 4
    assert all(torch.equal(ids, at_once) for ids in chosen)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("reaches", [(4, 9), (9, None, 4), (None, 6)])
def test_layers_of_one_model_have_windows_of_their_own(family: Family, reaches: Sequence[int | None]) -> None:
    full = _model(family)
    own, layers = full.layers[0], []
    for num_tokens in reaches:
        reach = Full() if num_tokens is None else Window(num_tokens=num_tokens)
        layers.append(replace(own, mixer=replace(own.mixer, reach=reach)))
    model = replace(full, layers=tuple(layers))
    child = build_random(model)
    naive = build_child(model, hf_config(replace(full, layers=(own,) * len(layers))))  # each narrowed by itself
    naive = load_weights(naive, child.state_dict())
    ids_BT, cache = torch.arange(40).expand(2, -1), DynamicCache(config=child.config)
    with torch.inference_mode():
        expected = naive(ids_BT).logits
        torch.testing.assert_close(child(ids_BT).logits, expected)
        child(ids_BT[:, :-1], past_key_values=cache)
        torch.testing.assert_close(child(ids_BT[:, -1:], past_key_values=cache).logits[:, -1], expected[:, -1])
        unlimited = build_random(replace(full, layers=(own,) * len(layers)))
        assert not torch.allclose(unlimited(ids_BT).logits[:, -1], expected[:, -1])


def test_variants_with_different_windows_are_measured_together() -> None:
    own = Attention(num_kv_heads=2)
    variants = [replace(own, reach=reach) for reach in (Full(), Window(num_tokens=8), Window(num_tokens=16))]
    request = Request(
        parent=_model(),
        mixers=tuple(variants),
        ffns=FFNS,
        formats=(FP32,),
        loads=(LOAD,),
        session=SESSION,
        effort=Effort(seconds=0.0, min_turns=1),
        backends=("torch",),
    )
    times = [row for case in cases(request) for row in measure(case) if isinstance(row, TimeRow)]
    assert {variant_name(variant) for variant in variants} <= {row.variant for row in times}


def test_measuring_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    bench = Bench(
        backend="torch",
        weights=FP32,
        model=_model(),
        session=SessionSettings(num_threads=before + 1),
        effort=Effort(seconds=0.0, min_turns=1),
    )
    sample_variants(bench, [LinearFFN()], Point(batch=1, new_tokens=1, slots=64))
    assert torch.get_num_threads() == before


def test_torch_gives_fp32_rows_for_every_part_and_no_memory() -> None:
    rows = _measure(seconds=0.0, min_turns=1)
    assert {(row.backend, row.format) for row in rows} == {("torch", "fp32")}
    points = {Point(batch=1, new_tokens=new_tokens, slots=64) for new_tokens in (1, 40)}
    times = [row for row in rows if isinstance(row, TimeRow)]
    assert {row.point for row in times} == points
    assert len(times) == 2 * 5
    wholes = [row for row in rows if isinstance(row, WholeRow)]
    assert sum(row.is_anchor for row in wholes) == 2 * 5
    assert sum(not row.is_anchor for row in wholes) == 2 * 4
    assert not any(isinstance(row, MemoryRow) for row in rows)


def test_rows_of_torch_predict_times_of_torch() -> None:
    costs = predict(_profile(_measure(seconds=0.0, min_turns=1)), _model(), LOAD, "torch")
    assert costs["time_per_token"].origin == costs["time_to_first_token"].origin == "modelled"


def test_a_prompt_takes_longer_through_wider_ffns() -> None:
    bench = Bench(
        backend="torch", weights=FP32, model=_model(), session=SESSION, effort=Effort(seconds=0.05, min_turns=3)
    )
    widths = (32, 4096)
    point = Point(batch=1, new_tokens=64, slots=64)
    narrow, wide = (
        timing_of([samples]) for samples in sample_variants(bench, [GatedFFN(width=w) for w in widths], point)
    )
    assert 3 * narrow.calm_s < wide.calm_s


@pytest.mark.slow
def test_a_new_mix_of_blocks_takes_the_share_of_its_parent_that_was_predicted() -> None:
    profile = _profile(_measure(seconds=0.2, min_turns=10))
    bench = Bench(backend="torch", weights=FP32, model=_model(), session=SESSION, effort=Effort(seconds=0.3))
    models = [mix(_model(), MIXERS, FFNS, own_share=0.4, seed=99), _model()]
    expected: tuple[tuple[int, Quantity], ...] = ((1, "time_per_token"), (40, "time_to_first_token"))
    for new_tokens, quantity in expected:
        child, parent = (part_costs(profile, m, LOAD, quantity, "torch").of_model(m).value for m in models)
        # Shares, for what else runs on the machine may slow all of it down between profile and test.
        point = Point(batch=1, new_tokens=new_tokens, slots=64)
        timings = [timing_of([samples]) for samples in sample_models(bench, models, point)]
        assert child / parent == pytest.approx(timings[0].calm_s / timings[1].calm_s, rel=0.3)
