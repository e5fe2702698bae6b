"""A plan made real has the parent's weights, and the chosen candidates' in their places."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from blockwright.errors import InputError
from blockwright.library import Library
from blockwright.spec import Attention, Block, Candidate, GatedFFN, LinearFFN, LinearMixer, Model, NoOp, with_candidate
from blockwright.train.bld import BldSettings, Trainee, needs_training, trainee_of
from blockwright.train.library import entries_of
from blockwright.train.one_group import LibraryJob, train_group
from blockwright.train.realise import realise
from blockwright.train.windows import Batch

MakeParent = Callable[..., tuple[PreTrainedModel, Model]]
CHOSEN = [
    Candidate(layer=0, part="mixer", variant=NoOp()),
    Candidate(layer=0, part="ffn", variant=GatedFFN(width=16)),
    Candidate(layer=1, part="mixer", variant=Attention(num_kv_heads=1)),
    Candidate(layer=2, part="mixer", variant=LinearMixer()),
    Candidate(layer=2, part="ffn", variant=LinearFFN()),
]
IDS_NT = torch.randint(0, 64, (6, 8), generator=torch.Generator().manual_seed(5))


def _library(
    model: PreTrainedModel, parent: Model, folder: Path, pairs: Mapping[int, Block] = MappingProxyType({})
) -> Library:
    batches = [Batch(ids_BT=ids_BT) for ids_BT in IDS_NT.split(2)]
    trainees = [trainee_of(parent, candidate) for candidate in CHOSEN if needs_training(parent, candidate)]
    trainees += [Trainee(layer=layer, block=block, parts=("mixer", "ffn")) for layer, block in pairs.items()]
    job = LibraryJob(
        parent=parent,
        trainees=tuple(trainees),
        training=batches,
        reserved=batches,
        held_out=batches,
        settings=BldSettings(learning_rate=1e-3),
    )
    entries, blocks = entries_of(train_group(model, job, folder))
    return Library(
        parent=parent,
        parent_folder="",
        candidates=tuple(CHOSEN),
        entries=entries,
        blocks=blocks,
        trained_tokens=0,
        settings={},
    )


@pytest.mark.parametrize("is_tied", [False, True])
def test_every_weight_comes_from_where_the_plan_says(is_tied: bool, make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent("qwen2", tie_word_embeddings=is_tied)
    library = _library(model, parent, tmp_path)
    spec = parent
    for candidate in CHOSEN:
        spec = with_candidate(spec, candidate)
    child = realise(model, library, tmp_path, spec)
    own = model.state_dict()
    expected = {name: tensor for name, tensor in own.items() if ".layers." not in name}
    for entry in library.entries:
        stored = load_file(tmp_path / entry.file)
        expected |= {f"model.layers.{entry.candidate.layer}.{name}": tensor for name, tensor in stored.items()}
    kept = ("model.layers.1.mlp.", "model.layers.1.post_attention_layernorm.")
    expected |= {name: tensor for name, tensor in own.items() if name.startswith(kept)}
    made = child.state_dict()
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], tensor) for name, tensor in expected.items())
    assert (child.lm_head.weight is child.model.embed_tokens.weight) == is_tied


def test_the_parent_chosen_whole_is_the_parent_but_shares_no_memory(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    child = realise(model, _library(model, parent, tmp_path), tmp_path, parent)
    assert torch.equal(child(IDS_NT).logits, model(IDS_NT).logits)
    with torch.no_grad():
        for parameter in child.parameters():
            parameter.zero_()
    assert all(parameter.abs().sum() > 0 for parameter in model.parameters())


def test_a_candidate_that_was_never_trained_is_named(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    spec = with_candidate(parent, Candidate(layer=1, part="ffn", variant=GatedFFN(width=8)))
    with pytest.raises(InputError) as caught:
        realise(model, _library(model, parent, tmp_path), tmp_path, spec)
    assert caught.value.field == "layer 1, ffn"
    assert "layer-01-ffn-ffn-8" in str(caught.value.got)


def test_what_was_trained_together_goes_before_what_was_trained_alone(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    pair = Block(mixer=NoOp(), ffn=GatedFFN(width=16))
    library = _library(model, parent, tmp_path, {0: pair})
    [block] = library.blocks
    child = realise(model, library, tmp_path, replace(parent, layers=(pair, *parent.layers[1:])))
    found = child.model.layers[0].state_dict()
    for name, tensor in load_file(tmp_path / block.file).items():
        assert torch.equal(found[name], tensor)
    alone = load_file(tmp_path / next(e.file for e in library.entries if e.candidate.variant == pair.ffn))
    assert not torch.equal(alone["mlp.up_proj.weight"], found["mlp.up_proj.weight"])
    own = realise(model, library, tmp_path, with_candidate(parent, CHOSEN[1]))
    assert torch.equal(alone["mlp.up_proj.weight"], own.model.layers[0].state_dict()["mlp.up_proj.weight"])
