"""Parameters, stored bytes and floating-point operations, counted from structure.

Each is one function per thing counted; a `match` over the closed set of variants ends in
`assert_never`, so that a variant added to the spec and forgotten here is a type error.
"""

from typing import assert_never

from blockwright.spec import FFN, Attention, Block, Format, GatedFFN, LinearFFN, LinearMixer, Mixer, Model, NoOp

_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4}
_NUMBER_BYTES = 4
"""Of what is no matrix: ONNX Runtime's engines keep norms, biases and scales in fp32 beside fp32 activations."""


def mixer_matrices(model: Model, mixer: Mixer) -> list[tuple[int, int]]:
    """Shapes (inputs, outputs) of the mixer's weight matrices."""
    hidden, query = model.hidden_size, model.num_heads * model.head_dim
    match mixer:
        case Attention(num_kv_heads=num_kv_heads):
            kv = num_kv_heads * model.head_dim
            return [(hidden, query), (hidden, kv), (hidden, kv), (query, hidden)]
        case LinearMixer():
            return [(hidden, hidden)]
        case NoOp():
            return []
        case _:
            assert_never(mixer)


def ffn_matrices(model: Model, ffn: FFN) -> list[tuple[int, int]]:
    """Shapes (inputs, outputs) of the ffn's weight matrices."""
    hidden = model.hidden_size
    match ffn:
        case GatedFFN(width=width):
            return [(hidden, width), (hidden, width), (width, hidden)]
        case LinearFFN():
            return [(hidden, hidden)]
        case NoOp():
            return []
        case _:
            assert_never(ffn)


def mixer_vectors(model: Model, mixer: Mixer) -> int:
    """Parameters of the mixer outside its matrices: norms and biases."""
    match mixer:
        case Attention(num_kv_heads=num_kv_heads):
            qkv = (model.num_heads + 2 * num_kv_heads) * model.head_dim
            norms = model.hidden_size + 2 * model.head_dim * model.has_qk_norm
            return norms + qkv * model.has_qkv_bias + model.hidden_size * model.has_output_bias
        case LinearMixer():
            return model.hidden_size * (1 + (model.has_qkv_bias or model.has_output_bias))
        case NoOp():
            return 0
        case _:
            assert_never(mixer)


def ffn_vectors(model: Model, ffn: FFN) -> int:
    """Parameters of the ffn outside its matrices: norm and biases."""
    match ffn:
        case GatedFFN(width=width):
            return model.hidden_size + (2 * width + model.hidden_size) * model.has_ffn_bias
        case LinearFFN():
            return model.hidden_size * (1 + model.has_ffn_bias)
        case NoOp():
            return 0
        case _:
            assert_never(ffn)


def block_parameters(model: Model, block: Block) -> int:
    """Parameters of one layer."""
    matrices = mixer_matrices(model, block.mixer) + ffn_matrices(model, block.ffn)
    vectors = mixer_vectors(model, block.mixer) + ffn_vectors(model, block.ffn)
    return sum(inputs * outputs for inputs, outputs in matrices) + vectors


def parameters(model: Model) -> int:
    """Parameters of the whole model; a tied head is counted once."""
    embeddings = model.vocab_size * model.hidden_size * (1 if model.has_tied_embeddings else 2)
    return embeddings + model.hidden_size + sum(block_parameters(model, block) for block in model.layers)


def matrix_bytes(inputs: int, outputs: int, weights: Format, number_bytes: int = _NUMBER_BYTES) -> int:
    """Bytes of a stored matrix: whole groups along the inputs, each with one scale, where it is quantised.

    Args:
        inputs: of the matrix.
        outputs: of the matrix.
        weights: how it is stored.
        number_bytes: of a scale; 2 beside activations in fp16 or bf16.
    """
    if weights.group_size is None:
        return inputs * outputs * _BITS[weights.name] // 8
    groups = -(-inputs // weights.group_size)
    bits_per_group = weights.group_size * _BITS[weights.name] + 8 * number_bytes
    return groups * outputs * bits_per_group // 8


def mixer_weight_bytes(model: Model, mixer: Mixer, number_bytes: int = _NUMBER_BYTES) -> int:
    """Bytes of the mixer's weights as stored; scales, norms and biases take `number_bytes` each."""
    if isinstance(mixer, NoOp):
        return 0
    matrices = sum(matrix_bytes(*shape, mixer.weights, number_bytes) for shape in mixer_matrices(model, mixer))
    return matrices + number_bytes * mixer_vectors(model, mixer)


def ffn_weight_bytes(model: Model, ffn: FFN, number_bytes: int = _NUMBER_BYTES) -> int:
    """Bytes of the ffn's weights as stored; scales, norms and biases take `number_bytes` each."""
    if isinstance(ffn, NoOp):
        return 0
    matrices = sum(matrix_bytes(*shape, ffn.weights, number_bytes) for shape in ffn_matrices(model, ffn))
    return matrices + number_bytes * ffn_vectors(model, ffn)


def shared_weight_bytes(model: Model, number_bytes: int = _NUMBER_BYTES) -> int:
    """Bytes of the weights outside the layers as stored: the embedding, the head and the last norm.

    Scales and the norm take `number_bytes` each.

    A tied head is the embedding's table, except where the head is quantised: rows are looked up in one order and
    multiplied in another, so they are stored twice.
    """
    shape = (model.hidden_size, model.vocab_size)
    head = 0 if model.is_head_the_embedding else matrix_bytes(*shape, model.head_format, number_bytes)
    return matrix_bytes(*shape, model.embedding_weights, number_bytes) + head + number_bytes * model.hidden_size


def kv_bytes_per_slot(model: Model, mixer: Mixer, bytes_per_value: int = 4) -> int:
    """Bytes that one token of one sequence keeps in this layer's key-value cache."""
    match mixer:
        case Attention(num_kv_heads=num_kv_heads):
            return 2 * num_kv_heads * model.head_dim * bytes_per_value
        case LinearMixer() | NoOp():
            return 0
        case _:
            assert_never(mixer)
