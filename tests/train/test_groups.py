"""What a library takes is counted before it starts, and groups fit the memory."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from blockwright.errors import InputError
from blockwright.model.walk import Walk
from blockwright.spec import Attention, Block, Candidate, GatedFFN, LinearFFN, LinearMixer, Model, NoOp
from blockwright.train.bld import (
    BldSettings,
    Known,
    Trainee,
    first_weights,
    look,
    run_trainee,
    squared_error,
    student_layer,
    trainee_of,
)
from blockwright.train.groups import (
    Means,
    Work,
    by_layer,
    group_bytes,
    kept_bytes,
    layers_flops,
    schedule,
    training_flops,
    working_bytes,
)
from blockwright.train.initialise import InitSettings, Seen
from blockwright.train.students import optimizers_of

MakeParent = Callable[..., tuple[PreTrainedModel, Model]]
SETTINGS = BldSettings(learning_rate=1e-3)
WORK = Work(num_steps=100, batch_windows=4, window_tokens=16)
PLAIN = InitSettings(channels="contribution", kv_heads="mean", linear="product")
PARTS = (Attention(num_kv_heads=1), LinearMixer(), GatedFFN(width=32), LinearFFN())


def _trainees(parent: Model) -> list[Trainee]:
    found = []
    for layer in range(len(parent.layers)):
        for variant in PARTS:
            part = "mixer" if isinstance(variant, Attention | LinearMixer) else "ffn"
            found.append(trainee_of(parent, Candidate(layer=layer, part=part, variant=variant)))
        pair = Block(mixer=LinearMixer(), ffn=GatedFFN(width=32))
        found.append(Trainee(layer=layer, block=pair, parts=("mixer", "ffn")))
        found.append(Trainee(layer=layer, block=replace(pair, mixer=NoOp()), parts=("mixer", "ffn")))
    return found


def _layer(model: PreTrainedModel, parent: Model, trainee: Trainee) -> torch.nn.Module:
    known = Known(seen=Seen(ranking_W=torch.ones(48)), init=PLAIN, starts={})
    return student_layer(model, parent, trainee, first_weights(model, parent, trainee, known))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_count_covers_what_training_keeps_and_not_much_more(family: str, make_parent: MakeParent) -> None:
    model, parent = make_parent(family)
    walk, x_BTD = Walk(model), torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(0))
    seen = look(walk, 1, x_BTD, torch.ones(4, 16))
    for trainee in _trainees(parent)[6:12]:
        layer = _layer(model, parent, trainee)
        parameters = [p for p in layer.parameters() if p.requires_grad]
        known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *layer.parameters())}
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor, known: set[int] = known, saved: dict[int, int] = saved) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            error_BT = squared_error(run_trainee(walk, trainee, layer, seen), seen)
        kept = sum(saved.values())
        error_BT.mean().backward()
        own = 4 * sum(p.numel() for p in parameters)
        counted = working_bytes(parent, trainee, WORK, SETTINGS)
        assert kept + own <= counted <= 2.5 * (kept + own), trainee.name
        for name in ("adamw", "muon"):
            settings = replace(SETTINGS, optimizer=name)
            optimizers = optimizers_of(settings, parameters)
            for optimizer in optimizers:
                optimizer.step()
            states = [t for o in optimizers for state in o.state.values() for t in state.values() if t.ndim]
            assert kept_bytes(parent, trainee, settings) == own + sum(4 * t.numel() for t in states)


def test_flops_are_those_that_torch_counts(make_parent: MakeParent) -> None:
    model, parent = make_parent()
    walk, x_BTD = Walk(model), torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        seen = look(walk, 1, x_BTD, torch.ones(4, 16))
    assert counter.get_total_flops() == pytest.approx(64 * layers_flops(parent, 1, 2, 16), rel=0.05)
    for trainee in _trainees(parent)[6:12]:
        layer = _layer(model, parent, trainee)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            squared_error(run_trainee(walk, trainee, layer, seen), seen).mean().backward()
        assert counter.get_total_flops() == pytest.approx(64 * training_flops(parent, trainee, WORK), rel=0.1)


def test_groups_fit_the_memory_and_hold_everyone_once(make_parent: MakeParent) -> None:
    _, parent = make_parent()
    trainees = _trainees(parent)
    whole = schedule(parent, trainees, WORK, SETTINGS, Means(memory_bytes=1e9))
    assert len(whole.groups) == 1 and not whole.keeps_states
    least = max(group_bytes(parent, [trainee], WORK, SETTINGS) for trainee in trainees)
    counts = []
    for memory in (least, 1.2 * least, 1.6 * least):
        plan = schedule(parent, trainees, WORK, SETTINGS, Means(memory_bytes=memory))
        assert plan.memory_bytes <= memory
        assert [t for group in plan.groups for t in group.trainees] == trainees
        assert plan.student_flops == pytest.approx(whole.student_flops)
        assert plan.parent_flops >= whole.parent_flops
        counts.append(len(plan.groups))
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_groups_cut_at_layers_hold_everyone_once_and_begin_at_the_embeddings(make_parent: MakeParent) -> None:
    _, parent = make_parent()
    trainees = _trainees(parent)
    whole = schedule(parent, trainees, WORK, SETTINGS, Means(memory_bytes=1e9))
    cut = by_layer(parent, whole, WORK, SETTINGS)
    assert [{trainee.layer for trainee in group.trainees} for group in cut.groups] == [{0}, {1}, {2}]
    assert [t for group in cut.groups for t in group.trainees] == trainees
    assert cut.parent_flops == pytest.approx((1 + 2 + 3) / 3 * whole.parent_flops)
    assert cut.student_flops == pytest.approx(whole.student_flops)
    assert cut.memory_bytes < whole.memory_bytes
    assert not cut.keeps_states


def test_states_are_kept_on_disk_where_that_is_faster_and_fits(make_parent: MakeParent) -> None:
    _, parent = make_parent()
    trainees = _trainees(parent)
    least = max(group_bytes(parent, [trainee], WORK, SETTINGS) for trainee in trainees)
    slow = Means(memory_bytes=least, disk_bytes=1e9, flops_per_s=1e3)
    assert schedule(parent, trainees, WORK, SETTINGS, slow).keeps_states
    anew = schedule(parent, trainees, WORK, SETTINGS, replace(slow, flops_per_s=1e18))
    assert not anew.keeps_states
    assert not schedule(parent, trainees, WORK, SETTINGS, replace(slow, disk_bytes=1e3)).keeps_states
    assert schedule(parent, trainees, WORK, SETTINGS, slow).parent_flops < anew.parent_flops


def test_what_cannot_fit_is_refused_with_what_would(make_parent: MakeParent) -> None:
    _, parent = make_parent()
    trainees = _trainees(parent)
    small = replace(WORK, batch_windows=1)
    least = max(group_bytes(parent, [trainee], small, SETTINGS) for trainee in trainees)
    with pytest.raises(InputError, match="--batch 1") as caught:
        schedule(parent, trainees, WORK, SETTINGS, Means(memory_bytes=1.1 * least))
    assert caught.value.field == "--memory"
    assert schedule(parent, trainees, small, SETTINGS, Means(memory_bytes=1.1 * least)).groups
    with pytest.raises(InputError, match=r"Give .*B\."):
        schedule(parent, trainees, WORK, SETTINGS, Means(memory_bytes=1e3))
