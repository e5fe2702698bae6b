"""A checkpoint is opened as what it is, or refused with what is wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
)

from blockwright.errors import InputError
from blockwright.model.child import build_child, load_weights, save_child
from blockwright.model.parent import load_model, load_tokenizer, open_parent, spec_of
from blockwright.spec import Attention, Full, GatedFFN, Rope, Window

Config = Callable[..., PreTrainedConfig]
Build = Callable[[PreTrainedConfig], PreTrainedModel]
DATA = Path(os.environ.get("BLOCKWRIGHT_DATA") or Path(__file__).parents[3] / "shared" / "data")
REAL_MODEL = DATA / "models/stories260K"


@pytest.fixture
def parent_folder(
    tiny_config: Config, random_model: Build, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Path:
    """A checkpoint of a tiny Llama with its tokenizer."""
    folder = tmp_path / "parent"
    random_model(tiny_config("llama")).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def _change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_spec_says_what_the_configuration_says(family: str, tiny_config: Config) -> None:
    spec = spec_of(tiny_config(family, sliding_window=None))
    assert spec.family == family
    assert (spec.vocab_size, spec.hidden_size, spec.num_heads, spec.head_dim) == (64, 32, 4, 12)
    assert (spec.max_positions, spec.rope.scaling) == (64, "default")
    assert [block.mixer for block in spec.layers] == [Attention(num_kv_heads=2)] * 4
    assert [block.ffn for block in spec.layers] == [GatedFFN(width=48)] * 4
    biases = (spec.has_qkv_bias, spec.has_output_bias, spec.has_ffn_bias)
    assert biases == (family == "qwen2", False, False)
    assert spec.has_qk_norm == (family == "qwen3")
    assert not spec.has_tied_embeddings


def test_biases_ties_and_rotary_scaling_are_read(tiny_config: Config) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    changes = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
    rope["original_max_position_embeddings"] = 32
    spec = spec_of(tiny_config("llama", rope_parameters=rope, **changes))
    assert (spec.has_qkv_bias, spec.has_output_bias, spec.has_ffn_bias, spec.has_tied_embeddings) == (True,) * 4
    parameters = dict(factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=32.0)
    assert spec.rope == Rope(theta=5e5, scaling="llama3", parameters=tuple(parameters.items()))


def test_a_head_size_that_is_not_given_follows_from_the_hidden_size(tiny_config: Config) -> None:
    assert spec_of(tiny_config("qwen2", head_dim=None)).head_dim == 8


def test_a_window_is_read_layer_by_layer(tiny_config: Config) -> None:
    window = Window(num_tokens=4)
    upper_half = tiny_config("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=2)
    reaches = [block.mixer.reach for block in spec_of(upper_half).layers if isinstance(block.mixer, Attention)]
    assert reaches == [Full(), Full(), window, window]
    everywhere = spec_of(tiny_config("mistral", sliding_window=4)).layers
    assert [block.mixer for block in everywhere] == [Attention(num_kv_heads=2, reach=window)] * 4


def test_a_window_that_transformers_does_not_read_is_none(tiny_config: Config) -> None:
    assert spec_of(tiny_config("llama", sliding_window=4)) == spec_of(tiny_config("llama"))


def test_a_window_no_shorter_than_the_context_is_none(tiny_config: Config) -> None:
    assert spec_of(tiny_config("mistral", sliding_window=64)) == spec_of(tiny_config("mistral", sliding_window=None))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_an_opened_parent_computes_what_was_saved(
    family: str, tiny_config: Config, random_model: Build, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = random_model(tiny_config(family, sliding_window=None))
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    parent = open_parent(str(tmp_path))
    ids = torch.tensor([load_tokenizer(parent).encode("SEVENQUICKFOXES")])
    loaded = load_model(parent)
    assert not loaded.training
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("config", "got"),
    [
        (BertConfig(architectures=["BertModel"]), "BertModel"),
        (T5Config(architectures=["T5ForConditionalGeneration"]), "T5ForConditionalGeneration"),
        (GPT2Config(architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel"),
        (GPT2Config(), "none"),
    ],
)
def test_what_is_no_decoder_of_ours_is_refused(config: PreTrainedConfig, got: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError) as caught:
        open_parent(str(tmp_path))
    assert caught.value.field == f"{tmp_path}: architectures"
    assert caught.value.got == got


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": "gemma"}, "parent: model_type"),
        ({"hidden_act": "gelu"}, "parent: hidden_act"),
        ({"num_key_value_heads": 3}, "parent: num_key_value_heads"),
        ({"num_key_value_heads": 0}, "parent: num_key_value_heads"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "sections": [1, 2]}},
            "parent: rope_parameters.sections",
        ),
    ],
)
def test_a_configuration_that_no_room_can_express_is_refused(
    change: dict[str, object], field: str, parent_folder: Path
) -> None:
    _change_config(parent_folder, **change)
    with pytest.raises(InputError) as caught:
        open_parent(str(parent_folder))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"model_type": "nothing-known"}, "nothing-known"),
        ({"hidden_size": "thirty"}, "expected int, got str"),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
        ({"model_type": "custom", "auto_map": {"AutoConfig": "code.Config"}}, "custom code"),
    ],
)
def test_a_configuration_that_transformers_cannot_read_is_refused(
    change: dict[str, object], got: str, parent_folder: Path
) -> None:
    _change_config(parent_folder, **change)
    with pytest.raises(InputError) as caught:
        open_parent(str(parent_folder))
    assert caught.value.field == f"{parent_folder}: config.json"
    assert got in str(caught.value.got)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_missing_or_broken_configuration_is_refused(content: str | None, parent_folder: Path) -> None:
    path = parent_folder / "config.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as caught:
        open_parent(str(parent_folder))
    assert caught.value.field == f"{parent_folder}: config.json"


def test_a_name_that_is_neither_folder_nor_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_parent(str(tmp_path / "not there"))
    assert caught.value.field == "parent"


def test_a_parent_without_weights_is_refused(parent_folder: Path) -> None:
    (parent_folder / "model.safetensors").unlink()
    with pytest.raises(InputError) as caught:
        open_parent(str(parent_folder))
    assert caught.value.got == "no safetensors file"


@pytest.mark.parametrize("kept_bytes", [0, 100, -1])
def test_truncated_weights_are_refused(kept_bytes: int, parent_folder: Path) -> None:
    path = parent_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(InputError) as caught:
        open_parent(str(parent_folder))
    assert caught.value.field == str(path)
    assert "cut short" in caught.value.remedy


@pytest.mark.parametrize(
    ("damage", "got"),
    [
        (lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"), "missing keys: model.layers.1.mlp.up_proj"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "unexpected keys: extra"),
        (
            lambda weights: weights.update({"model.norm.weight": torch.zeros(31)}),
            "mismatched keys: ('model.norm.weight'",
        ),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    damage: Callable[[dict[str, torch.Tensor]], object], got: str, parent_folder: Path
) -> None:
    path = parent_folder / "model.safetensors"
    weights = load_file(path)
    damage(weights)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError) as caught:
        load_model(open_parent(str(parent_folder)))
    assert caught.value.field == f"{parent_folder}: weights"
    assert got in str(caught.value.got)


def test_a_tokenizer_with_more_tokens_than_the_vocabulary_is_refused(
    tiny_tokenizer: PreTrainedTokenizerFast, parent_folder: Path
) -> None:
    bigger = PreTrainedTokenizerFast.from_pretrained(parent_folder)
    bigger.add_tokens(["surplus"])
    bigger.save_pretrained(parent_folder)
    with pytest.raises(InputError) as caught:
        load_tokenizer(open_parent(str(parent_folder)))
    assert (caught.value.got, caught.value.field) == ("65 tokens", f"{parent_folder}: tokenizer")


def test_a_missing_tokenizer_is_refused(parent_folder: Path) -> None:
    (parent_folder / "tokenizer.json").unlink()
    (parent_folder / "tokenizer_config.json").unlink()
    with pytest.raises(InputError) as caught:
        load_tokenizer(open_parent(str(parent_folder)))
    assert caught.value.field == f"{parent_folder}: tokenizer"


def test_a_child_is_no_parent_and_its_code_is_not_run(
    tiny_config: Config, random_model: Build, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = random_model(tiny_config("llama"))
    child = load_weights(build_child(spec_of(model.config), model.config), model.state_dict())
    save_child(child, spec_of(model.config), tiny_tokenizer, tmp_path, {})
    marker = tmp_path / "code ran"
    (tmp_path / "modeling_decilm.py").write_text(f"open({str(marker)!r}, 'w')")
    with pytest.raises(InputError):
        open_parent(str(tmp_path))
    assert not marker.exists()


@pytest.mark.skipif(
    not REAL_MODEL.exists(),
    reason="no models/stories260K: neither in BLOCKWRIGHT_DATA nor in shared/data beside the checkout",
)
def test_a_checkpoint_made_by_others_continues_a_story_as_plain_transformers_does() -> None:
    parent = open_parent(str(REAL_MODEL))
    assert (parent.spec.hidden_size, len(parent.spec.layers), parent.spec.vocab_size) == (64, 5, 512)
    ids = torch.tensor([[1]])
    plain = AutoModelForCausalLM.from_pretrained(REAL_MODEL, dtype=torch.float32)
    options = {"max_new_tokens": 20, "do_sample": False}
    model = load_model(parent)
    child = load_weights(build_child(parent.spec, parent.config), model.state_dict())
    expected = plain.generate(ids, **options)  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(child.generate(ids, **options), expected)  # pyright: ignore[reportCallIssue]
    assert str(load_tokenizer(parent).decode(expected[0], skip_special_tokens=True)).startswith("Once upon a time")
