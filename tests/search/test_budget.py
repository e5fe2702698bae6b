"""Budgets as users write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwright.cost import UNIT_OF, Load, Quantity
from blockwright.errors import InputError
from blockwright.search.budget import Amount, Budget, parse_budget

CHAT = Load(batch=1, prompt_tokens=128, new_tokens=128)
ONE = {"chat": CHAT}
TWO = {"chat": CHAT, "long-context.1": Load(batch=4, prompt_tokens=4000, new_tokens=10)}
DEVICES = ("laptop", "amd-epyc_2c.1")
AMOUNTS = {"s": "3 ms", "bytes": "2 GiB", "J": "4mJ", "tokens/s": "2ktok/s", "parameters": "3B"}
VALUES = {"s": 3e-3, "bytes": 2.0**31, "J": 4e-3, "tokens/s": 2e3, "parameters": 3e9}
ALIASES = {"ttft": "time_to_first_token", "tpot": "time_per_token", "latency": "request_latency"}


def _amount(value: float) -> Amount:
    return Amount(value=pytest.approx(value), share=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "quantity", "load", "most"),
    [
        ("memory@chat <= 20GB", "memory", "chat", 20e9),
        ("memory@chat <= 20GiB", "memory", "chat", 20 * 2**30),
        ("memory@chat <= 1.5 GiB", "memory", "chat", 1.5 * 2**30),
        ("  time_per_token@chat<=80ms ", "time_per_token", "chat", 0.08),
        ("time_to_first_token@long-context.1 <= 2 s", "time_to_first_token", "long-context.1", 2.0),
        ("parameters@chat <= 3B", "parameters", "chat", 3e9),
        ("energy@chat <= 40 mJ", "energy", "chat", 0.04),
        ("disk@chat <= 4MB", "disk", "chat", 4e6),
    ],
)
def test_an_amount_with_its_unit_is_a_bound_in_the_base_unit(
    text: str, quantity: Quantity, load: str, most: float
) -> None:
    assert parse_budget(text, TWO) == Budget(
        text=text, quantity=quantity, device="", load=load, least=None, most=_amount(most)
    )


@pytest.mark.parametrize("name", [*UNIT_OF, *ALIASES])
def test_every_quantity_and_alias_can_be_bounded_from_either_side(name: str) -> None:
    quantity: Quantity = ALIASES.get(name, name)  # type: ignore[assignment]
    text, value = AMOUNTS[UNIT_OF[quantity]], VALUES[UNIT_OF[quantity]]
    most, least = parse_budget(f"{name} <= {text}", ONE), parse_budget(f"{name}>={text}", ONE)
    assert most.quantity == least.quantity == quantity
    assert (most.least, most.most) == (None, _amount(value))
    assert (least.least, least.most) == (_amount(value), None)


def test_a_range_bounds_from_both_sides() -> None:
    budget = parse_budget("40% <= memory@laptop:chat <= 3GB", TWO, DEVICES)
    assert (budget.device, budget.load) == ("laptop", "chat")
    assert budget.least == Amount(value=None, share=pytest.approx(0.4))  # type: ignore[arg-type]
    assert budget.most == _amount(3e9)


@given(
    quantity=st.sampled_from(sorted(UNIT_OF)),
    bounds=st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)).map(sorted),
    load=st.sampled_from(sorted(TWO)),
    device=st.sampled_from(DEVICES),
    space=st.sampled_from(["", " ", "  "]),
)
def test_what_is_written_is_what_is_read(
    quantity: Quantity, bounds: list[int], load: str, device: str, space: str
) -> None:
    unit = {"s": "s", "bytes": "B", "J": "J", "tokens/s": "tok/s", "parameters": "K"}[UNIT_OF[quantity]]
    least, most = (f"{bound}{space}{unit}" for bound in bounds)
    budget = parse_budget(f"{least}{space}<={space}{quantity}@{device}:{load}{space}<={space}{most}", TWO, DEVICES)
    factor = 1e3 if unit == "K" else 1.0
    assert (budget.quantity, budget.device, budget.load) == (quantity, device, load)
    assert (budget.least, budget.most) == (_amount(bounds[0] * factor), _amount(bounds[1] * factor))


@given(st.integers(1, 500), st.floats(1e-6, 1e12))
def test_a_percentage_is_a_share_of_what_the_parent_costs(percent: int, parent: float) -> None:
    most = parse_budget(f"time_per_token@chat <= {percent} %", TWO).most
    assert most is not None and most.value is None
    assert most.of(parent) == pytest.approx(parent * percent / 100)


def test_an_amount_is_the_same_whatever_the_parent_costs() -> None:
    assert Amount(value=3.0, share=None).of(100.0) == 3.0


@pytest.mark.parametrize(("value", "share"), [(None, None), (1.0, 0.5)])
def test_an_amount_is_a_value_or_a_share(value: float | None, share: float | None) -> None:
    with pytest.raises(ValueError, match="either a value or a share"):
        Amount(value=value, share=share)


def test_a_budget_bounds_something() -> None:
    with pytest.raises(ValueError, match="a least or a most"):
        Budget(text="", quantity="memory", device="", load="chat", least=None, most=None)


@pytest.mark.parametrize(
    ("target", "loads", "devices", "device", "load"),
    [
        ("memory", ONE, ("",), "", "chat"),
        ("memory", ONE, ("laptop",), "laptop", "chat"),
        ("memory@chat", TWO, ("laptop",), "laptop", "chat"),
        ("memory@laptop", ONE, DEVICES, "laptop", "chat"),
        ("memory@laptop:long-context.1", TWO, DEVICES, "laptop", "long-context.1"),
        ("memory@amd-epyc_2c.1:chat", TWO, DEVICES, "amd-epyc_2c.1", "chat"),
        ("memory@chat", TWO, ("chat",), "chat", "chat"),  # a load's name comes first
        ("parameters", TWO, ("laptop",), "laptop", "chat"),
        ("disk", TWO, ("",), "", "chat"),
        ("disk", TWO, DEVICES, "laptop", "chat"),
        ("disk@amd-epyc_2c.1", TWO, DEVICES, "amd-epyc_2c.1", "chat"),
    ],
)
def test_what_need_not_be_named_is_left_out(
    target: str, loads: dict[str, Load], devices: tuple[str, ...], device: str, load: str
) -> None:
    budget = parse_budget(f"{target} <= 50%", loads, devices)
    assert (budget.device, budget.load) == (device, load)


@pytest.mark.parametrize(
    ("text", "loads", "devices", "expected"),
    [
        ("memory <= 20GB", TWO, ("",), "one of the loads chat, long-context.1"),
        ("memory@batch <= 20GB", TWO, ("",), "one of the loads chat, long-context.1"),
        ("memory@sever <= 20GB", ONE, DEVICES, "one of the loads chat or of the devices laptop, amd-epyc_2c.1"),
        ("memory@laptop <= 20GB", TWO, DEVICES, "one of the loads chat, long-context.1"),
        ("memory@chat <= 20GB", TWO, DEVICES, "one of the devices laptop, amd-epyc_2c.1"),
        ("memory@phone:chat <= 20GB", TWO, DEVICES, "one of the devices laptop, amd-epyc_2c.1"),
        ("memory@laptop:batch <= 20GB", TWO, DEVICES, "one of the loads chat, long-context.1"),
        ("memory@phone:chat <= 20GB", TWO, ("",), "one device, which has no name"),
        ("parameters@phone:chat <= 1B", TWO, DEVICES, "one of the devices laptop, amd-epyc_2c.1"),
    ],
)
def test_an_unknown_load_or_device_is_refused_with_those_there_are(
    text: str, loads: dict[str, Load], devices: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        parse_budget(text, loads, devices)
    assert (caught.value.field, caught.value.expected) == ("budget", expected)
    assert text in str(caught.value.got)
    assert "quantity@DEVICE:LOAD" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "in this form"),
        ("memory", "in this form"),
        ("memory@ <= 20GB", "in this form"),
        ("memory@:chat <= 20GB", "in this form"),
        ("memory@laptop: <= 20GB", "in this form"),
        ("memory@a:b:chat <= 20GB", "in this form"),
        ("the memory <= 20GB", "in this form"),
        ("1GB <= memory <= 2GB <= 3GB", "in this form"),
        ("memory < 20GB", "<= or >="),
        ("memory > 20GB", "<= or >="),
        ("memory = 20GB", "<= or >="),
        ("memory == 20GB", "<= or >="),
        ("memory =< 20GB", "<= or >="),
        ("memory <== 20GB", "<= or >="),
        ("memory <<= 20GB", "<= or >="),
        ("memory ≤ 20GB", "<= or >="),
        ("2GB < memory <= 3GB", "<= or >="),
        ("3GB >= memory >= 2GB", "from its least to its most"),
        ("2GB <= memory >= 3GB", "from its least to its most"),
    ],
)
def test_another_form_is_refused(text: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_budget(text, ONE)
    assert (caught.value.field, caught.value.got) == ("budget", repr(text))
    assert caught.value.expected.startswith("quantity[@[device:]load] <= amount")
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("text", ["tokens <= 20GB", "Memory <= 20GB", "20GB <= memory", "TTFT <= 1s"])
def test_an_unknown_quantity_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_budget(text, ONE)
    assert caught.value.field == "budget" and text in str(caught.value.got)
    assert caught.value.expected == "one of " + ", ".join([*UNIT_OF, *ALIASES])
    assert "before its bound" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "field", "got", "remedy"),
    [
        ("memory <= ", "memory", "", "Write a number and its unit, such as 20GB"),
        ("memory@chat <= 20", "memory", "20", "20GB and 20GiB differ"),
        ("20 <= memory <= 3GB", "memory", "20", "20GB and 20GiB differ"),
        ("memory@chat <= 20ms", "memory", "20ms", "ms is a unit of a time, and a size is wanted"),
        ("tpot@chat <= 20GB", "tpot", "20GB", "GB is a unit of a size, and a time is wanted"),
        ("throughput >= 20ms", "throughput", "20ms", "ms is a unit of a time, and a rate of tokens is wanted"),
        ("energy <= 20W", "energy", "20W", "W is no unit that is known here"),
        ("time_per_token@chat <= fast", "time_per_token", "fast", "Write a number and its unit, such as 20s"),
        ("time_per_token@chat <= -3ms", "time_per_token", "-3ms", "Write an amount above 0"),
        ("time_per_token@chat <= -3%", "time_per_token", "-3%", "Write an amount above 0"),
        ("parameters <= 7", "parameters", "7", "Write the unit too, such as 20K"),
        ("parameters@chat <= 1.2e6", "parameters", "1.2e6", "Write the unit too, such as 20K"),
        ("tpot@chat <= 1fs", "tpot", "1fs", "fs is no unit that is known here"),
        ("tpot@chat <= nan%", "tpot", "nan%", "Write a number and its unit"),
        ("memory@chat <= 12MB <= 5", "memory", "5", "Write the unit too"),
        ("memory <= 0GB", "memory", "0GB", "how much there may be"),
        ("memory >= 0 %", "memory", "0 %", "how much there may be"),
        ("0.0s <= latency <= 1s", "latency", "0.0s", "how much there may be"),
        ("memory <= 1e999GB", "memory", "1e999GB", "how much there may be"),
    ],
)
def test_an_amount_that_cannot_be_is_refused(text: str, field: str, got: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_budget(text, ONE)
    assert (caught.value.field, caught.value.got) == (f"budget {field}", repr(got))
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("text", ["3GB <= memory <= 2GB", "1GiB <= memory <= 1GB", "80% <= memory <= 60%"])
def test_a_range_that_holds_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no more than the most") as caught:
        parse_budget(text, ONE)
    assert (caught.value.field, caught.value.got) == ("budget", repr(text))
    assert caught.value.remedy == "Swap the two."


@pytest.mark.parametrize("text", ["2GB <= memory <= 2GB", "3GB <= memory <= 10%", "60% <= memory <= 60%"])
def test_a_range_that_may_hold_something_is_kept(text: str) -> None:
    budget = parse_budget(text, ONE)
    assert budget.least is not None and budget.most is not None


def test_a_range_with_its_quantity_in_front_is_told_the_order() -> None:
    with pytest.raises(InputError, match=r"memory before two bounds .* least <= quantity <= most"):
        parse_budget("memory@chat <= 12MB <= 5MB", {"chat": Load(batch=1, prompt_tokens=1, new_tokens=1)})
