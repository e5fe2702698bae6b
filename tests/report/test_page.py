"""The page: it holds what was promised and measured, needs no network, and tells drift from error."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from blockwright.cost import Cost, Load, Quantity, exact
from blockwright.hw_profiles.tried import Share, TriedChild
from blockwright.measured import Measured, MeasuredCost, Quality, Sample
from blockwright.report.facts import (
    RIVALS_CAPTION,
    budget_words,
    cost_lines,
    layer_pictures,
    measured_promises,
    price_words,
    rival_rows,
)
from blockwright.report.figures import frontier_figure
from blockwright.report.page import Report, page
from blockwright.report.remarks import drift_words, trial_words
from blockwright.search.plan import BudgetLine, FrontierPoint, Plan, Promise, Rival
from blockwright.spec import Attention, Block, GatedFFN, LinearFFN, LinearMixer, Model, NoOp, Rope
from blockwright.statistics import Estimate

PARENT = Model(
    family="llama",
    vocab_size=96,
    hidden_size=64,
    num_heads=4,
    head_dim=16,
    max_positions=256,
    norm_eps=1e-6,
    rope=Rope(theta=1e4),
    activation="silu",
    has_tied_embeddings=True,
    has_qkv_bias=False,
    has_output_bias=False,
    has_ffn_bias=False,
    has_qk_norm=False,
    layers=(Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=128)),) * 3,
)
CHILD = replace(
    PARENT,
    layers=(
        PARENT.layers[0],
        Block(mixer=Attention(num_kv_heads=1), ffn=LinearFFN()),
        Block(mixer=LinearMixer(), ffn=NoOp()),
    ),
)
ESTIMATE = Estimate(value=0.5, low=0.4, high=0.6, num_values=12)
QUALITY = Quality(
    kl=ESTIMATE, bits_per_byte=ESTIMATE, parent_bits_per_byte=ESTIMATE, bits_per_byte_ratio=ESTIMATE, agreement=ESTIMATE
)


def _cost(value: float) -> Cost:
    return Cost(value=value, low=0.9 * value, high=1.1 * value, origin="measured")


def _promise(quantity: Quantity, parent: Cost, child: Cost, device: str = "made-up") -> Promise:
    return Promise(quantity=quantity, device=device, load="chat", parent=parent, child=child)


def _plan() -> Plan:
    return Plan(
        schema_version=2,
        status="optimal",
        parent=PARENT,
        child=CHILD,
        score=0.5,
        bound=0.5,
        metric="kl",
        profile="made-up",
        devices={"made-up": "made-up"},
        backend="onnxruntime",
        format="fp32",
        loads={"chat": Load(batch=1, prompt_tokens=40, new_tokens=24)},
        batches={},
        promises=(
            _promise("memory", _cost(8e6), _cost(6e6)),
            _promise("time_per_token", _cost(4e-4), _cost(2e-4)),
        ),
        budgets=(
            BudgetLine(
                text="time_per_token@chat <= 60%",
                quantity="time_per_token",
                device="made-up",
                load="chat",
                limit=2.4e-4,
                is_least=False,
                share=0.6,
                spent=2.2e-4,
                is_binding=True,
                price=1e3,
            ),
        ),
        frontier=(
            FrontierPoint(limit=1e-4, spent=1e-4, score=1.0, bound=1.0),
            FrontierPoint(limit=2e-4, spent=2e-4, score=0.5, bound=0.5),
        ),
        pool=(),
    )


def _measured(parent_s: float = 4e-4, child_s: float = 2.1e-4) -> Measured:
    figures: list[tuple[str, Quantity, float, float]] = [
        ("fp32", "time_per_token", parent_s, child_s),
        ("fp32", "memory", 8e6, 6.1e6),
        ("int4-g32", "time_per_token", parent_s, child_s),
    ]
    costs = [
        MeasuredCost(format=weights, quantity=quantity, load="chat", parent=_cost(parent), child=_cost(child))
        for weights, quantity, parent, child in figures
    ]
    return Measured(
        schema_version=1,
        device="a-device",
        software={"python": "3.11"},
        created="2026-01-01T00:00:00Z",
        loads={"chat": Load(batch=1, prompt_tokens=40, new_tokens=24)},
        costs=tuple(costs),
        realised=QUALITY,
        distilled=QUALITY,
        held_out_tokens=4096,
        samples=(Sample(prompt="if a <", parent=" b & c:", child=" <script>alert(1)</script>"),),
    )


def _page() -> str:
    stage = {"seconds": 1.0, "finished": "2026-01-01T00:00:00+00:00", "key": "0123456789abcdef"}
    report = Report(
        name="a run",
        parent_name="a parent",
        plan=_plan(),
        measured=_measured(),
        distillation_kl=[1.0, 0.5],
        manifest={"search": stage},
    )
    return page(report)


class _Addresses(HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "data", "poster", "srcset")]


def test_the_page_fetches_nothing_and_runs_nothing() -> None:
    html, parser = _page(), _Addresses()
    parser.feed(html)
    assert not parser.tags & {"script", "link", "iframe", "object"}
    assert not [address for address in parser.found if re.match(r"(?:\w+:)?//", address)]
    assert not re.search(r"@import|url\(\s*['\"]?(?:\w+:)?//", html)


def test_what_a_model_writes_is_text_and_not_markup() -> None:
    html = _page()
    assert "&lt;script&gt;alert(1)" in html and "<script>" not in html


def test_the_page_says_what_was_asked_promised_and_measured() -> None:
    html = _page()
    for words in ("≤ 60 %", "200 µs", "210 µs", "+5.0 %", "proven optimal", "What each layer became", "viewport"):
        assert words in html


def test_budgets_come_first_and_shares_are_of_what_the_parent_took() -> None:
    calm, busy = (cost_lines(_plan(), _measured(p, c))[0] for p, c in ((4e-4, 2.5e-4), (6e-4, 3.5e-4)))
    assert (calm.name, calm.asked, calm.is_met) == ("Time per token", "≤ 60 %", False)
    assert busy.is_met  # 58 % of a parent that the machine slowed down as well
    assert (busy.of_parent, busy.of_parent_promised) == ("58 %", "50 %")


def test_a_machine_that_slowed_down_is_told_apart_from_a_broken_promise() -> None:
    assert drift_words(_plan(), _measured(4.1e-4, 3e-4)) == []
    (sentence,) = drift_words(_plan(), _measured(6e-4, 3.15e-4))
    assert "slower" in sentence and "600 µs instead of 400 µs" in sentence and "+5.0 %" in sentence


def test_the_page_says_how_the_child_did_on_trial_and_nothing_of_other_children() -> None:
    plan = _plan()
    shares = {
        "time_per_token": Share(median=0.585, low=0.58, high=0.5932, num_processes=8),
        "time_to_first_token": Share(median=0.4, low=0.39, high=0.41, num_processes=8),
    }
    own = TriedChild(child=plan.child, parent_format="fp32", load=plan.loads["chat"], **shares)
    other, elsewhere = replace(own, child=PARENT), replace(own, load=Load(batch=9, prompt_tokens=1, new_tokens=1))
    (sentence,) = trial_words(plan, [own, other, elsewhere])
    assert "time per token 58.5 % (58.0 to 59.3)" in sentence and "chat, 8 processes" in sentence
    report = Report(
        name="x",
        parent_name="y",
        plan=plan,
        measured=_measured(),
        distillation_kl=[1.0],
        manifest={},
        tried=[own],
    )
    assert "Tried before it was trained" in page(report)
    assert "Tried" not in page(replace(report, tried=[other]))


def test_layers_are_drawn_by_what_is_left_of_them() -> None:
    own, narrow, linear = layer_pictures(PARENT.layers, CHILD.layers)
    assert (own.mixer.kind, own.ffn.percent) == ("own", 100)
    assert (narrow.mixer.kind, narrow.mixer.percent, narrow.ffn.kind) == ("narrow", 25, "linear")
    assert (linear.mixer.kind, linear.ffn.kind, linear.ffn.percent) == ("linear", "none", 0)


@pytest.mark.parametrize("points", [0, 2])
def test_a_plan_without_a_frontier_has_a_page_too(points: int) -> None:
    plan = replace(_plan(), frontier=_plan().frontier[:points])
    report = Report(name="x", parent_name="y", plan=plan, measured=_measured(), distillation_kl=[1.0], manifest={})
    assert ("The choice" in page(report)) == bool(points)


def test_exact_costs_show_no_interval() -> None:
    plan = replace(_plan(), promises=(_promise("memory", exact(8e6), exact(6e6)),), budgets=())
    assert cost_lines(plan, _measured())[0].promised_interval == ""


def test_simpler_ways_to_choose_stand_on_the_page_where_they_were_asked_for() -> None:
    assert "simpler ways" not in _page()
    found = Rival(name="greedy", score=0.75, child=CHILD, reason="")
    nothing = Rival(name="uniform", score=None, child=None, reason="finds no choice")
    plan = replace(_plan(), rivals=(found, nothing))
    report = Report(name="x", parent_name="y", plan=plan, measured=_measured(), distillation_kl=[1.0], manifest={})
    html = page(report)
    assert "<td>greedy</td><td>0.7500</td><td>1.50 ×</td>" in html and RIVALS_CAPTION in html
    assert "<td>uniform</td><td>finds no choice</td><td></td>" in html
    assert rival_rows(replace(plan, score=0.0))[1]["times"] == ""  # nothing to be so many times of


def _line(limit: float, share: float | None = None, is_least: bool = False, **changes: object) -> BudgetLine:
    line = replace(_plan().budgets[0], limit=limit, share=share, is_least=is_least)
    return replace(line, **changes)  # type: ignore[arg-type]


def test_what_is_asked_is_said_from_both_sides() -> None:
    assert budget_words([]) == ""
    assert budget_words([_line(2e-4, is_least=True), _line(3e-4)]) == "≥ 200 µs, ≤ 300 µs"
    assert budget_words([_line(2.4e-4, share=0.6)]) == "≤ 60 %"


def test_a_budget_from_below_is_met_from_above() -> None:
    for limit, is_met in ((2.05e-4, True), (2.15e-4, False)):
        plan = replace(_plan(), budgets=(_line(limit, is_least=True),))
        assert cost_lines(plan, _measured())[0].is_met == is_met
    both = replace(_plan(), budgets=(_line(2e-4, is_least=True), _line(2.05e-4)))
    assert not cost_lines(both, _measured())[0].is_met, "one end of the range is missed"


def test_what_other_devices_promise_and_what_cannot_be_measured_is_not_held_against_this_one() -> None:
    others = (
        _promise("time_per_token", _cost(1.0), _cost(1.0), device="phone"),
        _promise("throughput", _cost(1.0), _cost(1.0)),
    )
    plan = replace(
        _plan(), promises=(*others, *_plan().promises), budgets=(_line(1.0, device="phone"), *_plan().budgets)
    )
    assert measured_promises(plan) == list(_plan().promises)
    assert cost_lines(plan, _measured()) == cost_lines(_plan(), _measured())
    assert drift_words(plan, _measured(6e-4, 3.15e-4)) == drift_words(_plan(), _measured(6e-4, 3.15e-4))


def test_what_a_budget_is_worth_is_said_where_it_presses() -> None:
    binding, shares = _line(2.4e-4, price=1e3), _line(2.4e-4, is_least=True, price=1e3, is_binding=False)
    plan = replace(_plan(), budgets=(binding, shares, _line(1.0, price=0.0)))
    assert price_words(plan) == [
        "time_per_token@chat <= 60%: 10 µs more would be worth about 0.01 of the score.",
        "time_per_token@chat <= 60%: 10 µs less would be worth about 0.01 of the score, as far as shares of blocks go.",
    ]


def test_the_frontier_is_drawn_along_the_first_budget_from_above() -> None:
    tokens = _line(1e3, is_least=True, text="throughput@chat >= 1ktok/s", quantity="throughput")
    drawn = frontier_figure(replace(_plan(), budgets=(tokens, *_plan().budgets)))
    assert "time per token at chat" in drawn and "throughput" not in drawn
