"""A tokenizer of the tokenizers library in the words of GGUF, or why llama.cpp has none for it.

llama.cpp carries the code of a number of tokenizers and chooses by name, so a tokenizer can be written only if it is
one of these. Byte-level BPE is known by the pattern that parts the text. BPE as in sentencepiece has no pattern: there
llama.cpp joins the two neighbours whose joint piece has the best score, whatever the list of merges says. Both come to
the same if every way to put a piece together is among the merges, and all those of one piece stand together. One thing
stays: before a text that begins with a space, sentencepiece and llama.cpp put another, and tokenizers' Metaspace none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockwright.errors import InputError
from blockwright.files import read_json

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's kinds of tokens (`llama_token_attr` in files)."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

_PATTERNS: dict[tuple[str, ...], dict[bool, str]] = {
    (_GPT2,): {False: "gpt-2"},
    ("digits", _GPT2): {False: "smollm"},
    (_LLAMA3,): {True: "llama-bpe", False: "dbrx"},
    (_QWEN2,): {False: "qwen2"},
}
"""Names by what the text is parted with, and by whether words that are tokens are taken whole (``ignore_merges``)."""


def gguf_tokenizer(folder: Path, vocab_size: int) -> dict[str, Any]:
    """What GGUF says of a checkpoint's tokenizer.

    Args:
        folder: the checkpoint, with tokenizer.json and config.json.
        vocab_size: rows of the model's embedding; those without a token are marked unused.

    Raises:
        InputError: llama.cpp has no such tokenizer, or a special token that it names is missing.
    """
    data = read_json(folder / "tokenizer.json")
    model = data.get("model") or {}
    if model.get("type") != "BPE":
        raise _refused(f"a tokenizer of the kind {model.get('type')}", "byte-level or sentencepiece-like BPE")
    tokens, kinds = _tokens(data, vocab_size)
    fields: dict[str, Any] = {"tokenizer.ggml.tokens": tokens}
    if model.get("byte_fallback"):
        fields |= _sentencepiece(data, tokens, kinds)
    else:
        fields |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name_of_pattern(data)}
        fields["tokenizer.ggml.merges"] = [" ".join(pair) for pair in _merges(model)]
    fields["tokenizer.ggml.token_type"] = kinds
    fields |= _special(data, read_json(folder / "config.json"), len(tokens))
    return fields | _chat_template(folder)


def _tokens(data: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """The tokens by their ids, and their kinds."""
    vocabulary: dict[str, int] = data["model"]["vocab"]
    added = data.get("added_tokens") or []
    by_id = {index: token for token, index in vocabulary.items()} | {token["id"]: token["content"] for token in added}
    if by_id and max(by_id) >= vocab_size:
        raise _refused(f"the token {max(by_id)}", f"ids below the model's {vocab_size} embeddings")
    kinds = dict.fromkeys(by_id, _NORMAL)
    for token in added:
        if any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            got = f"a token {token['content']!r} that takes spaces or word ends with it"
            raise _refused(got, "added tokens that stand for their own text alone")
        kinds[token["id"]] = _CONTROL if token.get("special") else _USER_DEFINED
    ids = range(vocab_size)
    return [by_id.get(i, f"[PAD{i}]") for i in ids], [kinds.get(i, _UNUSED) for i in ids]


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges in their order; older files hold each as one text."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(first, second) for first, second in pairs]


def name_of_pattern(data: Mapping[str, Any]) -> str:
    """llama.cpp's name for a way to part text into words."""
    normalizer = (data.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):  # llama.cpp normalises nothing; Qwen's NFC changes no text that is composed
        raise _refused(f"text normalised by {normalizer}", "none, or NFC")
    steps = _steps(data.get("pre_tokenizer"), "pretokenizers")
    parted: list[str] = []
    for step in steps:
        match step:
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"} if not step.get("invert"):
                parted.append(pattern)
            case {"type": "Digits", "individual_digits": True}:
                parted.append("digits")
            case {"type": "ByteLevel"} if step is steps[-1] and not step.get("add_prefix_space"):
                parted += [_GPT2] if step.get("use_regex", True) else []
            case _:
                raise _refused(f"text parted by {step.get('type')}", "patterns and then bytes, no space put before")
    ignores_merges = bool(data["model"].get("ignore_merges"))
    name = _PATTERNS.get(tuple(parted), {}).get(ignores_merges)
    if name is None or (data["model"].get("dropout") or data["model"].get("continuing_subword_prefix")):
        known = sorted(name for names in _PATTERNS.values() for name in names.values())
        raise _refused(
            f"text parted by {' and then '.join(parted) or 'nothing'}",
            f"the way of one of its pre-tokenizers: {', '.join(known)}",
        )
    return name


def _sentencepiece(data: Mapping[str, Any], tokens: Sequence[str], kinds: list[int]) -> dict[str, Any]:
    """GGUF's ``llama`` tokenizer: pieces, and scores that stand for the order of the merges."""
    model = data["model"]
    for index, token in enumerate(tokens):
        if token == model.get("unk_token"):
            kinds[index] = _UNKNOWN
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[index] = _BYTE
    if missing := [byte for byte in range(256) if f"<0x{byte:02X}>" not in model["vocab"]]:
        raise _refused(f"no token for the byte {missing[0]}", "one for each of 256, as in sentencepiece")
    ranks = _ranks(model)
    scores = [float(-ranks[token]) if token in ranks else -1e9 for token in tokens]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": _puts_space_first(data),
    }


def _ranks(model: Mapping[str, Any]) -> dict[str, int]:
    """The place of each joint piece in the order of joining.

    Raises:
        InputError: scores of pieces cannot say what the merges say.
    """
    vocabulary, ranks, last = model["vocab"], dict[str, int](), None
    merges = _merges(model)
    for first, second in merges:
        piece = first + second
        if piece != last and piece in ranks:
            raise _refused(f"merges of {piece!r} that stand apart", "those of one piece together, as in sentencepiece")
        ranks.setdefault(piece, len(ranks))
        last = piece
    known = set(merges)
    for piece in ranks:
        parts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        for pair in parts:
            if pair[0] in vocabulary and pair[1] in vocabulary and pair not in known:
                raise _refused(
                    f"no merge of {pair[0]!r} and {pair[1]!r}, though {piece!r} is a token",
                    "every way to put a token together, as in sentencepiece",
                )
    return ranks


def _puts_space_first(data: Mapping[str, Any]) -> bool:
    """Whether a text gets a space before it; everything else must be as in sentencepiece."""
    steps = _steps(data.get("normalizer"), "normalizers") + _steps(data.get("pre_tokenizer"), "pretokenizers")
    prepends, replaces = False, False
    for step in steps:
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                prepends = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                replaces = True
            case {"type": "Metaspace", "prepend_scheme": "first"}:
                raise _refused("a space before a text, but none behind special tokens", "one before each, or none")
            case {"type": "Metaspace", "replacement": "▁", "split": False}:
                prepends, replaces = step.get("prepend_scheme", "always") != "never", True
            case _:
                raise _refused(f"text changed by {step.get('type')}", "spaces written as ▁ and nothing else")
    if not replaces:
        raise _refused("spaces that stay spaces", "spaces written as ▁")
    return prepends


def _special(data: Mapping[str, Any], config: Mapping[str, Any], num_tokens: int) -> dict[str, Any]:
    """The ids of special tokens, and which of them a text is put between."""
    before, after = put_around(data)
    eos = config.get("eos_token_id")
    stops = eos if isinstance(eos, list) else [] if eos is None else [eos]
    ids = {
        "bos": before if before is not None else config.get("bos_token_id"),
        "eos": after if after is not None else next(iter(stops), None),
        "eot": stops[1] if len(stops) > 1 else None,
        "padding": config.get("pad_token_id"),
    }
    for name, index in ids.items():
        if index is not None and not 0 <= index < num_tokens:
            raise _refused(f"the {name} token {index}", f"one of its {num_tokens} tokens")
    fields: dict[str, Any] = {f"tokenizer.ggml.{n}_token_id": i for n, i in ids.items() if i is not None}
    unknown = data["model"].get("unk_token")
    if unknown is not None:
        if unknown not in data["model"]["vocab"]:
            raise _refused(f"the unknown token {unknown!r}, which is none of its tokens", "one of them")
        fields["tokenizer.ggml.unknown_token_id"] = data["model"]["vocab"][unknown]
    return fields | {
        "tokenizer.ggml.add_bos_token": before is not None,
        "tokenizer.ggml.add_eos_token": after is not None,
    }


def put_around(data: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The tokens that a text is put between."""
    around: list[int | None] = [None, None]
    for step in _steps(data.get("post_processor"), "processors"):
        match step:
            case {"type": "ByteLevel"}:
                pass
            case {"type": "TemplateProcessing", "single": single}:
                places = [next(iter(part)) for part in single]
                if places.count("Sequence") != 1 or len(places) > 3:
                    raise _refused("a template of several parts", "one token before a text and one after, at most")
                text = places.index("Sequence")
                for place, part in enumerate(single):
                    if place != text:
                        around[place > text] = _id_of(part["SpecialToken"]["id"], data)
            case _:
                raise _refused(f"text finished by {step.get('type')}", "a template, or nothing")
    return around[0], around[1]


def _id_of(token: str, data: Mapping[str, Any]) -> int:
    ids = data["model"]["vocab"] | {added["content"]: added["id"] for added in data.get("added_tokens") or []}
    if token not in ids:
        raise _refused(f"the special token {token!r}, which is none of its tokens", "one of them")
    return ids[token]


def _chat_template(folder: Path) -> dict[str, str]:
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    template = (
        file.read_text() if file.exists() else read_json(settings).get("chat_template") if settings.exists() else None
    )
    return {"tokenizer.chat_template": template} if isinstance(template, str) else {}


def _steps(step: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """The steps of a sequence, or the one that stands alone."""
    if step is None:
        return []
    return list(step[name]) if step["type"] == "Sequence" else [step]


def _refused(got: str, expected: str) -> InputError:
    return InputError(
        "--target llama.cpp: tokenizer.json",
        got=got,
        expected=f"what llama.cpp has code for: {expected}",
        remedy="Compile for another target, which reads tokenizer.json itself.",
    )
