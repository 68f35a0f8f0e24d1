"""Optimizer, length and hardware of a run, and how the run is kept."""

import math
from dataclasses import dataclass

from keras_bert.config.base import check_choices, flag, require

FROZEN = "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"
"""Environment variable of TensorFlow on CPUs: dense layers keep a copy of their weights, in the order that products
read them, from their first use on, and never look at the weights again. For processes that only answer."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) with warm-up and linear decay; norms and biases do not decay.

    Variants: LAMB (You et al. 2020), other schedules, rates that shrink towards the input, averaged weights.
    """

    optimizer: str = flag("adamw", "How weights change.", "keras_bert.training.optimizers:OPTIMIZERS")
    learning_rate: float = flag(5e-5, "Peak learning rate.")
    lr_schedule: str = flag("linear", "How the rate falls after warm-up.", "keras_bert.training.optimizers:DECAYS")
    lr_power: float = flag(2.0, "Power of --lr_schedule=polynomial.")
    warmup_proportion: float = flag(0.1, "Share of all steps during which the rate rises from 0.")
    num_warmup_steps: int = flag(-1, "Steps during which the rate rises; -1 means --warmup_proportion.")
    weight_decay: float = flag(0.01, "Decoupled weight decay, not applied to norms and biases.")
    clip_norm: float = flag(1.0, "Bound on the global gradient norm; 0 turns it off.")
    layer_decay: float = flag(1.0, "Factor of the rate from each layer to the one below it; 1 means one rate.")
    freeze_layers: int = flag(
        -1, "Lowest layers that stay as they are, and with them the embeddings; 0 means the embeddings alone, -1 none."
    )
    ema_decay: float = flag(0.0, "Evaluate and keep a moving average of the weights with this decay; 0 means none.")
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_choices(self)
        rate = self.learning_rate
        require(
            math.isfinite(rate) and 0 < rate <= 1,
            f"learning_rate must be above 0 and at most 1, got {rate}; 1e-5 to 1e-4 is usual here",
        )
        for name in ("warmup_proportion", "ema_decay"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("weight_decay", "clip_norm", "lr_power"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"{name} must be a number >= 0, got {value}")
        require(self.num_warmup_steps >= -1, f"num_warmup_steps must be -1 or more, got {self.num_warmup_steps}")
        require(0 < self.layer_decay <= 1, f"layer_decay must be in (0, 1], got {self.layer_decay}")
        require(self.freeze_layers >= -1, f"freeze_layers must be -1 (none) or more, got {self.freeze_layers}")


@dataclass(frozen=True)
class TrainConfig:
    """One training run: how long, how much at once, on what hardware, from which seed."""

    num_train_epochs: int = flag(3, "Passes over the training rows.")
    train_batch_size: int = flag(32, "Rows per step, over all devices together.")
    eval_batch_size: int = flag(64, "Rows per evaluation step.")
    grad_accum_steps: int = flag(1, "Parts that a batch is computed in, one after the other, to save memory.")
    seed: int = flag(12345, "Seed of initial weights, dropout, split and order of rows.")
    distribution_strategy: str = flag(
        "auto",
        "Devices to train on; auto: all GPUs of this machine, else the CPU; multi_worker_mirrored reads TF_CONFIG.",
        "keras_bert.training.devices:STRATEGIES",
    )
    num_gpus: int = flag(-1, "GPUs to use; -1 means all. With 0, or none present, the CPU is used.")
    tpu: str = flag("", "Name or address of the TPU, or local; for --distribution_strategy=tpu.")
    mixed_precision: str = flag(
        "none",
        "16-bit arithmetic with 32-bit weights; float16 scales the loss.",
        ("none", "bfloat16", "float16"),
    )
    recompute: bool = flag(False, "Compute layers again for the gradients instead of keeping them: less memory.")
    jit_compile: str = flag(
        "auto",
        "Compile the step with XLA, with fixed shapes; auto does so on a TPU only.",
        ("auto", "on", "off"),
    )

    def __post_init__(self) -> None:
        for name in ("num_train_epochs", "train_batch_size", "eval_batch_size", "grad_accum_steps"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        check_choices(self)
        require(
            self.grad_accum_steps <= self.train_batch_size,
            f"grad_accum_steps {self.grad_accum_steps} is more than the {self.train_batch_size} rows of a batch",
        )
        require(0 <= self.seed < 2**31, f"seed must be from 0 to {2**31 - 1}, got {self.seed}")
        require(self.num_gpus >= -1, f"num_gpus must be -1 (all) or more, got {self.num_gpus}")
        kind = self.distribution_strategy
        require(
            not (kind == "mirrored" and self.num_gpus == 0),
            "distribution_strategy=mirrored with num_gpus=0 contradict each other",
        )
        require(
            kind != "tpu" or self.num_gpus == -1,
            "distribution_strategy=tpu with num_gpus contradict each other",
        )
        require(not self.tpu or kind == "tpu", "tpu names a TPU but distribution_strategy is not tpu")


@dataclass(frozen=True)
class FinetuneConfig:
    """What a fine-tuning does besides plain training on all rows alike.

    With label smoothing (Szegedy et al. 2016) and weights the loss is what PyTorch computes: `CrossEntropyLoss` with
    `label_smoothing` and `weight` (classify), `BCEWithLogitsLoss` with `pos_weight` (multilabel), whose targets are
    smoothed towards 1/2 as Keras does it. Weights that are "balanced" are scikit-learn's: rows / (labels * rows of the
    label); for multilabel rows without the label / rows with it.
    """

    class_weights: str = flag(
        "",
        "classify, multilabel: what each label counts, label:weight,... (others 1), or balanced: the more, the rarer.",
    )
    label_smoothing: float = flag(0.0, "classify, multilabel: share of a label that goes to all labels alike.")
    reinit_layers: int = flag(
        0, "Top layers, and the pooler, that start anew instead of from the checkpoint (Zhang et al. 2021)."
    )
    new_head: bool = flag(
        False, "Start from a run of any task and labels: its encoder and pooler are kept, the head is new."
    )
    early_stopping_patience: int = flag(0, "End after this many epochs without a better metric; 0 means never.")
    group_by_length: bool = flag(
        False, "Rows of like length in a batch: faster where lengths differ, but a batch is then no random draw."
    )

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        for name in ("reinit_layers", "early_stopping_patience"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class RunConfig:
    """How a run is kept and when it stops; nothing here changes the weights that it ends with."""

    save_checkpoints_steps: int = flag(1000, "Steps between checkpoints, besides those after each evaluation.")
    keep_checkpoint_max: int = flag(2, "Checkpoints that are kept.")
    max_time: float = flag(0.0, "Seconds after which the run saves and stops with exit code 75; 0 means no limit.")
    profile_steps: str = flag("", "First and last step to profile for TensorBoard, such as 10,20.")
    dry_run: bool = flag(False, "Make a few steps, save and restore, say what the run will take, and keep nothing.")

    def __post_init__(self) -> None:
        for name in ("save_checkpoints_steps", "keep_checkpoint_max"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(self.max_time >= 0, f"max_time must be 0 or more seconds, got {self.max_time}")
        require(
            not self.profile_steps or self.profiled is not None,
            f"profile_steps must be two step numbers such as 10,20, got {self.profile_steps!r}",
        )

    @property
    def profiled(self) -> tuple[int, int] | None:
        """First and last step to profile."""
        parts = self.profile_steps.split(",")
        if len(parts) == 2 and all(p.isascii() and p.isdigit() for p in parts) and int(parts[0]) <= int(parts[1]):
            return int(parts[0]), int(parts[1])
        return None
