"""Ranks that load shares hold the same models as one process, and none holds a whole one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from blockwright.errors import InputError
from blockwright.model.child import build_child, empty_child, load_child, load_weights, save_child
from blockwright.model.parent import load_model, load_tokenizer, open_parent, spec_of
from blockwright.spec import Attention, Block, GatedFFN, LinearMixer, Model, NoOp
from blockwright.train.loading import empty_parent, read_weights
from blockwright.train.ranks import Ranks
from forked import fork_ranks

SCRIPT = Path(__file__).with_name("loaded_by_ranks.py")
IDS_BT = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(5))
WAYS = ("tied", "untied")


def write_pair(folder: Path, small_parent: Path, *, is_tied: bool) -> Model:
    """A parent in several files and a child, whose rows do not divide by two; returns the child's spec."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=301,
        hidden_size=33 * 4,
        intermediate_size=151,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=is_tied,
        max_position_embeddings=64,
        head_dim=16,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    parent = LlamaForCausalLM(config)
    parent.save_pretrained(folder / "parent", max_shard_size="300KB")
    assert len(list((folder / "parent").glob("*.safetensors"))) > 1
    blocks = (
        Block(mixer=NoOp(), ffn=NoOp()),
        Block(mixer=Attention(num_kv_heads=1), ffn=GatedFFN(width=17)),
        Block(mixer=LinearMixer(), ffn=GatedFFN(width=151)),
    )
    spec = replace(spec_of(config), layers=blocks)
    child = build_child(spec, config)
    names = [name for name in child.state_dict() if not (is_tied and name == "lm_head.weight")]
    load_weights(child, {name: torch.randn(child.state_dict()[name].shape) * 0.1 for name in names})
    (folder / "child").mkdir()
    save_child(child, spec, load_tokenizer(open_parent(str(small_parent))), folder / "child", {})
    return spec


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, small_parent: Path) -> dict[str, tuple[Path, Model]]:
    """A pair with one matrix for embedding and head, and one with two."""
    folders = {way: tmp_path_factory.mktemp(way) for way in WAYS}
    return {way: (at, write_pair(at, small_parent, is_tied=way == "tied")) for way, at in folders.items()}


@pytest.fixture(scope="module")
def found(pairs: dict[str, tuple[Path, Model]]) -> None:
    """Two ranks have loaded both pairs, and left in their folders what they came to."""
    fork_ranks(2, SCRIPT, *[folder for folder, _ in pairs.values()])


def bytes_of(model: PreTrainedModel) -> int:
    """Of its weights, each once."""
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rank", [0, 1])
def test_two_ranks_load_the_whole_models_weights(
    way: str, rank: int, pairs: dict[str, tuple[Path, Model]], found: None
) -> None:
    folder, spec = pairs[way]
    seen = load_file(folder / f"rank-{rank}.safetensors")
    models = {"child": load_child(folder / "child", spec), "parent": load_model(open_parent(str(folder / "parent")))}
    for name, model in models.items():
        for key, weight in model.named_parameters():
            assert torch.equal(seen[f"{name}.{key}"], weight), key
        with torch.no_grad():
            torch.testing.assert_close(seen[f"{name} says"], model(IDS_BT, use_cache=False).logits)
    for key, weight in models["parent"].named_parameters():
        assert torch.equal(seen[f"half.{key}"], weight.bfloat16())


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_no_rank_ever_holds_a_whole_model(way: str, pairs: dict[str, tuple[Path, Model]], found: None) -> None:
    folder, spec = pairs[way]
    child, parent = load_child(folder / "child", spec), load_model(open_parent(str(folder / "parent")))
    shares = (bytes_of(child) + bytes_of(parent)) / 2
    largest = max(weight.nbytes for weight in parent.parameters()) / 2  # a rank's part of it
    for rank in (0, 1):
        peak = int(load_file(folder / f"rank-{rank}.safetensors")["peak"])
        assert 0.95 * shares < peak < 1.05 * shares + 2 * largest


@pytest.mark.slow
def test_no_rank_holds_more_than_a_tensor_of_the_state_that_is_written(
    pairs: dict[str, tuple[Path, Model]], found: None
) -> None:
    folder, spec = pairs["untied"]
    child = load_child(folder / "child", spec)
    state = 3 * bytes_of(child)
    first, second = (int(load_file(folder / f"rank-{rank}.safetensors")["peak of saving"]) for rank in (0, 1))
    for peak in (first, second):
        # Its shares are there, and copies that gathering makes: of how many tensors is for gloo's threads to say.
        assert peak - state / 6 < state / 2


def test_one_process_reads_what_the_whole_loader_reads(pairs: dict[str, tuple[Path, Model]]) -> None:
    folder, spec = pairs["untied"]
    model = empty_child(folder / "child", spec).to_empty(device="cpu")
    read_weights(model, folder / "child")
    expected = load_child(folder / "child", spec).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("fault", ["missing", "surplus", "of another shape", "cut short"])
def test_a_checkpoint_of_other_weights_is_refused(
    fault: str, pairs: dict[str, tuple[Path, Model]], tmp_path: Path
) -> None:
    folder, _ = pairs["untied"]
    weights = {k: v for file in (folder / "parent").glob("*.safetensors") for k, v in load_file(file).items()}
    name = "model.layers.1.mlp.up_proj.weight"
    weights |= {"surplus": {"more": torch.zeros(1)}, "of another shape": {name: weights[name][1:]}}.get(fault, {})
    if fault == "missing":
        del weights[name]
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    if fault == "cut short":
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="weights"):
        read_weights(empty_parent(folder / "parent").to_empty(device="cpu"), tmp_path)


def test_ranks_agree_on_the_most() -> None:
    assert Ranks.alone().most(7) == 7
