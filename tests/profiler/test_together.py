"""Which cases are timed in turn: parts of one bench and point, as many as memory holds."""

from dataclasses import replace

import pytest

from blockwright.compile.engine import SessionSettings
from blockwright.hw_profiles.profile import Point
from blockwright.profiler import together
from blockwright.profiler.bench import Bench
from blockwright.profiler.clock import Effort
from blockwright.profiler.measure import PartCase, WholesCase
from blockwright.profiler.together import measured_together
from blockwright.spec import FP32, GatedFFN, LinearFFN, Model

POINT = Point(batch=1, new_tokens=1, slots=64)


@pytest.fixture
def part(made_up_parent: Model) -> PartCase:
    session = SessionSettings(num_threads=1)
    bench = Bench(backend="onnxruntime", weights=FP32, model=made_up_parent, session=session, effort=Effort())
    return PartCase(bench=bench, variant=GatedFFN(width=128), point=POINT)


def test_parts_of_one_bench_and_point_are_joined_and_the_order_is_kept(part: PartCase) -> None:
    other = replace(part, variant=LinearFFN())
    later = replace(part, point=replace(POINT, new_tokens=16))
    whole = WholesCase(bench=part.bench, models=(part.bench.model,), point=POINT)
    wanted = [part, other, whole, part, later, other]
    groups = list(measured_together(wanted))
    assert [len(group) for group in groups] == [2, 1, 1, 1, 1]
    assert [case for group in groups for case in group] == wanted


def test_a_group_holds_no_more_than_it_may(part: PartCase, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [replace(part, variant=GatedFFN(width=16 * index)) for index in range(1, 41)]
    assert [len(group) for group in measured_together(wanted)] == [16, 16, 8]
    hidden = part.bench.model.hidden_size
    of_one = 4 * 3 * together.COPIES * (3 * hidden * 128 + hidden)  # fp32; three matrices and a norm, in n + 2n copies
    monkeypatch.setattr(together, "_MOST_TOGETHER_BYTES", 2 * of_one)
    assert [len(group) for group in measured_together([part, part, part])] == [2, 1]
