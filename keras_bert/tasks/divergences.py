"""How far the answers of one model are from those of another: for distillation, regularisers and reports.

Divergences are float32, at least 0, and 0 for equal logits, where their gradient is 0 too. `temperature` divides both
logits; the result is not multiplied by its square.
"""

from keras import ops

from keras_bert.model.layers import Tensor
from keras_bert.model.readout import LOW


def categorical(teacher: Tensor, logits: Tensor, temperature: float = 1.0, allowed: Tensor = None) -> Tensor:
    """KL(softmax(teacher) || softmax(logits)) over the last axis, of the `allowed` classes only."""
    teacher, logits = (ops.cast(x, "float32") / temperature for x in (teacher, logits))
    if allowed is not None:
        teacher, logits = (ops.where(allowed, x, LOW) for x in (teacher, logits))
    gaps = ops.log_softmax(teacher, axis=-1) - ops.log_softmax(logits, axis=-1)
    return ops.sum(ops.softmax(teacher, axis=-1) * gaps, axis=-1)


def bernoulli(teacher: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(sigmoid(teacher) || sigmoid(logits)) of each element."""
    teacher, logits = (ops.cast(x, "float32") / temperature for x in (teacher, logits))
    yes, no = ops.sigmoid(teacher), ops.sigmoid(-teacher)
    return yes * (ops.softplus(-logits) - ops.softplus(-teacher)) + no * (ops.softplus(logits) - ops.softplus(teacher))


def of_vectors(teacher: Tensor, vectors: Tensor) -> Tensor:
    """1 - cosine over the last axis."""
    teacher, vectors = (ops.normalize(ops.cast(x, "float32"), axis=-1) for x in (teacher, vectors))
    return 1.0 - ops.sum(teacher * vectors, axis=-1)
