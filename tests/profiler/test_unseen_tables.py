import importlib
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from blockwright.profiler.boosted import Growth
from blockwright.profiler.utilisation import fit_times

DATA = Path(os.environ.get("BLOCKWRIGHT_DATA") or Path(__file__).parents[3] / "shared" / "data")
QUICK = Growth(num_trees=30)

pytestmark = pytest.mark.skipif(
    not (DATA / "hw" / "aiconfigurator").is_dir(),
    reason="no hw/aiconfigurator: neither in BLOCKWRIGHT_DATA nor in shared/data beside the checkout",
)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """The benchmark's readers and folds."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "costmodel"))
    return importlib.import_module("tables"), importlib.import_module("folds")


def _asked(table, fold) -> tuple[np.ndarray, float]:
    """Relative errors on what the fold asks for, and how many of the intervals hold the measured time."""
    rows = np.random.default_rng(0).permutation(fold.predict)[:1000]
    model = fit_times(table.seen(fold.learn).ceilings, table.timed(fold.learn), growth=QUICK)
    found, times = model.costs([table.operators[row] for row in rows]), table.seconds[rows]
    return found.values / times - 1, float(np.mean((found.lows <= times) & (times <= found.highs)))


def test_decoding_is_told_from_sixteen_points_a_head_configuration(modules: tuple[ModuleType, ModuleType]) -> None:
    tables, folds = modules
    table = tables.attention(DATA, "H200", "decode")
    errors, covered = _asked(table, folds.attention(table, 0, is_lattice=False))
    assert np.abs(errors).mean() < 0.05
    assert 0.86 < covered < 0.95


def test_row_counts_are_told_from_ten_a_shape(modules: tuple[ModuleType, ModuleType]) -> None:
    tables, folds = modules
    table = tables.products(DATA, "H200", "bfloat16")
    errors, covered = _asked(table, folds.rotated(table, 0))
    assert np.abs(errors).mean() < 0.045
    assert 0.86 < covered < 0.96


def test_folds_never_ask_for_what_is_measured(modules: tuple[ModuleType, ModuleType]) -> None:
    tables, folds = modules
    table = tables.products(DATA, "A100", "bfloat16")
    every = [folds.widths(table, 1), folds.rotated(table, 0), *folds.fifths_of_shapes(table)]
    for fold in every:
        assert not set(fold.learn) & set(fold.predict)
        assert len(fold.learn) + len(fold.predict) == len(table.seconds)
        for asked in fold.blocks.values():
            assert not set(asked[:, 1:].ravel()) & set(fold.learn)


def test_the_launch_is_of_the_learnt_rows_alone(modules: tuple[ModuleType, ModuleType]) -> None:
    tables, folds = modules
    table = tables.products(DATA, "A100", "bfloat16")
    fold = folds.widths(table, 1)
    faster = np.where(np.isin(np.arange(len(table.seconds)), fold.predict), 1e-9, table.seconds)
    for each in (table, replace(table, seconds=faster)):
        assert each.seen(fold.learn).ceilings.launch_s.value == 0.8 * min(table.seconds[row] for row in fold.learn)


def test_other_sites_leave_the_asked_shape_out(
    modules: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, _ = modules
    baselines = importlib.import_module("baselines")
    table = tables.products(DATA, "A100", "bfloat16")
    shape = (table.operators[0].inputs, table.operators[0].outputs)
    own = np.array([(each.inputs, each.outputs) == shape for each in table.operators])
    changed = tables.Table(
        device=table.device,
        name=table.name,
        ceilings=table.ceilings,
        operators=table.operators,
        seconds=np.where(own, 7.0, table.seconds),
        num_refused=0,
    )
    np.testing.assert_array_equal(baselines.other_sites(changed)[own], baselines.other_sites(table)[own])
