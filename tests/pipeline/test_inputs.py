"""Training text is the same whether it is held in memory or in a file, and no held-out text gets in."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from blockwright.errors import InputError
from blockwright.model.parent import Parent, load_model, load_tokenizer, open_parent
from blockwright.pipeline import inputs
from blockwright.pipeline.inputs import TrainingWindows, check_text_suits, read_text, training_windows, windows_of
from blockwright.train.ranks import Ranks
from blockwright.train.text import is_held_out, stream_documents
from blockwright.train.tokens import TokenWindows


@pytest.fixture
def parent(small_parent: Path) -> Parent:
    return open_parent(str(small_parent))


@pytest.fixture
def files_from_1k(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a file of more than 1,024 tokens."""
    monkeypatch.setattr(inputs, "MOST_TOKENS_IN_MEMORY", 1024)


def _training(parent: Parent, source: object, folder: Path, num_tokens: int, **changes: bool) -> TrainingWindows:
    text = read_text(str(source))
    return training_windows(parent, text, length=16, num_tokens=num_tokens, seed=3, folder=folder, **changes)


def test_few_tokens_are_cut_in_memory_as_ever(parent: Parent, small_text: Path, tmp_path: Path) -> None:
    training = _training(parent, small_text, tmp_path, 1024)
    as_ever = windows_of(parent, read_text(str(small_text)).training, length=16, num_tokens=1024, seed=3)
    batch = training.batches(64, 1, seed=0)[0]
    assert sorted(batch.ids_BT.tolist()) == sorted(as_ever.ids_NT.tolist())
    assert batch.segments_BT is None
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("files_from_1k")
def test_many_tokens_come_from_a_file_of_the_training_part_alone(
    parent: Parent, small_text: Path, tmp_path: Path
) -> None:
    training = _training(parent, small_text, tmp_path, 10**6)
    assert isinstance(training.store, TokenWindows)
    decode = load_tokenizer(parent).backend_tokenizer.decode
    found = decode(training.store.file.tokens.tolist(), skip_special_tokens=True)
    wanted = [d.text for d in stream_documents(str(small_text)) if not is_held_out(d)]
    assert found == "".join(wanted)
    assert training.store.num_windows == len(training.store.file.tokens) // 16


@pytest.mark.usefixtures("files_from_1k")
def test_no_more_windows_are_made_than_asked_for(parent: Parent, small_text: Path, tmp_path: Path) -> None:
    training = _training(parent, small_text, tmp_path, 1025)
    assert training.store.num_windows == 64


@pytest.mark.usefixtures("files_from_1k")
@pytest.mark.parametrize("num_tokens", [1024, 2048])
def test_documents_are_told_where_they_are_to_be_masked(
    num_tokens: int, parent: Parent, small_text: Path, tmp_path: Path
) -> None:
    training = _training(parent, small_text, tmp_path, num_tokens, masks_documents=True)
    for batch in training.batches(8, 4, seed=0):
        assert batch.segments_BT is not None and batch.segments_BT.shape == batch.ids_BT.shape


@pytest.mark.usefixtures("files_from_1k")
@pytest.mark.parametrize("num_tokens", [1024, 2048])
def test_two_ranks_read_what_one_does(num_tokens: int, parent: Parent, small_text: Path, tmp_path: Path) -> None:
    training = _training(parent, small_text, tmp_path, num_tokens)
    alone = training.batches(6, 5, seed=1)
    first, second = (training.batches(6, 5, seed=1, ranks=Ranks(rank=rank, world_size=2)) for rank in (0, 1))
    for step in range(5):
        assert torch.equal(alone[step].ids_BT[0::2], first[step].ids_BT)
        assert torch.equal(alone[step].ids_BT[1::2], second[step].ids_BT)


@pytest.mark.usefixtures("files_from_1k")
@pytest.mark.parametrize("num_tokens", [1024, 2048])
def test_the_digest_tells_texts_apart(num_tokens: int, parent: Parent, small_text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(small_text, other)
    for changed in other.iterdir():
        changed.write_text(changed.read_text().replace("cat", "owl"))
    digests = [_training(parent, source, tmp_path, num_tokens).digest for source in (small_text, small_text, other)]
    assert digests[0] == digests[1] != digests[2]


def test_of_sources_too_large_a_part_is_held_and_the_digest_is_of_all(tmp_path: Path) -> None:
    source = tmp_path / "many.jsonl"
    lines = [json.dumps({"text": f"text number {index}"}) + "\n" for index in range(500)]
    source.write_text("".join(lines))
    whole, part = read_text(str(source)), read_text(str(source), most_chars=3000)
    num_held = len(part.training) + len(part.held_out)
    assert 170 < num_held < 240
    assert set(part.held_out) < set(whole.held_out) and set(part.training) < set(whole.training)
    source.write_text("".join([*lines[:-1], '{"text": "another end"}\n']))
    assert read_text(str(source), most_chars=3000).digest != part.digest
    assert read_text(str(source), most_chars=3000).training == part.training


@pytest.mark.usefixtures("files_from_1k")
def test_a_file_reads_on_beyond_what_is_held(parent: Parent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "many.jsonl"
    source.write_text("".join(json.dumps({"text": f"text number {index} " * 9}) + "\n" for index in range(500)))
    text = read_text(str(source), most_chars=16000)
    training = training_windows(parent, text, length=16, num_tokens=16384, seed=0, folder=tmp_path)
    assert isinstance(training.store, TokenWindows)
    assert training.store.file.index.num_documents > len(text.training)
    assert training.store.num_windows == 1024


@pytest.mark.usefixtures("files_from_1k")
def test_a_window_beyond_the_context_or_the_text_is_refused(parent: Parent, tmp_path: Path) -> None:
    source = tmp_path / "few.jsonl"
    source.write_text("".join(json.dumps({"text": f"{index}"}) + "\n" for index in range(200)))
    text = read_text(str(source))
    with pytest.raises(InputError, match="context of 64"):
        training_windows(parent, text, length=65, num_tokens=4096, seed=0, folder=tmp_path)
    source.write_text('{"text": "a"}\n{"text": "b"}\n')
    with pytest.raises(InputError, match="at least one window of 64 tokens"):
        training_windows(parent, text, length=64, num_tokens=4096, seed=0, folder=tmp_path)


@pytest.mark.usefixtures("files_from_1k")
@pytest.mark.parametrize("num_tokens", [1024, 2048])
def test_a_parent_is_held_against_the_first_windows(
    num_tokens: int, parent: Parent, small_text: Path, tmp_path: Path
) -> None:
    model = load_model(parent)
    training = _training(parent, small_text, tmp_path, num_tokens)
    check_text_suits(model, training.store)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(-100)
    with pytest.raises(InputError, match="nats per token"):
        check_text_suits(model, training.store)


def test_too_little_text_is_told_of(parent: Parent, small_text: Path, tmp_path: Path) -> None:
    assert _training(parent, small_text, tmp_path, 1024).shortage(1024) is None
    training = _training(parent, small_text, tmp_path, 10**6)
    num_tokens = training.store.num_windows * 16
    assert training.shortage(10**6) == (
        f"text      gives {num_tokens:,} of 1,000,000 tokens: training passes through it {1e6 / num_tokens:.1f} times"
    )
