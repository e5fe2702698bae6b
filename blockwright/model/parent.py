"""Opens a Hugging Face checkpoint: checks it, says what it is as a spec, and loads its weights and tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as hf_logging

from blockwright.errors import InputError
from blockwright.spec import Attention, Block, Family, Full, GatedFFN, Model, Rope, Window

ACTIVATIONS = ("silu",)
"""Activations of the gated ffn that every room can compute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """An opened checkpoint."""

    folder: Path
    config: PreTrainedConfig
    spec: Model


def open_parent(name: str) -> Parent:
    """Opens a checkpoint without loading its weights.

    Args:
        name: a folder, or the name of a repository on the Hugging Face hub.

    Raises:
        InputError: there is no such checkpoint, a file of it is missing or broken, or it is no decoder we know.
    """
    hf_logging.disable_progress_bar()  # of this process, for loading and saving children too: stages show their own
    folder = _local_folder(name)
    config = _read_config(folder)
    _check_weight_files(folder)
    return Parent(folder=folder, config=config, spec=spec_of(config))


def load_model(parent: Parent) -> PreTrainedModel:
    """Loads the weights in fp32, in evaluation mode, with scaled-dot-product attention.

    Raises:
        InputError: a weight is missing, surplus or of another shape.
    """
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # its report of the problems comes back in `info`
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            parent.folder,
            dtype=torch.float32,
            output_loading_info=True,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,  # so that they are among the problems below, by name
            trust_remote_code=False,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{parent.folder}: weights",
            got=_first_line(error),
            expected="the weights that config.json describes",
            remedy="Download the checkpoint again.",
        ) from error
    finally:
        hf_logging.set_verbosity(verbosity)
    model, info = loaded
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise InputError(
                f"{parent.folder}: weights",
                got=f"{problem.replace('_', ' ')}: {', '.join(map(str, sorted(info[problem])[:5]))}",
                expected="exactly the weights that config.json describes",
                remedy="Download the checkpoint again.",
            )
    return model.eval()


def load_tokenizer(parent: Parent) -> PreTrainedTokenizerFast:
    """Loads the tokenizer.

    Raises:
        InputError: there is none, or it makes ids that the parent's embedding does not have.
    """
    return load_tokenizer_of(parent.folder, parent.spec.vocab_size)


def load_tokenizer_of(folder: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """Loads a folder's tokenizer for a model of `vocab_size` embeddings; errors as `load_tokenizer`."""
    if not (folder / "tokenizer.json").exists():  # engines take nothing else (`compile/engine.py`)
        raise InputError(
            f"{folder}: tokenizer",
            got="no tokenizer.json",
            expected="the tokenizer in the format of the tokenizers library",
            remedy="Save it there with AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        )
    # tokenizer.json says everything; AutoTokenizer adds tokens of its own for some families (5.23: Qwen2).
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: tokenizer",
            got=_first_line(error),
            expected="tokenizer files beside the weights (tokenizer.json, tokenizer_config.json)",
            remedy="Copy the tokenizer's files into the checkpoint's folder.",
        ) from error
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"{folder}: tokenizer",
            got=f"{len(tokenizer)} tokens",
            expected=f"at most the model's vocabulary of {vocab_size}",
            remedy="This tokenizer is another model's: put the right one into the folder.",
        )
    return tokenizer


def spec_of(config: PreTrainedConfig) -> Model:
    """The spec of a homogeneous Hugging Face decoder.

    Raises:
        InputError: the configuration is no decoder of a family we know, or uses what no room can express.
    """
    settings: dict[str, Any] = config.to_dict()
    _check_settings(settings)
    family, num_heads = settings["model_type"], settings["num_attention_heads"]
    qkv_bias = family == "qwen2" or bool(settings.get("attention_bias"))
    head_dim = settings.get("head_dim") or settings["hidden_size"] // num_heads
    blocks = tuple(
        Block(
            mixer=Attention(num_kv_heads=settings["num_key_value_heads"], reach=reach_of(family, settings, layer)),
            ffn=GatedFFN(width=settings["intermediate_size"]),
        )
        for layer in range(settings["num_hidden_layers"])
    )
    return Model(
        family=family,
        vocab_size=settings["vocab_size"],
        hidden_size=settings["hidden_size"],
        num_heads=num_heads,
        head_dim=head_dim,
        max_positions=settings["max_position_embeddings"],
        norm_eps=settings["rms_norm_eps"],
        rope=_rope_of(settings["rope_parameters"]),
        activation=settings["hidden_act"],
        has_tied_embeddings=bool(settings["tie_word_embeddings"]),
        has_qkv_bias=qkv_bias,
        has_output_bias=family != "qwen2" and bool(settings.get("attention_bias")),
        has_ffn_bias=bool(settings.get("mlp_bias")),
        has_qk_norm=family == "qwen3",
        layers=blocks,
    )


def _check_settings(settings: dict[str, Any]) -> None:
    """Refuses what `spec_of` cannot express.

    Raises:
        InputError: names the setting.
    """
    if (family := settings["model_type"]) not in get_args(Family):
        raise InputError(
            "parent: model_type",
            got=repr(family),
            expected=f"a decoder of one of the families {', '.join(get_args(Family))}",
            remedy="Choose a parent of one of these families.",
        )
    if settings["hidden_act"] not in ACTIVATIONS:
        raise InputError(
            "parent: hidden_act",
            got=settings["hidden_act"],
            expected=" or ".join(ACTIVATIONS),
            remedy="Choose a parent with this activation.",
        )
    num_heads, num_kv_heads = settings["num_attention_heads"], settings["num_key_value_heads"]
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise InputError(
            "parent: num_key_value_heads",
            got=num_kv_heads,
            expected=f"a number that divides its {num_heads} attention heads",
            remedy="Correct the parent's config.json.",
        )


def reach_of(family: Family, settings: dict[str, Any], layer: int) -> Full | Window:
    """How far a layer's attention sees by a Hugging Face configuration; transformers' Llama reads no window."""
    layer_types = settings.get("layer_types")
    window = None if family == "llama" else settings.get("sliding_window")
    is_sliding = layer_types[layer] == "sliding_attention" if layer_types else window is not None
    if not is_sliding or window is None or window >= settings["max_position_embeddings"]:
        return Full()
    return Window(num_tokens=window)


def _local_folder(name: str) -> Path:
    folder = Path(name)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]))
    except HFValidationError as error:  # before the hub is asked
        raise InputError(
            "parent",
            got=f"{name} (" + ("no folder" if folder.exists() else "no such folder") + ")",
            expected="a folder with a checkpoint, or a repository of the Hugging Face hub",
            remedy="Check the path.",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(
            "parent",
            got=f"{name} ({_first_line(error)})",
            expected="a folder with a checkpoint, or a repository of the Hugging Face hub",
            remedy="Check the path or the name, and the network if it is a repository.",
        ) from error


def _read_config(folder: Path) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        cause = error.__cause__ if isinstance(error, StrictDataclassError) else None
        raise InputError(
            f"{folder}: config.json",
            got=_first_line(cause or error),
            expected="a Hugging Face model configuration",
            remedy="Name the folder of a checkpoint that transformers loads without remote code.",
        ) from error
    architectures = config.architectures or []
    if config.is_encoder_decoder or not any("ForCausalLM" in name for name in architectures):
        raise InputError(
            f"{folder}: architectures",
            got=", ".join(architectures) or "none",
            expected="a decoder for causal language modelling (…ForCausalLM)",
            remedy="Choose a decoder-only language model as the parent.",
        )
    return config


def _check_weight_files(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(
            f"{folder}: weights",
            got="no safetensors file",
            expected="model.safetensors, or its shards with their index",
            remedy="Download the weights, or convert them with save_pretrained().",
        )
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InputError(
                str(file),
                got=_first_line(error),
                expected="a whole safetensors file",
                remedy="The file is broken or cut short: download it again.",
            ) from error


def _rope_of(parameters: dict[str, Any]) -> Rope:
    skipped = ("rope_theta", "rope_type", "type")
    rest = {name: value for name, value in parameters.items() if name not in skipped and value is not None}
    for name, value in rest.items():
        if not isinstance(value, int | float):
            raise InputError(
                f"parent: rope_parameters.{name}",
                got=value,
                expected="a number",
                remedy="Choose a parent whose rotary embedding is scaled by numbers: default, linear, llama3.",
            )
    return Rope(
        theta=float(parameters["rope_theta"]),
        scaling=parameters["rope_type"],
        parameters=tuple(sorted((name, float(value)) for name, value in rest.items())),
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
