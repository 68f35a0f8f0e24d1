"""Doors of training: where a trick may change a step, without a change to the step.

A trick is a function from the `step.Trainer`, in the scope of its strategy, to `Doors`. Doors are shut by default, and
a step with shut doors is the plain step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import tensorflow as tf

View = Callable[[keras.Variable], Any]


class Pass(NamedTuple):
    """What one forward and backward pass over a batch gives.

    Attributes:
        sums: losses and measures, summed over the rows.
        gradients: one dense tensor for each weight that is trained.
        ascent: gradient of the shift, float32 `[rows, T, D]`; None if nothing was shifted.
    """

    sums: tf.Tensor
    gradients: list[tf.Tensor]
    ascent: tf.Tensor | None = None


Run = Callable[[Any], Pass]
"""A pass with this shift of the token embeddings `[rows, T, D]`, or with None."""
Ascent = Callable[[Run, Callable[[], tf.Tensor]], Pass]
"""`(run, zeros)` -> the pass that counts; `zeros()` is a shift that changes nothing."""


def plain(run: Run, zeros: Callable[[], tf.Tensor]) -> Pass:
    """One pass, nothing shifted."""
    return run(None)


ASCENTS: dict[str, Ascent] = {"none": plain}
"""Ways to train on embeddings that are shifted up the gradient of the loss."""


@dataclass(frozen=True)
class ExtraLoss:
    """A loss besides that of the labels, in training only.

    Attributes:
        loss: (task, batch, logits of the batch) -> float32 `[B]`, one value for each row.
        factor: weight of its mean over the rows in the total.
    """

    loss: Callable[[Any, Any, Any], Any]
    factor: float = 1.0


@dataclass(frozen=True)
class Doors:
    """Where a trick acts.

    Attributes:
        view: a weight -> the tensor that the forward pass reads in its place in training, of the same shape and dtype;
            None leaves that weight. It is called once for each part of a batch: what it draws must depend on the
            number of the update (`Trainer.optimizer.iterations`) or on variables, not on the call.
        ascent: a name of `ASCENTS`, or a function like those.
        after_step: each is called in the graph after the weights were updated, not after a step that was skipped.
        losses: further losses by name.
        variables: what a trick remembers from step to step, by name; states of a run hold it.
    """

    view: View | None = None
    ascent: str | Ascent = "none"
    after_step: tuple[Callable[[], Any], ...] = ()
    losses: dict[str, ExtraLoss] = field(default_factory=dict)
    variables: dict[str, tf.Variable] = field(default_factory=dict)


def no_trick(trainer: Any) -> Doors:
    """Leaves the step as it is."""
    return Doors()
