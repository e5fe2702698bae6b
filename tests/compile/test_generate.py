"""Text from an engine: Hugging Face's own tokens, whole characters, and an end where the text ends."""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from blockwright.compile.engine import TOKENIZER_FILE, SessionSettings
from blockwright.compile.generate import FINISHED, generate_ids, generate_text, open_tokenizer, until_stop
from blockwright.compile.sampling import Sampling
from blockwright.compile.session import Decoder
from blockwright.errors import InputError
from blockwright.pipeline.compile import CompileOrder, compile_checkpoint

GREEDY = Sampling(temperature=0.0)
CONTEXT = 64
END = 0
POEM = "the owl🦉и, é:ok\n"
"""With characters of one, two and four bytes; none of its tokens comes twice."""

Weights = dict[str, torch.Tensor]


def _changed(parent: Path, folder: Path, change: Callable[[Weights], Weights], **settings: object) -> Path:
    """A copy of a parent with other weights."""
    shutil.copytree(parent, folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def _opened(parent: Path, format_name: str = "fp32") -> Decoder:
    folder = parent.with_name(f"{parent.name}-{format_name}")
    compile_checkpoint(str(parent), CompileOrder(format=format_name, threads=1), folder)
    return Decoder.open(folder)


@pytest.fixture(scope="module")
def lively(small_parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small parent with larger weights: as it comes, it only repeats its last token."""

    def change(weights: Weights) -> Weights:
        return {name: 12 * tensor if "proj" in name else tensor for name, tensor in weights.items()}

    return _changed(small_parent, tmp_path_factory.mktemp("lively") / "parent", change)


@pytest.fixture(scope="module")
def reciting(small_parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small parent made to know one text by heart: each of its tokens is followed by the next, the last by END."""
    poem = [*open_tokenizer(small_parent).encode(POEM).ids, END]
    assert len(set(poem)) == len(poem)

    def change(weights: Weights) -> Weights:
        changed = {name: 0 * tensor if "proj" in name else tensor for name, tensor in weights.items()}
        embeddings_VD = weights["model.embed_tokens.weight"]
        head_VD = torch.zeros_like(embeddings_VD)
        head_VD[poem[1:]] = embeddings_VD[poem[:-1]]
        return changed | {"lm_head.weight": head_VD}

    folder = tmp_path_factory.mktemp("reciting") / "parent"
    return _changed(small_parent, folder, change, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def tokenizer(small_parent: Path) -> Tokenizer:
    return open_tokenizer(small_parent)


@pytest.fixture(scope="module")
def lively_decoder(lively: Path) -> Decoder:
    return _opened(lively)


@pytest.fixture(scope="module")
def reciting_decoder(reciting: Path) -> Decoder:
    return _opened(reciting)


def _hugging_face_ids(
    parent: Path, prompt_ids: list[int], max_new_tokens: int, repetition_penalty: float = 1.0
) -> list[int]:
    prompt_BT = torch.tensor([prompt_ids])
    model = LlamaForCausalLM.from_pretrained(parent)
    written_BT = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        prompt_BT,
        attention_mask=torch.ones_like(prompt_BT),
        do_sample=False,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        eos_token_id=END,
        pad_token_id=END,
    )
    return written_BT[0, len(prompt_ids) :].tolist()


def _ids(
    decoder: Decoder, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling = GREEDY
) -> list[list[int]]:
    """The new tokens of each sequence."""
    steps = [ids_B.tolist() for ids_B in generate_ids(decoder, prompts, max_new_tokens, sampling)]
    return [list(sequence) for sequence in zip(*steps, strict=True)]


@pytest.mark.parametrize("prompt", ["the cat", "owl", "an old mill in the rain é"])
def test_greedy_tokens_are_those_of_hugging_face(
    prompt: str, lively: Path, lively_decoder: Decoder, tokenizer: Tokenizer
) -> None:
    prompt_ids = tokenizer.encode(prompt).ids
    expected = _hugging_face_ids(lively, prompt_ids, 24)
    assert len(set(expected)) > 8, "a text that repeats itself tells little"
    assert _ids(lively_decoder, [prompt_ids], 24) == [expected]


@pytest.mark.parametrize("penalty", [0.8, 1.2, 3.0])
def test_penalised_tokens_are_those_of_hugging_face(
    penalty: float, lively: Path, lively_decoder: Decoder, tokenizer: Tokenizer
) -> None:
    prompt_ids = tokenizer.encode("the cat sat on").ids
    sampling = Sampling(repetition_penalty=penalty)
    expected = _hugging_face_ids(lively, prompt_ids, 24, penalty)
    assert _ids(lively_decoder, [prompt_ids], 24, sampling) == [expected]
    assert expected != _hugging_face_ids(lively, prompt_ids, 24)


def test_greedy_text_is_that_of_hugging_face_up_to_a_last_unfinished_character(
    small_parent: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    compile_checkpoint(str(small_parent), CompileOrder(format="fp32", threads=1), tmp_path / "engine")
    prompt_ids = tokenizer.encode("the cat sat").ids
    written = "".join(generate_text(Decoder.open(tmp_path / "engine"), tokenizer, "the cat sat", 12, GREEDY))
    whole = tokenizer.decode(prompt_ids + _hugging_face_ids(small_parent, prompt_ids, 12))
    assert "the cat sat" + written == whole.rstrip("\ufffd")


def test_sequences_of_a_batch_are_written_as_each_alone(lively_decoder: Decoder, tokenizer: Tokenizer) -> None:
    prompts = [tokenizer.encode(text).ids for text in ("the cat", "owl", "an old mill in the rain")]
    assert _ids(lively_decoder, prompts, 16) == [_ids(lively_decoder, [prompt], 16)[0] for prompt in prompts]


def test_writing_stops_at_the_end_of_the_text(reciting: Path, reciting_decoder: Decoder, tokenizer: Tokenizer) -> None:
    poem = tokenizer.encode(POEM).ids
    assert _hugging_face_ids(reciting, poem[:1], 60) == [*poem[1:], END]
    assert _ids(reciting_decoder, [poem[:1]], 60) == [[*poem[1:], FINISHED]]
    first = tokenizer.decode(poem[:1])
    assert "".join(generate_text(reciting_decoder, tokenizer, first, 60, GREEDY)) == POEM.removeprefix(first)


def test_a_sequence_that_ends_first_waits_for_the_others(reciting_decoder: Decoder, tokenizer: Tokenizer) -> None:
    poem = tokenizer.encode(POEM).ids
    early, late = _ids(reciting_decoder, [poem[:-2], poem[:4]], 40)
    assert late == [*poem[4:], FINISHED]
    assert early == [*poem[-2:]] + [FINISHED] * (len(late) - 2)


def test_no_more_tokens_come_than_were_asked_for(reciting_decoder: Decoder, tokenizer: Tokenizer) -> None:
    poem = tokenizer.encode(POEM).ids
    assert _ids(reciting_decoder, [poem[:1]], 3) == [poem[1:4]]


def test_a_character_cut_over_tokens_comes_in_one_piece(reciting_decoder: Decoder, tokenizer: Tokenizer) -> None:
    first = tokenizer.decode(tokenizer.encode(POEM).ids[:1])
    pieces = list(generate_text(reciting_decoder, tokenizer, first, 60, GREEDY))
    assert len(tokenizer.encode("🦉").ids) > 1
    assert {"🦉", "и", "é"} <= set(pieces)
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_is_never_finished_is_left_out(reciting_decoder: Decoder, tokenizer: Tokenizer) -> None:
    poem = tokenizer.encode(POEM).ids
    num_tokens = next(count for count in range(2, len(poem)) if tokenizer.decode(poem[:count]).endswith("\ufffd"))
    first = tokenizer.decode(poem[:1])
    written = "".join(generate_text(reciting_decoder, tokenizer, first, num_tokens - 1, GREEDY))
    assert first + written == tokenizer.decode(poem[:num_tokens]).rstrip("\ufffd")


@pytest.mark.parametrize("stop", ["owl", "🦉", "и, é", "é", ":ok", "ok\n", "th", "not in it"])
def test_text_ends_before_a_stop_string(stop: str, reciting_decoder: Decoder, tokenizer: Tokenizer) -> None:
    first = tokenizer.decode(tokenizer.encode(POEM).ids[:1])
    rest = POEM.removeprefix(first)
    written = "".join(generate_text(reciting_decoder, tokenizer, first, 60, GREEDY, [stop, "never"]))
    assert written == rest.split(stop)[0]


@pytest.mark.parametrize("seed", range(60))
def test_no_piece_ends_within_a_stop_string(seed: int) -> None:
    chance = random.Random(seed)
    pieces = ["".join(chance.choices("ab🦉", k=chance.randint(0, 3))) for _ in range(12)]
    stops = ["".join(chance.choices("ab🦉", k=chance.randint(1, 4))) for _ in range(chance.randint(0, 3))]
    assert list(itertools.accumulate(until_stop(iter(pieces), stops))) == _shown(pieces, stops)


def _shown(pieces: list[str], stops: list[str]) -> list[str]:
    """What may be shown after each piece that adds to it: the text up to the first place where a stop may begin."""
    text, shown = "", [""]
    for piece in pieces:
        text += piece
        if any(stop in text for stop in stops):
            text = min((text.split(stop)[0] for stop in stops if stop in text), key=len)
            break
        places = [i for i in range(len(text)) if any(stop.startswith(text[i:]) for stop in stops)]
        shown.append(text[: min(places, default=len(text))])
    return [after for before, after in itertools.pairwise([*shown, text]) if after != before]


def test_generation_ends_with_the_stop_string() -> None:
    taken: list[str] = []

    def pieces() -> Iterator[str]:
        for piece in ("a", "b", "c"):
            taken.append(piece)
            yield piece

    assert list(until_stop(pieces(), ["b"])) == ["a"]
    assert taken == ["a", "b"]


@pytest.mark.parametrize("seed", range(8))
def test_pieces_make_up_the_whole_text_whatever_bytes_are_drawn(
    seed: int, lively_decoder: Decoder, tokenizer: Tokenizer
) -> None:
    sampling = Sampling(temperature=20.0, seed=seed)
    prompt_ids = tokenizer.encode("the cat").ids
    (drawn,) = _ids(lively_decoder, [prompt_ids], 40, sampling)
    whole = tokenizer.decode(prompt_ids + [token for token in drawn if token != FINISHED])
    assert "\ufffd" in whole, "no broken character was drawn"
    written = "the cat" + "".join(generate_text(lively_decoder, tokenizer, "the cat", 40, sampling))
    assert written.rstrip("\ufffd") == whole.rstrip("\ufffd")


def test_a_seed_gives_the_same_text_again_and_another_seed_another(
    lively_decoder: Decoder, tokenizer: Tokenizer
) -> None:
    first, again, other = (
        "".join(generate_text(lively_decoder, tokenizer, "the cat", 24, Sampling(temperature=1.0, seed=seed)))
        for seed in (5, 5, 6)
    )
    assert first == again != other


def test_an_empty_prompt_begins_with_the_start_token(lively_decoder: Decoder, tokenizer: Tokenizer) -> None:
    (expected,) = _ids(lively_decoder, [[END]], 12)
    assert "".join(generate_text(lively_decoder, tokenizer, "", 12, GREEDY)) == tokenizer.decode(expected)


@pytest.mark.parametrize("num_prompt_tokens", [CONTEXT, CONTEXT + 1, 10 * CONTEXT])
def test_a_prompt_longer_than_the_engine_reads_is_refused(
    num_prompt_tokens: int, lively_decoder: Decoder, tokenizer: Tokenizer
) -> None:
    prompt = " cat" * num_prompt_tokens
    assert len(tokenizer.encode(prompt).ids) == num_prompt_tokens
    with pytest.raises(InputError, match=f"prompt and new tokens.*at most {CONTEXT}"):
        next(generate_text(lively_decoder, tokenizer, prompt, 1, GREEDY))


@pytest.mark.parametrize(("max_positions", "is_offered"), [(CONTEXT, False), (2 * CONTEXT, True)])
def test_a_longer_context_is_offered_where_the_model_has_one(
    max_positions: int, is_offered: bool, lively_decoder: Decoder
) -> None:
    engine = lively_decoder.engine
    engine = replace(engine, model=replace(engine.model, max_positions=max_positions))
    with pytest.raises(InputError) as found:
        Decoder(engine, lively_decoder.session).start(1, CONTEXT + 1)
    assert ("--context" in found.value.remedy) == is_offered


def test_prompt_and_new_tokens_may_fill_the_engine_to_its_last_position(lively_decoder: Decoder) -> None:
    assert len(_ids(lively_decoder, [[7] * (CONTEXT - 4)], 4)[0]) == 4
    with pytest.raises(InputError, match=f"{CONTEXT + 1} tokens"):
        _ids(lively_decoder, [[7] * (CONTEXT - 4)], 5)


def test_a_prompt_without_tokens_is_refused(lively_decoder: Decoder) -> None:
    with pytest.raises(InputError, match="at least one token"):
        _ids(lively_decoder, [[5], []], 4)


def test_int4_recites_the_same_text(reciting: Path, tokenizer: Tokenizer) -> None:
    decoder = _opened(reciting, "int4")
    assert decoder.engine.session == SessionSettings(num_threads=1, accuracy_level=4)
    poem = tokenizer.encode(POEM).ids
    assert _ids(decoder, [poem[:1]], 60) == [[*poem[1:], FINISHED]]


@pytest.mark.parametrize("content", [None, "", "{}", '{"version": "1.0", "model": {"type": "BPE"'])
def test_a_tokenizer_that_is_missing_or_broken_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / TOKENIZER_FILE).write_text(content)
    with pytest.raises(InputError, match=TOKENIZER_FILE):
        open_tokenizer(tmp_path)
