"""Parents that cannot be: one clear error, exit code 2, and nothing half-written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertConfig

DEMO_PARENT = Path(__file__).parents[2] / "recipes" / "demo-parent"


@pytest.fixture
def parent_copy(tmp_path: Path, small_parent: Path) -> Path:
    """A copy of the small parent to break."""
    return Path(shutil.copytree(small_parent, tmp_path / "broken"))


def test_a_parent_that_is_no_decoder(
    tmp_path: Path, parent_copy: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    config = BertConfig(architectures=["BertForMaskedLM"])
    config.save_pretrained(parent_copy)
    message = refused("run", write_recipe(parent=str(parent_copy)), "-o", tmp_path / "run")
    assert "architectures" in message and "BertForMaskedLM" in message and "decoder" in message
    assert not (tmp_path / "run").exists()


def test_a_decoder_of_a_family_that_is_not_known(
    tmp_path: Path, parent_copy: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (parent_copy / "config.json").write_text(json.dumps(config))
    message = refused("run", write_recipe(parent=str(parent_copy)), "-o", tmp_path / "run")
    assert "GPT2LMHeadModel" in message or "gpt2" in message


def test_a_parent_that_is_not_there(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused("run", write_recipe(parent="no/such-model"), "-o", tmp_path / "run")
    assert "no/such-model" in message


def test_a_parent_without_weights(
    tmp_path: Path, parent_copy: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    (parent_copy / "model.safetensors").unlink()
    message = refused("run", write_recipe(parent=str(parent_copy)), "-o", tmp_path / "run")
    assert "no safetensors file" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kept_share", [0.0, 0.01, 0.5, 0.999])
def test_a_parent_whose_weights_are_cut_short(
    tmp_path: Path,
    parent_copy: Path,
    kept_share: float,
    write_recipe: Callable[..., Path],
    refused: Callable[..., str],
) -> None:
    weights = parent_copy / "model.safetensors"
    os.truncate(weights, int(weights.stat().st_size * kept_share))
    message = refused("run", write_recipe(parent=str(parent_copy)), "-o", tmp_path / "run")
    assert "model.safetensors" in message and "download it again" in message
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_with_more_tokens_than_the_parent_knows(
    tmp_path: Path, parent_copy: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    tokenizer = json.loads((parent_copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"extra{index}": len(vocabulary) + index for index in range(100)}
    (parent_copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = refused("run", write_recipe(parent=str(parent_copy)), "-o", tmp_path / "run")
    assert "tokenizer" in message and "vocabulary of 300" in message
    assert not (tmp_path / "run").exists()


def test_a_parent_without_a_tokenizer_that_engines_take(
    tmp_path: Path, parent_copy: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    (parent_copy / "tokenizer.json").rename(parent_copy / "tokenizer.model")
    message = refused("run", write_recipe(parent=str(parent_copy)), "-o", tmp_path / "run")
    assert "tokenizer.json" in message and "save_pretrained" in message
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_another_model_of_the_same_size(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    parent = Path(shutil.copytree(DEMO_PARENT, tmp_path / "parent"))
    tokenizer = json.loads((parent / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    size = len(vocabulary)
    tokenizer["model"]["vocab"] = {token: (size - 1 - index if index else 0) for token, index in vocabulary.items()}
    tokenizer["model"]["vocab"] |= {token: size - 1 for token, index in vocabulary.items() if index == size - 1}
    (parent / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = refused("run", write_recipe(parent=str(parent), text="python"), "-o", tmp_path / "run")
    assert "another model's" in message
    assert not (tmp_path / "run").exists()


def test_a_library_does_not_replace_its_parent(parent_copy: Path, refused: Callable[..., str]) -> None:
    weights = (parent_copy / "model.safetensors").read_bytes()
    assert "an input" in refused("library", parent_copy, "--text", "python", "-o", parent_copy)
    assert (parent_copy / "model.safetensors").read_bytes() == weights
