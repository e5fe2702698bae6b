"""Builds a child from a spec and a parent's configuration, and writes it as a checkpoint that others load."""

import json
import shutil
from pathlib import Path
from typing import Any, assert_never

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from blockwright.errors import InputError
from blockwright.files import read_json
from blockwright.model import modeling_decilm
from blockwright.model.parent import reach_of
from blockwright.servable import NEMOTRON_NAS, engine_obstacles, ffn_mult_of
from blockwright.spec import (
    FFN,
    Attention,
    Candidate,
    Family,
    Full,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Mixer,
    Model,
    NoOp,
    Part,
    Window,
    model_from_data,
    model_to_data,
    with_candidate,
)
from blockwright.tensors import writing_tensors

_CLASSES: dict[Family, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "llama": (modeling_decilm.LlamaChildConfig, modeling_decilm.LlamaChildForCausalLM),
    "mistral": (modeling_decilm.MistralChildConfig, modeling_decilm.MistralChildForCausalLM),
    "qwen2": (modeling_decilm.Qwen2ChildConfig, modeling_decilm.Qwen2ChildForCausalLM),
    "qwen3": (modeling_decilm.Qwen3ChildConfig, modeling_decilm.Qwen3ChildForCausalLM),
}

_PREFIXES: dict[Part, tuple[str, ...]] = {
    "mixer": ("input_layernorm.", "self_attn."),
    "ffn": ("post_attention_layernorm.", "mlp."),
}

STOCK_ARCHITECTURE = "DeciLMForCausalLM"
"""The name under which vLLM, SGLang and TensorRT-LLM load nemotron-nas checkpoints."""


def child_config(spec: Model, parent_config: PreTrainedConfig) -> PreTrainedConfig:
    """The child's Hugging Face configuration: the parent's, with what each layer is.

    Raises:
        InputError: a layer is to see further than the parent's.
    """
    settings = parent_config.to_dict()
    for name in ("model_type", "architectures", "auto_map", "transformers_version", "per_layer_config"):
        settings.pop(name, None)
    blocks = [
        {
            "attention": _attention_config(spec, b.mixer) | _reach_config(spec, i, settings),
            "ffn": _ffn_config(spec, b.ffn),
        }
        for i, b in enumerate(spec.layers)
    ]
    settings |= {"num_hidden_layers": len(spec.layers), "block_configs": blocks}
    config_class, _ = _CLASSES[spec.family]
    config = config_class(**settings)
    config._attn_implementation = "sdpa"
    return config


def build_child(spec: Model, parent_config: PreTrainedConfig) -> PreTrainedModel:
    """Builds the child with no memory behind its weights (device meta); load them with `load_weights`."""
    _, model_class = _CLASSES[spec.family]
    with torch.device("meta"):
        return model_class(child_config(spec, parent_config))


def layer_with(
    model: PreTrainedModel, parent: Model, candidate: Candidate, weights: dict[str, torch.Tensor]
) -> nn.Module:
    """The parent's layer with a candidate in it; all that is not the candidate is shared with the parent.

    Args:
        model: the parent.
        parent: its spec.
        candidate: what to put in.
        weights: the candidate's, by their names in the layer.
    """
    config = child_config(with_candidate(parent, candidate), model.config)
    own = model.model.layers[candidate.layer]
    with torch.device("meta"):
        layer = modeling_decilm.build_layer(type(own), config, candidate.layer)
    layer.load_state_dict(weights, strict=False, assign=True)
    if candidate.part == "mixer":
        layer.post_attention_layernorm, layer.mlp = own.post_attention_layernorm, own.mlp
    else:
        layer.input_layernorm, layer.self_attn = own.input_layernorm, own.self_attn
    return layer.eval()


def part_weights(layer: nn.Module, part: Part) -> dict[str, torch.Tensor]:
    """The weights of a layer's mixer or ffn, with the norm before it, by their names in the layer."""
    prefixes = _PREFIXES[part]
    return {name: tensor.detach() for name, tensor in layer.state_dict().items() if name.startswith(prefixes)}


def load_weights(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Gives a model from `build_child` its weights, by the names of its state dict.

    Raises:
        InputError: a weight is missing, surplus or of another shape.
    """
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    wanted = {(name, tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    given = {(name, tensor.shape) for name, tensor in weights.items() if name not in tied}
    different = {name for name, _ in wanted ^ given}
    if different:
        raise InputError(
            "child weights",
            got=f"missing, surplus or of another shape: {', '.join(sorted(different)[:5])}",
            expected="exactly the weights that the plan's blocks have",
            remedy="Build the library again with this version.",
        )
    rotary = type(model.model.rotary_emb)(model.config)
    model.load_state_dict(weights, strict=False, assign=True)
    model.model.rotary_emb = rotary  # its frequencies are no part of the state, so they are still on device meta
    model.tie_weights()
    return model.eval()


def save_child(
    model: PreTrainedModel, spec: Model, tokenizer: PreTrainedTokenizerFast, folder: Path, provenance: dict[str, Any]
) -> None:
    """Writes a checkpoint that plain transformers loads, with its modelling file and what each engine makes of it.

    Args:
        model: the child.
        spec: what it is.
        tokenizer: the parent's tokenizer.
        folder: an existing, empty folder.
        provenance: where it comes from; kept in config.json under ``blockwright``.
    """
    with writing_tensors(folder):
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source = Path(modeling_decilm.__file__)
    shutil.copyfile(source, folder / source.name)
    config_class, model_class = _CLASSES[spec.family]
    obstacles = engine_obstacles(spec)
    is_stock = any(not obstacles[engine] for engine in NEMOTRON_NAS)
    config = json.loads((folder / "config.json").read_text())
    config |= _rope_for_older_readers(config["rope_parameters"])
    config["architectures"] = [STOCK_ARCHITECTURE if is_stock else model_class.__name__]
    config["auto_map"] = {
        "AutoConfig": f"{source.stem}.{config_class.__name__}",
        "AutoModelForCausalLM": f"{source.stem}.{model_class.__name__}",
    }
    config["blockwright"] = {"spec": model_to_data(spec), "engines": obstacles, "provenance": provenance}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def spec_of_child(folder: Path) -> Model | None:
    """What the child in a folder is; None where the folder holds no child of ours.

    Raises:
        InputError: its config.json is broken.
    """
    path = folder / "config.json"
    section = read_json(path).get("blockwright") if path.exists() else None
    return None if section is None else model_from_data(section["spec"], f"{path}: blockwright.spec")


def load_child(folder: Path, spec: Model) -> PreTrainedModel:
    """Loads a child that `save_child` wrote, in fp32.

    Raises:
        InputError: its weights are missing, broken or those of other blocks.
    """
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            weights |= {name: tensor.float() for name, tensor in load_file(file).items()}
        except (SafetensorError, OSError) as error:
            raise InputError(
                str(file), got=str(error), expected="a whole safetensors file", remedy="Realise the plan again."
            ) from error
    return load_weights(empty_child(folder, spec), weights)


def empty_child(folder: Path, spec: Model) -> PreTrainedModel:
    """The child of a folder with no memory behind its weights, as `build_child`."""
    config_class, _ = _CLASSES[spec.family]
    return build_child(spec, config_class.from_pretrained(folder))


def _rope_for_older_readers(parameters: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding where transformers 4 wrote it; newer readers go by ``rope_parameters``."""
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    is_scaled = scaling.get("rope_type", "default") != "default"
    return {"rope_theta": parameters["rope_theta"]} | ({"rope_scaling": scaling} if is_scaled else {})


def _attention_config(spec: Model, mixer: Mixer) -> dict[str, Any]:
    match mixer:
        case Attention(num_kv_heads=num_kv_heads):
            return {"n_heads_in_group": spec.num_heads // num_kv_heads, "no_op": False, "replace_with_linear": False}
        case LinearMixer():
            return {"n_heads_in_group": None, "no_op": False, "replace_with_linear": True}
        case NoOp():
            return {"n_heads_in_group": None, "no_op": True, "replace_with_linear": False}
        case _:
            assert_never(mixer)


def _reach_config(spec: Model, index: int, settings: dict[str, Any]) -> dict[str, int]:
    """The window that a layer has beyond what the parent's own configuration gives it."""
    mixer = spec.layers[index].mixer
    if not isinstance(mixer, Attention):
        return {}
    own = reach_of(spec.family, settings, index)
    if mixer.reach == own:
        return {}
    if isinstance(mixer.reach, Full) or (isinstance(own, Window) and own.num_tokens < mixer.reach.num_tokens):
        raise InputError(
            f"layer {index}",
            got=f"a mixer that reaches {mixer.reach}",
            expected=f"no more than the parent's {own}",
            remedy="Choose a shorter window.",
        )
    return {"window_length": mixer.reach.num_tokens}


def _ffn_config(spec: Model, ffn: FFN) -> dict[str, Any]:
    nothing = {"ffn_mult": None, "intermediate_size": None, "no_op": False, "replace_with_linear": False}
    match ffn:
        case GatedFFN(width=width):
            return nothing | {"ffn_mult": ffn_mult_of(spec.hidden_size, width), "intermediate_size": width}
        case LinearFFN():
            return nothing | {"replace_with_linear": True}
        case NoOp():
            return nothing | {"no_op": True}
        case _:
            assert_never(ffn)
