"""What first weights need to know is found once, and read again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from blockwright.count import parameters
from blockwright.errors import InputError
from blockwright.spec import Block, GatedFFN, Model, NoOp
from blockwright.train.bld import Trainee
from blockwright.train.calibration import CALIBRATION, calibrate, calibration_bytes, read_seen
from blockwright.train.groups import Work
from blockwright.train.initialise import AS_PUBLISHED, InitSettings
from blockwright.train.observe import observe
from blockwright.train.windows import Batch

MakeParent = Callable[..., tuple[PreTrainedModel, Model]]

IDS_SBT = torch.randint(0, 64, (14, 4, 12), generator=torch.Generator().manual_seed(5))
BATCHES = [Batch(ids_BT=ids_BT) for ids_BT in IDS_SBT]
OWN_FFN = Block(mixer=NoOp(), ffn=GatedFFN(width=48))


def test_calibration_ranks_channels_by_the_parents_own_states(make_parent: MakeParent) -> None:
    model, parent = make_parent()
    channels: list[Tensor] = []
    layer = model.model.layers[1]
    hook = layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: channels.append(inputs[0]))
    with torch.no_grad():
        model(IDS_SBT.flatten(0, 1))
    hook.remove()
    naive = channels[0].abs().mean((0, 1)) * layer.mlp.down_proj.weight.square().sum(0).sqrt()
    [_, found, _] = observe(model, parent, BATCHES, InitSettings(channels="contribution"), {})
    torch.testing.assert_close(found.ranking_W.float(), naive)


def test_calibration_is_done_once_for_all_widths_that_it_knows(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    init = InitSettings(channels="fitted")
    narrow, wide = (
        Trainee(layer=1, block=replace(parent.layers[1], ffn=GatedFFN(width=width)), parts=("ffn",))
        for width in (8, 16)
    )
    own = Trainee(layer=1, block=OWN_FFN, parts=("mixer", "ffn"))
    path = tmp_path / CALIBRATION
    for trainees, widths, is_new in (([narrow], {8}, True), ([narrow, own], {8}, False), ([wide], {8, 16}, True)):
        before = path.stat().st_mtime_ns if path.exists() else None
        calibrate(model, parent, init, BATCHES, trainees, tmp_path)
        assert (path.stat().st_mtime_ns != before) == is_new
        assert (read_seen(tmp_path, 1).down_DK or {}).keys() == widths
    assert read_seen(tmp_path, 0).down_DK is None


@pytest.mark.parametrize("init", [InitSettings(), AS_PUBLISHED])
def test_the_count_covers_what_calibration_keeps_and_not_much_more(
    init: InitSettings, make_parent: MakeParent, tmp_path: Path
) -> None:
    model, parent = make_parent(intermediate_size=512)
    narrow = Trainee(layer=1, block=replace(parent.layers[1], ffn=GatedFFN(width=256)), parts=("ffn",))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        calibrate(model, parent, init, BATCHES, [narrow], tmp_path)
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    now, peak = 0, 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            peak = max(peak, now)
    work = Work(num_steps=len(BATCHES), batch_windows=4, window_tokens=12)
    counted = calibration_bytes(parent, [narrow], init, work) - 4 * parameters(parent)
    assert peak <= counted <= 2.5 * peak


def test_a_broken_calibration_is_refused(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    path = tmp_path / CALIBRATION
    calibrate(model, parent, InitSettings(), BATCHES, [], tmp_path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="Delete the file, and it is made anew"):
        read_seen(tmp_path, 0)
    with pytest.raises(InputError, match="Delete the file, and it is made anew"):
        calibrate(model, parent, InitSettings(), BATCHES, [], tmp_path)
