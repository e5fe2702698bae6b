"""The list of things to measure, and the rows that come of it."""

import re
from dataclasses import replace

import pytest

from blockwright.compile.engine import SessionSettings
from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Backend, MemoryRow, TimeRow, WholeRow
from blockwright.llama import llama
from blockwright.profiler.ceilings import measure_ceilings
from blockwright.profiler.clock import Effort
from blockwright.profiler.measure import Request, cases, layer_names, measure, mix
from blockwright.profiler.reference import make_reference
from blockwright.spec import FP32, Attention, Block, Format, GatedFFN, LinearFFN, LinearMixer, NoOp

INT4 = Format(name="int4", group_size=32)
MIXERS = (Attention(num_kv_heads=2), LinearMixer(), NoOp())
FFNS = (GatedFFN(width=64), GatedFFN(width=32), LinearFFN(), NoOp())
MODEL = llama(
    (Block(mixer=MIXERS[0], ffn=FFNS[0]),) * 2,
    vocab_size=96,
    hidden_size=64,
    num_heads=4,
    head_dim=16,
    max_positions=256,
)


def _request(*backends: Backend) -> Request:
    return Request(
        parent=MODEL,
        mixers=MIXERS,
        ffns=FFNS,
        formats=(FP32, INT4),
        loads=(Load(batch=1, prompt_tokens=40, new_tokens=24), Load(batch=2, prompt_tokens=40, new_tokens=24)),
        session=SessionSettings(num_threads=1),
        effort=Effort(seconds=0.0, min_turns=1),
        backends=backends,
    )


def test_the_runtime_gives_rows_for_every_part_format_and_load() -> None:
    rows = [row for case in cases(_request("onnxruntime")) for row in measure(case)]
    times = {(row.format, row.part, row.variant, row.point) for row in rows if isinstance(row, TimeRow)}
    assert len(times) == 2 * 5 * 4  # formats, parts that are something, points
    wholes = [row for row in rows if isinstance(row, WholeRow)]
    assert len(wholes) == 2 * 4 * 9
    assert {row.is_anchor for row in wholes} == {True, False}
    assert all(row.time_s > 0 for row in wholes)
    memory = [row for row in rows if isinstance(row, MemoryRow)]
    assert {(row.format, row.batch) for row in memory} == {("fp32", 1), ("fp32", 2), ("int4-g32", 1), ("int4-g32", 2)}
    assert all(row.peak_bytes > 0 for row in memory)
    assert {row.backend for row in rows} == {"onnxruntime"}


def test_heads_that_our_attention_does_not_know_are_measured_where_all_slots_are_read() -> None:
    theirs = _request("onnxruntime")
    ours = replace(theirs, operators="blockwright 1")
    assert ours.points("onnxruntime") != theirs.points("onnxruntime") == ours.points("torch")
    odd = replace(ours, parent=replace(MODEL, head_dim=20))
    assert odd.points("onnxruntime") == theirs.points("onnxruntime")


def test_steps_have_names_of_their_own_that_stay_the_same() -> None:
    names = [case.name for case in cases(_request("onnxruntime", "torch"))]
    assert len(set(names)) == len(names)
    assert names == [case.name for case in cases(_request("onnxruntime", "torch"))]
    assert not any(re.match(r"torch (int4|.*memory)", name) for name in names)


def test_a_random_mix_is_the_parent_where_every_part_is_its_own() -> None:
    assert mix(MODEL, MIXERS, FFNS, own_share=1.0, seed=3) == MODEL


def test_a_random_mix_is_another_child_for_every_seed() -> None:
    parent = replace(MODEL, layers=MODEL.layers * 8)
    mixes = [mix(parent, MIXERS, FFNS, own_share=0.0, seed=seed) for seed in range(5)]
    assert len(set(mixes)) == 5
    assert {name for model in mixes for name, _ in layer_names(model)} == {"attention-kv2", "linear", "none"}
    assert mixes[0] == mix(parent, MIXERS, FFNS, own_share=0.0, seed=0)


def test_a_mix_with_a_share_of_nothing_is_thin() -> None:
    parent = replace(MODEL, layers=MODEL.layers * 50)
    parts = [name for names in layer_names(mix(parent, MIXERS, FFNS, 0.0, 1, none_share=0.8)) for name in names]
    assert 0.75 < parts.count("none") / len(parts) < 0.95  # 0.8, and of the rest a third or a fourth by chance
    without = mix(parent, MIXERS[:2], FFNS[:3], 0.0, 1, none_share=0.8)
    assert not any(name == "none" for names in layer_names(without) for name in names)


def test_ceilings_are_those_of_a_machine_of_this_century() -> None:
    reference = make_reference()
    effort = Effort(seconds=0.0, min_turns=1, num_warm_up=1)
    ceilings = measure_ceilings(SessionSettings(num_threads=1), effort, reference)
    assert ceilings.reference_s == reference.least_s
    assert 5e8 < ceilings.read_bytes_per_s.value < 1e13
    assert ceilings.flop_per_s.keys() == {"fp32", "int8-g32", "int4-g32"}
    assert all(5e8 < rate.value < 1e14 for rate in ceilings.flop_per_s.values())
    assert ceilings.cache_read_bytes_per_s and 5e8 < ceilings.cache_read_bytes_per_s.value < 1e14
    assert 1e-8 < ceilings.launch_s.value < 1e-3


def test_a_parent_beyond_one_graph_is_refused_before_anything_is_measured() -> None:
    huge = replace(MODEL, vocab_size=1 << 20, hidden_size=1 << 10)
    with pytest.raises(InputError, match=r"4\.\d+ GB of weights"):
        next(iter(cases(replace(_request("onnxruntime"), parent=huge))))
