"""A child computes what its spec says, alone and after a journey through a file."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from blockwright.errors import InputError
from blockwright.model.child import (
    STOCK_ARCHITECTURE,
    build_child,
    layer_with,
    load_child,
    load_weights,
    part_weights,
    save_child,
    spec_of_child,
)
from blockwright.model.parent import spec_of
from blockwright.model.walk import Walk
from blockwright.spec import Attention, Block, Candidate, Full, GatedFFN, LinearFFN, LinearMixer, Model, NoOp, Window

Config = Callable[..., PreTrainedConfig]
Build = Callable[[PreTrainedConfig], PreTrainedModel]

SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
PARENTS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "llama": ("llama", {}),
    "llama with biases, tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with a window": ("mistral", {"sliding_window": 4}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 with windows in the upper half": ("qwen2", SLIDING),
    "qwen3": ("qwen3", {}),
    "qwen3 with biases and windows": ("qwen3", SLIDING | {"attention_bias": True}),
}
every_parent = pytest.mark.parametrize("kind", PARENTS)
IDS_BT = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(1))  # 0 is what pads


def _random_child(spec: Model, config: PreTrainedConfig) -> PreTrainedModel:
    model = build_child(spec, config)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.3 + (tensor.ndim == 1)
        for name, tensor in model.state_dict().items()
        if not (name == "lm_head.weight" and spec.has_tied_embeddings)
    }
    return load_weights(model, weights)


def _with_blocks(spec: Model, *blocks: Block) -> Model:
    """The spec with other blocks; attention keeps the reach that the parent has in that layer."""
    kept = []
    for own, block in zip(spec.layers, blocks, strict=True):
        assert isinstance(own.mixer, Attention)
        is_attention = isinstance(block.mixer, Attention)
        kept.append(replace(block, mixer=replace(block.mixer, reach=own.mixer.reach)) if is_attention else block)
    return replace(spec, layers=tuple(kept))


def _heterogeneous(spec: Model) -> Model:
    return _with_blocks(
        spec,
        Block(mixer=NoOp(), ffn=GatedFFN(width=20)),
        Block(mixer=Attention(num_kv_heads=1), ffn=NoOp()),
        Block(mixer=LinearMixer(), ffn=LinearFFN()),
        Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=48)),
    )


def _with_windows(spec: Model) -> Model:
    """The heterogeneous spec, whose attention sees three and two tokens in layers where the parent's sees more."""
    layers = list(_heterogeneous(spec).layers)
    for index, num_tokens in ((1, 3), (3, 2)):
        mixer = layers[index].mixer
        assert isinstance(mixer, Attention)
        layers[index] = replace(layers[index], mixer=replace(mixer, reach=Window(num_tokens=num_tokens)))
    return replace(spec, layers=tuple(layers))


def _generate(model: PreTrainedModel, ids_BT: Tensor, use_cache: bool) -> Tensor:
    return model.generate(  # pyright: ignore[reportCallIssue]
        ids_BT, max_new_tokens=8, do_sample=False, use_cache=use_cache, pad_token_id=0
    )


@torch.no_grad()
@every_parent
def test_a_child_equal_to_its_parent_gives_its_logits_bit_for_bit(
    kind: str, tiny_config: Config, random_model: Build
) -> None:
    family, changes = PARENTS[kind]
    parent = random_model(tiny_config(family, **changes))
    child = load_weights(build_child(spec_of(parent.config), parent.config), parent.state_dict())
    assert torch.equal(child(IDS_BT).logits, parent(IDS_BT).logits)


@torch.no_grad()
@every_parent
def test_walking_through_the_layers_is_the_model_itself(kind: str, tiny_config: Config) -> None:
    family, changes = PARENTS[kind]
    config = tiny_config(family, **changes)
    for spec in (spec_of(config), _heterogeneous(spec_of(config)), _with_windows(spec_of(config))):
        child = _random_child(spec, config)
        walk = Walk(child)
        x_BTD = y_BTD = walk.embed(IDS_BT)
        for layer in range(4):
            x_BTD = walk.layer(layer, x_BTD)
            y_BTD = walk.feed(layer, walk.mix(layer, y_BTD))
        assert torch.equal(walk.logits(x_BTD), child(IDS_BT).logits)
        assert torch.equal(y_BTD, x_BTD)


@torch.no_grad()
@every_parent
@pytest.mark.parametrize("make", [_heterogeneous, _with_windows])
def test_documents_packed_into_a_window_are_to_a_child_as_each_alone(
    make: Callable[[Model], Model], kind: str, tiny_config: Config
) -> None:
    family, changes = PARENTS[kind]
    config = tiny_config(family, **changes)
    child = _random_child(make(spec_of(config)), config)
    walk = Walk(child, torch.tensor([[0] * 4 + [1] * 5, [0] * 9]))
    x_BTD = walk.embed(IDS_BT)
    for layer in range(4):
        x_BTD = walk.layer(layer, x_BTD)
    packed = walk.logits(x_BTD)
    for row, part in ((0, slice(0, 4)), (0, slice(4, 9)), (1, slice(0, 9))):
        alone = child(IDS_BT[row : row + 1, part], use_cache=False).logits[0]
        torch.testing.assert_close(packed[row, part], alone, atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_generation_with_and_without_cache_agrees_for_any_child(data: st.DataObject, tiny_config: Config) -> None:
    family, changes = PARENTS[data.draw(st.sampled_from(sorted(PARENTS)))]
    config = tiny_config(family, **changes)
    mixers = st.sampled_from([Attention(num_kv_heads=heads) for heads in (1, 2, 4)] + [LinearMixer(), NoOp()])
    ffns = st.sampled_from([GatedFFN(width=width) for width in (1, 20, 48)] + [LinearFFN(), NoOp()])
    blocks = [Block(mixer=data.draw(mixers), ffn=data.draw(ffns)) for _ in range(4)]
    child = _random_child(_with_blocks(spec_of(config), *blocks), config)
    cached = _generate(child, IDS_BT, use_cache=True)
    assert cached.shape == (2, 17)
    assert torch.equal(cached, _generate(child, IDS_BT, use_cache=False))


@torch.no_grad()
@every_parent
@pytest.mark.parametrize("make", [_heterogeneous, _with_windows])
def test_cached_logits_are_those_of_a_whole_forward_at_every_step(
    make: Callable[[Model], Model], kind: str, tiny_config: Config
) -> None:
    family, changes = PARENTS[kind]
    config = tiny_config(family, **changes)
    child = _random_child(make(spec_of(config)), config)
    whole_BTV = child(IDS_BT, use_cache=False).logits
    out = child(IDS_BT[:, :5], use_cache=True)
    steps = [out.logits]
    for position in range(5, 9):
        out = child(IDS_BT[:, position : position + 1], use_cache=True, past_key_values=out.past_key_values)
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole_BTV, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@every_parent
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_layer_with_a_window_of_its_own_sees_no_further(implementation: str, kind: str, tiny_config: Config) -> None:
    family, changes = PARENTS[kind]
    config = tiny_config(family, **changes)
    child = _random_child(_with_windows(spec_of(config)), config)
    child.set_attn_implementation(implementation)
    naive_BTV = child(IDS_BT, use_cache=False).logits.clone()
    for position in range(9):  # two layers reach 2 and 1 tokens back, so no more than 3 in all
        near = max(0, position - 3)
        changed = IDS_BT.clone()
        changed[:, :near] = 1 + (changed[:, :near] + 7) % 63
        logits_BTV = child(changed, use_cache=False).logits
        assert torch.equal(logits_BTV[:, position], naive_BTV[:, position])
        if near:
            changed[:, near] = 1 + (changed[:, near] + 7) % 63
            assert not torch.equal(child(changed, use_cache=False).logits[:, position], naive_BTV[:, position])


@torch.no_grad()
@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_windows_of_ones_own_are_those_of_transformers(family: str, tiny_config: Config, random_model: Build) -> None:
    sliding = {"mistral": {}, "qwen2": SLIDING, "qwen3": SLIDING}[family] | {
        "sliding_window": 4,
        "max_window_layers": 0,
    }
    parent = random_model(tiny_config(family, **sliding))
    whole = tiny_config(family, sliding_window=None)
    child = load_weights(build_child(spec_of(parent.config), whole), parent.state_dict())
    torch.testing.assert_close(child(IDS_BT).logits, parent(IDS_BT).logits, atol=1e-5, rtol=1e-5)
    windows = [block.attention.get("window_length") for block in child.config.block_configs]
    assert windows == [4] * 4


def test_a_candidate_with_a_window_runs_in_the_parents_place(tiny_config: Config, random_model: Build) -> None:
    parent = random_model(tiny_config("llama"))
    spec, own = spec_of(parent.config), parent.model.layers[1]
    for num_tokens, is_same in ((8, False), (9, True)):
        near = Attention(num_kv_heads=2, reach=Window(num_tokens=num_tokens))
        candidate = Candidate(layer=1, part="mixer", variant=near)
        layer = layer_with(parent, spec, candidate, part_weights(own, "mixer"))
        walk = Walk(parent)
        x_BTD = walk.embed(IDS_BT)
        assert torch.allclose(walk.layer(1, x_BTD, layer), walk.layer(1, x_BTD), atol=1e-6) == is_same


def test_no_layer_may_see_further_than_the_parents(tiny_config: Config) -> None:
    config = tiny_config("mistral", sliding_window=4)
    spec = spec_of(config)
    for reach in (Full(), Window(num_tokens=5)):
        wider = Block(mixer=Attention(num_kv_heads=2, reach=reach), ffn=spec.layers[1].ffn)
        with pytest.raises(InputError, match="layer 1"):
            build_child(replace(spec, layers=(spec.layers[0], wider, *spec.layers[2:])), config)


def test_attention_that_cannot_be_narrowed_is_refused(tiny_config: Config) -> None:
    config = tiny_config("llama")
    child = _random_child(_with_windows(spec_of(config)), config)
    child.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sdpa or eager"):
        child.model.layers[1].self_attn(hidden_states=torch.zeros(1, 2, 32), attention_mask=None)


@every_parent
@pytest.mark.parametrize("make", [_heterogeneous, _with_windows])
def test_a_prompt_padded_on_the_left_goes_on_as_it_does_alone(
    make: Callable[[Model], Model], kind: str, tiny_config: Config
) -> None:
    family, changes = PARENTS[kind]
    config = tiny_config(family, **changes)
    child = _random_child(make(spec_of(config)), config)
    mask_BT = torch.ones_like(IDS_BT)
    mask_BT[0, :3] = 0
    padded = child.generate(  # pyright: ignore[reportCallIssue]
        IDS_BT, attention_mask=mask_BT, max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    assert torch.equal(padded[:1, 3:], _generate(child, IDS_BT[:1, 3:], use_cache=True))
    assert torch.equal(padded[1:], _generate(child, IDS_BT[1:], use_cache=True))


CLEAN_LOADER = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "blockwright":
            raise ImportError("Blockwright is not installed here")

sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
answers = []
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("QUICK", return_tensors="pt").input_ids
    made = [model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=c, pad_token_id=0) for c in (True, False)]
    answers.append([tokens[0].tolist() for tokens in made])
assert not any(name.partition(".")[0] == "blockwright" for name in sys.modules)
print(json.dumps(answers))
"""


def test_plain_transformers_loads_a_child_where_blockwright_is_not(
    tiny_config: Config, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    prompt_BT = torch.tensor([tiny_tokenizer.encode("QUICK")])
    expected = []
    folders = []
    for kind, (family, changes) in PARENTS.items():
        config = tiny_config(family, **changes)
        spec = _with_windows(spec_of(config)) if kind.startswith("llama") else _heterogeneous(spec_of(config))
        child = _random_child(spec, config)
        folder = tmp_path / kind
        folder.mkdir()
        save_child(child, spec, tiny_tokenizer, folder, {"made by": "a test"})
        folders.append(str(folder))
        tokens = _generate(child, prompt_BT, use_cache=True)[0].tolist()
        expected.append(tokens)
    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", CLEAN_LOADER, *folders]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for cached, uncached, ours in [
        (*pair, tokens) for pair, tokens in zip(json.loads(done.stdout), expected, strict=True)
    ]:
        assert cached[: len(ours)] == ours
        assert cached == uncached
        assert len(cached) == len(ours) + 4


@pytest.mark.parametrize("make", [_heterogeneous, _with_windows])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_saved_child_comes_back_as_it_was(
    family: str,
    make: Callable[[Model], Model],
    tiny_config: Config,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    config = tiny_config(family, tie_word_embeddings=True)
    spec = make(spec_of(config))
    child = _random_child(spec, config)
    save_child(child, spec, tiny_tokenizer, tmp_path, {"made by": "a test"})
    assert spec_of_child(tmp_path) == spec
    with torch.no_grad():
        assert torch.equal(load_child(tmp_path, spec)(IDS_BT).logits, child(IDS_BT).logits)


def test_the_config_says_what_each_layer_is_and_who_can_load_it(
    tiny_config: Config, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = tiny_config("llama")
    spec = _heterogeneous(spec_of(config))
    save_child(_random_child(spec, config), spec, tiny_tokenizer, tmp_path, {"made by": "a test"})
    saved = json.loads((tmp_path / "config.json").read_text())
    assert [block["attention"]["n_heads_in_group"] for block in saved["block_configs"]] == [None, 4, None, 1]
    assert [block["attention"]["no_op"] for block in saved["block_configs"]] == [True, False, False, False]
    assert [block["ffn"]["replace_with_linear"] for block in saved["block_configs"]] == [False, False, True, False]
    assert [block["ffn"]["intermediate_size"] for block in saved["block_configs"]] == [20, None, None, 48]
    assert saved["blockwright"]["provenance"] == {"made by": "a test"}
    assert "layer 2: linear replacements are not read" in saved["blockwright"]["engines"]["vllm"]
    assert saved["architectures"] == ["LlamaChildForCausalLM"]


def test_a_child_that_stock_engines_load_carries_their_name_for_it(
    tiny_config: Config, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = tiny_config("llama", head_dim=8, intermediate_size=512)
    blocks = [Block(mixer=Attention(num_kv_heads=heads), ffn=GatedFFN(width=256 * heads)) for heads in (1, 2, 2, 1)]
    spec = _with_blocks(spec_of(config), *blocks)
    save_child(_random_child(spec, config), spec, tiny_tokenizer, tmp_path, {})
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == [STOCK_ARCHITECTURE]
    assert [block["ffn"]["ffn_mult"] for block in saved["block_configs"]] == [12.0, 24.0, 24.0, 12.0]


def test_a_folder_without_a_child_has_no_spec(tmp_path: Path) -> None:
    assert spec_of_child(tmp_path) is None
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert spec_of_child(tmp_path) is None


def test_a_truncated_child_is_named(
    tiny_config: Config, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = tiny_config("llama")
    spec = spec_of(config)
    save_child(_random_child(spec, config), spec, tiny_tokenizer, tmp_path, {})
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError) as caught:
        load_child(tmp_path, spec)
    assert caught.value.field == str(weights)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda weights: weights.pop("model.norm.weight"), "model.norm.weight"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "extra"),
        (lambda weights: weights.update({"model.norm.weight": torch.zeros(31)}), "model.norm.weight"),
    ],
)
def test_weights_of_other_blocks_are_refused(
    damage: Callable[[dict[str, Tensor]], object], name: str, tiny_config: Config
) -> None:
    config = tiny_config("llama")
    weights = dict(_random_child(spec_of(config), config).state_dict())
    damage(weights)
    with pytest.raises(InputError) as caught:
        load_weights(build_child(spec_of(config), config), weights)
    assert name in str(caught.value.got)


def test_a_layer_with_a_candidate_shares_all_else_with_the_parent(tiny_config: Config, random_model: Build) -> None:
    parent = random_model(tiny_config("llama"))
    spec = spec_of(parent.config)
    candidate = Candidate(layer=1, part="mixer", variant=LinearMixer())
    matrix = torch.randn(32, 32)
    own = parent.model.layers[1]
    weights = {"self_attn.linear_attn.weight": matrix, "input_layernorm.weight": torch.ones(32)}
    layer = layer_with(parent, spec, candidate, weights)
    assert {name: tensor.tolist() for name, tensor in part_weights(layer, "mixer").items()} == {
        name: tensor.tolist() for name, tensor in weights.items()
    }
    assert layer.mlp is own.mlp
    assert layer.post_attention_layernorm is own.post_attention_layernorm
    assert layer.input_layernorm is not own.input_layernorm
