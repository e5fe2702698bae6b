"""Replace-one-block scores, against a whole model with the one block swapped."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from blockwright.errors import InputError
from blockwright.model.child import layer_with, part_weights
from blockwright.model.parent import spec_of
from blockwright.search import metrics as metrics_module
from blockwright.search import scoring
from blockwright.search.metrics import Function, TextMetrics, text_judge
from blockwright.search.scoring import in_place, reference_kl, replace_one
from blockwright.spec import Attention, Candidate, GatedFFN, LinearFFN, LinearMixer, Model, NoOp, Part, Variant

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
KL = TextMetrics()
ALL = TextMetrics(has_lm_loss=True, functions=(("spread", lambda logits_BTV, _: logits_BTV.std(dim=(1, 2))),))


@dataclass(frozen=True)
class Case:
    model: PreTrainedModel
    spec: Model
    ids_BT: Tensor


@pytest.fixture(params=["llama", "mistral", "qwen2", "qwen3"])
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    match request.param:
        case "llama":
            model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**SIZES))
        case "mistral":
            model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8))
        case "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
        case _:
            model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16))
    return Case(model=model.eval(), spec=spec_of(model.config), ids_BT=torch.randint(0, 40, (3, 20)))


def _layers(case: Case) -> dict[Candidate, nn.Module]:
    """In every layer fewer KV heads, a narrower ffn, one matrix for each part, and nothing for each part."""
    layers: dict[Candidate, nn.Module] = {}
    for index in range(3):
        own = case.model.model.layers[index]
        heads = part_weights(own, "mixer")
        for name in [name for name in heads if ".k_proj." in name or ".v_proj." in name]:
            heads[name] = heads[name].chunk(2)[0].contiguous()
        narrow = {f"mlp.{name}_proj.weight": getattr(own.mlp, f"{name}_proj").weight[:16] for name in ("gate", "up")}
        narrow |= {"mlp.down_proj.weight": own.mlp.down_proj.weight[:, :16].contiguous()}
        ffn_norm = {"post_attention_layernorm.weight": own.post_attention_layernorm.weight}
        matrix = 0.3 * torch.randn(32, 32)
        linear = {"self_attn.linear_attn.weight": matrix, "input_layernorm.weight": own.input_layernorm.weight}
        if case.spec.has_qkv_bias:
            linear["self_attn.linear_attn.bias"] = torch.randn(32)
        mixer = case.spec.layers[index].mixer
        assert isinstance(mixer, Attention)
        offered: list[tuple[Part, Variant, dict[str, Tensor]]] = [
            ("ffn", GatedFFN(width=16), narrow | ffn_norm),
            ("mixer", Attention(num_kv_heads=1, reach=mixer.reach), heads),
            ("ffn", LinearFFN(), {"mlp.linear_mlp.weight": matrix} | ffn_norm),
            ("ffn", NoOp(), {}),
            ("mixer", LinearMixer(), linear),
            ("mixer", NoOp(), {}),
        ]
        for part, variant, weights in offered:
            candidate = Candidate(layer=index, part=part, variant=variant)
            layers[candidate] = layer_with(case.model, case.spec, candidate, weights)
    return layers


def _scores(
    case: Case, layers: dict[Candidate, nn.Module], asked: TextMetrics = KL
) -> dict[Candidate, dict[str, Tensor]]:
    return replace_one(case.model, layers, case.ids_BT, partial(text_judge, ids_BT=case.ids_BT, metrics=asked))


@torch.no_grad()
def _logits(case: Case, candidate: Candidate, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Of the parent, and of the whole model with the candidate in place."""
    parent_BTV = case.model(case.ids_BT, use_cache=False).logits
    with in_place(case.model, candidate, layer):
        return parent_BTV, case.model(case.ids_BT, use_cache=False).logits


def _plain_kl(case: Case, candidate: Candidate, layer: nn.Module) -> list[float]:
    p_BTV, q_BTV = (logits.double().softmax(-1) for logits in _logits(case, candidate, layer))
    kl_B = []
    for p_TV, q_TV in zip(p_BTV, q_BTV, strict=True):
        kl_T = [
            sum(p * (p / q).log() for p, q in zip(p_V, q_V, strict=True)) for p_V, q_V in zip(p_TV, q_TV, strict=True)
        ]
        kl_B.append(float(sum(kl_T)) / len(kl_T))
    return kl_B


def test_a_score_is_the_divergence_of_a_whole_model_with_one_block_swapped(case: Case) -> None:
    layers = _layers(case)
    scores = _scores(case, layers)
    assert list(scores) == list(layers)
    for candidate, values in scores.items():
        assert values["kl"].tolist() == pytest.approx(_plain_kl(case, candidate, layers[candidate]), rel=1e-5)
        twin_B = reference_kl(case.model, candidate, layers[candidate], case.ids_BT)
        assert values["kl"].tolist() == pytest.approx(twin_B.tolist(), rel=1e-5)
        assert (values["kl"] > 1e-4).all()


def test_other_metrics_come_from_the_same_pass(case: Case) -> None:
    layers = _layers(case)
    for candidate, values in _scores(case, layers, ALL).items():
        parent_BTV, child_BTV = _logits(case, candidate, layers[candidate])
        nats = [
            cross_entropy(z_BTV[:, :-1].transpose(1, 2), case.ids_BT[:, 1:], reduction="none").mean(dim=1)
            for z_BTV in (parent_BTV, child_BTV)
        ]
        assert list(values) == ["kl", "lm_loss", "spread"]
        assert values["lm_loss"].tolist() == pytest.approx((nats[1] - nats[0]).tolist(), rel=1e-5, abs=1e-6)
        spread_B = child_BTV.std(dim=(1, 2)) - parent_BTV.std(dim=(1, 2))
        assert values["spread"].tolist() == pytest.approx(spread_B.tolist(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("tokens_at_once", [1, 60, 120, 10_000])
def test_how_many_candidates_go_side_by_side_changes_nothing(
    case: Case, tokens_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = _layers(case)
    expected = _scores(case, layers, ALL)
    monkeypatch.setattr(scoring, "TOKENS_AT_ONCE", tokens_at_once)
    for candidate, values in _scores(case, layers, ALL).items():
        for metric, values_B in values.items():
            assert values_B.tolist() == pytest.approx(expected[candidate][metric].tolist(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("logits_at_once", "logits_to_keep"), [(1, 0), (7 * 40, 0), (7 * 40, 2**26), (2**26, 0)])
def test_how_many_logits_are_held_changes_nothing(
    case: Case, logits_at_once: int, logits_to_keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = _layers(case)
    expected = _scores(case, layers, ALL)
    monkeypatch.setattr(metrics_module, "LOGITS_AT_ONCE", logits_at_once)
    monkeypatch.setattr(metrics_module, "_LOGITS_TO_KEEP", logits_to_keep)
    for candidate, values in _scores(case, layers, ALL).items():
        for metric, values_B in values.items():
            assert values_B.tolist() == pytest.approx(expected[candidate][metric].tolist(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("part", ["mixer", "ffn"])
def test_the_parents_own_part_loses_nothing(case: Case, part: Part) -> None:
    for index, block in enumerate(case.spec.layers):
        candidate = Candidate(layer=index, part=part, variant=getattr(block, part))
        own = part_weights(case.model.model.layers[index], part)
        layer = layer_with(case.model, case.spec, candidate, own)
        values = _scores(case, {candidate: layer}, TextMetrics(has_lm_loss=True))[candidate]
        assert all(values_B.tolist() == [0.0, 0.0, 0.0] for values_B in values.values())


def test_logits_that_change_beyond_what_fp32_can_raise_e_to_are_scored_all_the_same(case: Case) -> None:
    candidate = Candidate(layer=2, part="ffn", variant=LinearFFN())
    norm = case.model.model.layers[2].post_attention_layernorm.weight
    weights = {"mlp.linear_mlp.weight": torch.randn(32, 32), "post_attention_layernorm.weight": norm}
    layer = layer_with(case.model, case.spec, candidate, weights)
    with torch.no_grad():
        case.model.lm_head.weight *= 60
    parent_BTV, child_BTV = _logits(case, candidate, layer)
    assert (child_BTV - parent_BTV).max() > 100
    log_p_BTV, log_q_BTV = (logits.double().log_softmax(-1) for logits in (parent_BTV, child_BTV))
    kl_B = (log_p_BTV.exp() * (log_p_BTV - log_q_BTV)).sum(dim=-1).mean(dim=1)
    assert _scores(case, {candidate: layer})[candidate]["kl"].tolist() == pytest.approx(kl_B.tolist(), rel=1e-5)


def test_progress_is_told_after_every_candidate(case: Case) -> None:
    layers = _layers(case)
    calls: list[None] = []
    ids_BT = case.ids_BT[:1, :4]
    judge_of = partial(text_judge, ids_BT=ids_BT, metrics=KL)
    replace_one(case.model, layers, ids_BT, judge_of, on_candidate=lambda: calls.append(None))
    assert len(calls) == len(layers)


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda logits_BTV, _: logits_BTV.mean(), r"a tensor of shape \[\] for 3 window"),
        (lambda logits_BTV, _: logits_BTV[..., 0], r"a tensor of shape \[3, 20\]"),
        (lambda logits_BTV, _: 1.0, "float for 3 window"),
        (lambda logits_BTV, _: logits_BTV[:, 0, 0] * float("nan"), "nan.* for the parent itself"),
    ],
)
def test_a_function_that_gives_no_number_per_window_is_refused(
    case: Case, function: Callable[..., Tensor], got: str
) -> None:
    functions: tuple[tuple[str, Function], ...] = (("mine", function),)
    with pytest.raises(InputError, match=rf"metric mine: got .*{got}"):
        _scores(case, _layers(case), TextMetrics(functions=functions))
