"""Distillation from the parent's answers as they were kept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blockwright.errors import InputError
from blockwright.train.distill import GkdStep, distill
from blockwright.train.losses import kl_and_cosine
from blockwright.train.teacher_cache import CacheOrder, TeacherCache
from gkd import BATCHES, HELD_OUT, SEGMENTED, SETTINGS, Pair


def _cache(folder: Path, k: int, **origin: str) -> TeacherCache:
    return TeacherCache(folder, CacheOrder(k=k, temperature=1.0, origin=origin), [*BATCHES, *BATCHES[:2]])


def test_kept_answers_of_all_tokens_train_as_the_live_parent_does(pair: Pair, tmp_path: Path) -> None:
    live, parent = pair()
    settings = replace(SETTINGS, losses=kl_and_cosine(0))
    history = distill(live, parent, BATCHES, settings, tmp_path / "live")
    for k, bound in ((64, 2e-3), (8, 0.5)):
        cache = _cache(tmp_path / str(k), k)
        cache.open()
        cache.fill(parent, 3, lambda done: None)
        assert cache.num_done == cache.num_windows == 32
        child, _ = pair()
        cached = distill(child, parent, BATCHES, settings, tmp_path / f"{k}.state", top_of=cache.top_of)
        for mine, theirs in zip(cached, history, strict=True):
            assert 0 <= mine.kl <= theirs.kl * (1 + 2e-3)
            assert mine.kl == pytest.approx(theirs.kl, rel=bound)


def test_a_killed_filling_goes_on_where_it_was(pair: Pair, tmp_path: Path) -> None:
    _, parent = pair()
    whole, killed = _cache(tmp_path / "whole", 5), _cache(tmp_path / "killed", 5)
    whole.open()
    whole.fill(parent, 4, lambda done: None)

    def kill(done: int) -> None:
        if done == 12:
            raise KeyboardInterrupt

    killed.open()
    with pytest.raises(KeyboardInterrupt):
        killed.fill(parent, 4, kill)
    seen: list[int] = []
    resumed = _cache(tmp_path / "killed", 5)
    resumed.open()
    resumed.fill(parent, 4, seen.append)
    assert seen == [16, 20, 24, 28, 32]
    for name in ("ids.bin", "log_p.bin", "log_tail.bin"):
        assert (whole.folder / name).read_bytes() == (killed.folder / name).read_bytes()


def test_answers_of_another_parent_or_cut_short_are_refused(tmp_path: Path) -> None:
    _cache(tmp_path, 5, teacher="a").open()
    with pytest.raises(InputError, match="differ in teacher"):
        _cache(tmp_path, 5, teacher="b").open()
    with pytest.raises(InputError, match="differ in k"):
        _cache(tmp_path, 6, teacher="a").open()
    (tmp_path / "ids.bin").write_bytes(b"")
    with pytest.raises(InputError, match="cut short"):
        _cache(tmp_path, 5, teacher="a").open()


def test_a_killed_training_from_kept_answers_goes_on_without_the_parent(pair: Pair, tmp_path: Path) -> None:
    settings = replace(SETTINGS, losses=kl_and_cosine(0), eval_steps=2)
    whole, parent = pair()
    cache = TeacherCache(tmp_path / "answers", CacheOrder(k=9, temperature=1.0, origin={}), [*BATCHES, *HELD_OUT])
    cache.open()
    cache.fill(parent, 4, lambda done: None)
    assert cache.is_full and cache.has(BATCHES[0]) and not cache.has(SEGMENTED)
    del parent
    history = distill(whole, None, BATCHES, settings, tmp_path / "whole", held_out=HELD_OUT, top_of=cache.top_of)

    def kill(step: GkdStep) -> None:
        if step.step == 4:
            raise KeyboardInterrupt

    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        distill(pair()[0], None, BATCHES, settings, state, on_step=kill, held_out=HELD_OUT, top_of=cache.top_of)
    resumed, _ = pair()
    assert distill(resumed, None, BATCHES, settings, state, held_out=HELD_OUT, top_of=cache.top_of) == history
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
