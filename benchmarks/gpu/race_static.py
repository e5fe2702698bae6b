"""A decoder in plain torch with caches of a fixed size, for torch.compile and CUDA graphs: our peer in torch.

It is not tuned on any GPU: inductor's own choice of kernels, and no attention cut into splits for one token. What makes
generation in torch fast it has: q, k and v are one matrix, gate and up another; a prompt goes through torch's
fused attention, causal; a token's heads that share keys are one product with them, over as many slots as the text
will need. A step is compiled whole, chooses the next token itself and is recorded as a CUDA graph, so the host only
starts it. In int4 the layers' products are our Triton operator, `torch.ops.blockwright.int4_linear`.

It has what the raced models have: full attention, gated ffns and parts left out, no biases, a tied head.

Shapes: B batch, T tokens, S slots, H heads, J KV heads, G heads of a KV head, D head size, V vocabulary.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from kernels_gpu_race import captured
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from blockwright.compile.blocked import quantise_blocks
from blockwright.compile.planar import pack_planar
from blockwright.compile.rotary import rotary_tables
from blockwright.spec import Attention, Format, GatedFFN, Model

Matrix = tuple[Tensor, ...]
"""Of weights, or of int4's codes and scales."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The matrices of a layer by what they are; those of parts left out are missing."""

    num_kv_heads: int
    matrices: dict[str, Matrix]
    norms: dict[str, Tensor]


class StaticModel:
    """A model's weights on a device in fp16, its layers' matrices in int4 where the model says so."""

    def __init__(self, model: Model, weights: dict[str, np.ndarray], device: torch.device) -> None:
        assert model.has_tied_embeddings and not model.has_qkv_bias and not model.has_qk_norm, "see above"
        self.model, self.device = model, device
        self.embedding = self._half(weights["model.embed_tokens.weight"])
        self.norm = self._half(weights["model.norm.weight"])
        self.layers = [self._layer(index, weights) for index in range(len(model.layers))]
        cosines, sines = rotary_tables(model.rope, model.head_dim, model.max_positions)
        self.cosines, self.sines = (self._half(np.tile(table, 2)) for table in (cosines, sines))

    def _layer(self, index: int, weights: dict[str, np.ndarray]) -> Layer:
        prefix, block = f"model.layers.{index}", self.model.layers[index]
        matrices: dict[str, Matrix] = {}
        norms: dict[str, Tensor] = {}

        def join(name: str, parts: list[str], stored: Format) -> None:
            joined_NK = np.concatenate([weights[f"{prefix}.{part}_proj.weight"] for part in parts])
            matrices[name] = self._matrix(joined_NK, stored)

        if isinstance(block.mixer, Attention):
            norms["mixer"] = self._half(weights[f"{prefix}.input_layernorm.weight"])
            join("qkv", [f"self_attn.{name}" for name in "qkv"], block.mixer.weights)
            join("out", ["self_attn.o"], block.mixer.weights)
        if isinstance(block.ffn, GatedFFN):
            norms["ffn"] = self._half(weights[f"{prefix}.post_attention_layernorm.weight"])
            join("open", ["mlp.gate", "mlp.up"], block.ffn.weights)
            join("down", ["mlp.down"], block.ffn.weights)
        num_kv_heads = block.mixer.num_kv_heads if isinstance(block.mixer, Attention) else 0
        return Layer(num_kv_heads=num_kv_heads, matrices=matrices, norms=norms)

    def _matrix(self, weight_NK: np.ndarray, stored: Format) -> Matrix:
        if stored.name != "int4":
            return (self._half(weight_NK),)
        # Loaded here, for it needs Triton.
        importlib.import_module("blockwright.compile.kernel_ops")
        assert stored.group_size is not None
        codes_KN, scales_GN = quantise_blocks(weight_NK.T, stored)
        codes_NK = torch.from_numpy(pack_planar(codes_KN, stored.group_size)).to(self.device)
        return codes_NK, self._half(np.ascontiguousarray(scales_GN.T))

    def _half(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, torch.float16)


class Room:
    """Caches for a batch of texts of the same length, and the compiled step and prompt over them."""

    def __init__(self, static: StaticModel, batch: int, slots: int, compiled: Callable[[Callable], Callable]) -> None:
        self.static, self.batch = static, batch
        model, device = static.model, static.device

        def empty(num_kv_heads: int) -> Tensor:
            return torch.zeros(batch, num_kv_heads, slots, model.head_dim, device=device, dtype=torch.float16)

        # Keys and values each in a tensor of their own: of two views of one, inductor copies the whole at each step.
        self.caches = [(empty(layer.num_kv_heads), empty(layer.num_kv_heads)) for layer in static.layers]
        self.slots_S = torch.arange(slots, device=device)
        self.ids_B1 = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.logits_BV = torch.zeros(batch, model.vocab_size, dtype=torch.float16, device=device)
        self._compiled = compiled
        self._step: Callable[[], object] | None = None
        self._prompt: Callable[[], object] | None = None

    @torch.no_grad()
    def read(self, ids_BT: np.ndarray) -> Tensor:
        """Reads prompts into empty caches as it is, neither compiled nor recorded; returns logits_BV."""
        self.logits_BV.copy_(self._read(torch.from_numpy(ids_BT).to(self.static.device)))
        return self.logits_BV

    @torch.no_grad()
    def read_fast(self, ids_BT: np.ndarray) -> Tensor:
        """As `read`, compiled and recorded; all prompts of a room are of one length."""
        given = torch.from_numpy(ids_BT).to(self.static.device)
        if self._prompt is None:
            self._ids_BT, read = given.clone(), self._compiled(self._read)
            self._prompt = captured(lambda: self.logits_BV.copy_(read(self._ids_BT)), given.is_cuda)
        self._ids_BT.copy_(given)
        self._prompt()
        return self.logits_BV

    def at(self, position: int, ids_B: np.ndarray) -> None:
        """Says where the next token stands, and which it is."""
        self.position.fill_(position)
        self.ids_B1[:, 0].copy_(torch.from_numpy(ids_B))

    @torch.no_grad()
    def step(self) -> Tensor:
        """Appends a token and chooses the next; logits_BV, in place."""
        if self._step is None:
            kept, place, step = self.ids_B1.clone(), self.position.clone(), self._compiled(self._append)
            self._step = captured(step, self.ids_B1.is_cuda)
            self.ids_B1.copy_(kept)  # what was run on the way moved on
            self.position.copy_(place)
        self._step()
        return self.logits_BV

    def _append(self) -> None:
        logits_BV = self._hidden_to_logits(self._through(self.ids_B1, self._attend_token))
        self.logits_BV.copy_(logits_BV)
        self.ids_B1.copy_(logits_BV.argmax(-1, keepdim=True))
        self.position.add_(1)

    def _read(self, ids_BT: Tensor) -> Tensor:
        return self._hidden_to_logits(self._through(ids_BT, self._attend_prompt))

    def _hidden_to_logits(self, x_BTK: Tensor) -> Tensor:
        static = self.static
        return linear(_normed(x_BTK[:, -1], static.norm, static.model), static.embedding)

    def _through(self, ids_BT: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        model, x_BTK = self.static.model, self.static.embedding[ids_BT]
        for index, layer in enumerate(self.static.layers):
            if "mixer" in layer.norms:
                qkv_BTN = _product(_normed(x_BTK, layer.norms["mixer"], model), layer.matrices["qkv"])
                x_BTK = x_BTK + _product(attend(index, qkv_BTN), layer.matrices["out"])
            if "ffn" in layer.norms:
                opened = _product(_normed(x_BTK, layer.norms["ffn"], model), layer.matrices["open"])
                gate, up = opened.chunk(2, dim=-1)
                x_BTK = x_BTK + _product(silu(gate) * up, layer.matrices["down"])
        return x_BTK

    def _attend_token(self, index: int, qkv_B1N: Tensor) -> Tensor:
        q_BH1D, k_BJ1D, v_BJ1D = self._heads(index, qkv_B1N, self.position)
        k_BJSD, v_BJSD = self.caches[index]
        k_BJSD.index_copy_(2, self.position, k_BJ1D)
        v_BJSD.index_copy_(2, self.position, v_BJ1D)
        batch, num_kv_heads = k_BJSD.shape[:2]
        q_BJGD = q_BH1D.reshape(batch, num_kv_heads, -1, q_BH1D.shape[-1])
        scores_BJGS = (q_BJGD @ k_BJSD.mT).float() * self.static.model.head_dim**-0.5
        scores_BJGS = scores_BJGS.masked_fill(self.slots_S > self.position, -torch.inf)
        return (scores_BJGS.softmax(-1).half() @ v_BJSD).reshape(batch, 1, -1)

    def _attend_prompt(self, index: int, qkv_BTN: Tensor) -> Tensor:
        num_tokens = qkv_BTN.shape[1]
        q_BHTD, k_BJTD, v_BJTD = self._heads(index, qkv_BTN, self.slots_S[:num_tokens])
        for cache_BJSD, new_BJTD in zip(self.caches[index], (k_BJTD, v_BJTD), strict=True):
            cache_BJSD[:, :, :num_tokens] = new_BJTD
        attended_BHTD = scaled_dot_product_attention(q_BHTD, k_BJTD, v_BJTD, is_causal=True, enable_gqa=True)
        return attended_BHTD.transpose(1, 2).flatten(2)

    def _heads(self, index: int, qkv_BTN: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model, num_kv_heads = self.static.model, self.static.layers[index].num_kv_heads
        by_head = qkv_BTN.unflatten(-1, (-1, model.head_dim)).transpose(1, 2)
        q, k, v = by_head.split([model.num_heads, num_kv_heads, num_kv_heads], dim=1)
        cosines_TD, sines_TD = self.static.cosines[positions_T], self.static.sines[positions_T]
        return _rotated(q, cosines_TD, sines_TD), _rotated(k, cosines_TD, sines_TD), v


def _product(x: Tensor, matrix: Matrix) -> Tensor:
    return linear(x, *matrix) if len(matrix) == 1 else torch.ops.blockwright.int4_linear(x, *matrix)


def _normed(x: Tensor, weight: Tensor, model: Model) -> Tensor:
    return rms_norm(x, weight.shape, weight, model.norm_eps)


def _rotated(x_BHTD: Tensor, cosines_TD: Tensor, sines_TD: Tensor) -> Tensor:
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cosines_TD + torch.cat([-second, first], dim=-1) * sines_TD
