"""The library's index comes back as it was written, and misses no file silently."""

from pathlib import Path

import pytest

from blockwright.errors import InputError
from blockwright.library import INDEX, Entry, Library, read_library, write_library
from blockwright.spec import Attention, Block, Candidate, GatedFFN, Model, NoOp, Rope

CANDIDATES = (
    Candidate(layer=0, part="mixer", variant=Attention(num_kv_heads=1)),
    Candidate(layer=0, part="ffn", variant=NoOp()),
)
LIBRARY = Library(
    parent=Model(
        family="qwen2",
        vocab_size=100,
        hidden_size=64,
        num_heads=4,
        head_dim=16,
        max_positions=128,
        norm_eps=1e-5,
        rope=Rope(theta=1e4),
        activation="silu",
        has_tied_embeddings=True,
        has_qkv_bias=True,
        has_output_bias=False,
        has_ffn_bias=False,
        has_qk_norm=False,
        layers=(Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=96)),),
    ),
    parent_folder="somewhere",
    candidates=CANDIDATES,
    entries=(
        Entry(
            candidate=CANDIDATES[0],
            file="one.safetensors",
            initial_nmse=0.5,
            nmse=0.25,
            initial_delta_nmse=2.0,
            delta_nmse=1.0,
        ),
    ),
    trained_tokens=1000,
    settings={"seed": 1, "learning_rate": 1e-3},
)


def test_a_library_comes_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").touch()
    write_library(LIBRARY, tmp_path)
    assert read_library(tmp_path) == LIBRARY


def test_a_missing_candidate_file_is_named(tmp_path: Path) -> None:
    write_library(LIBRARY, tmp_path)
    with pytest.raises(InputError, match=r"no file one\.safetensors"):
        read_library(tmp_path)


def test_a_folder_without_an_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_library(tmp_path)
    assert caught.value.field == str(tmp_path / INDEX)
