"""The devices to train on, as a `tf.distribute` strategy. A new kind is one function and one row in `STRATEGIES`."""

import faulthandler
import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_bert.config import FROZEN, TrainConfig, choose
from keras_bert.errors import ConfigError

Strategy = Any
"""A `tf.distribute.Strategy`."""


PATIENCE = int(os.environ.get("KERAS_BERT_WORKER_TIMEOUT", "600"))
"""Seconds to wait for all workers."""

WORKER_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)
"""What a step raises when another worker is lost; TensorFlow notices within seconds."""


def strategy_for(config: TrainConfig) -> Strategy:
    """The strategy for these settings; the same object for the same devices.

    With `multi_worker_mirrored`, this must come before any other TensorFlow operation of the process.

    Raises:
        ConfigError: there are not enough GPUs, TF_CONFIG is missing or broken, there is no TPU, the kind is unknown or
            cannot be used; or changes of weights would not be seen (`config.FROZEN`).
    """
    if os.environ.get(FROZEN, "0").lower() not in ("0", "false"):
        raise ConfigError(f"{FROZEN} is set in the environment: training would not see its own weights; unset it")
    return choose(STRATEGIES, config.distribution_strategy, "distribution_strategy")(config)


def _devices(config: TrainConfig) -> tuple[list[str], bool]:
    """Names of the devices to use, and whether they are GPUs."""
    gpus = tf.config.list_logical_devices("GPU")
    if config.num_gpus > len(gpus):
        found = ", ".join(d.name for d in tf.config.list_logical_devices())
        raise ConfigError(f"num_gpus is {config.num_gpus} but {len(gpus)} are visible; the devices are {found}")
    chosen = gpus if config.num_gpus < 0 else gpus[: config.num_gpus]
    return [d.name for d in chosen or tf.config.list_logical_devices("CPU")], bool(chosen)


def _auto(config: TrainConfig) -> Strategy:
    devices, gpus = _devices(config)
    return _mirrored_on(tuple(devices)) if gpus and len(devices) > 1 else tf.distribute.OneDeviceStrategy(devices[0])


def _one_device(config: TrainConfig) -> Strategy:
    return tf.distribute.OneDeviceStrategy(_devices(config)[0][0])


def _mirrored(config: TrainConfig) -> Strategy:
    return _mirrored_on(tuple(_devices(config)[0]))


@functools.cache
def _mirrored_on(devices: tuple[str, ...]) -> Strategy:
    """One strategy for each process: a second one would number its collectives like the first."""
    return tf.distribute.MirroredStrategy(devices)


def _multi_worker(config: TrainConfig) -> Strategy:
    _task()
    return _workers()


@functools.cache
def _workers() -> Strategy:
    """Waits at most `PATIENCE` seconds. TensorFlow would wait an hour, without letting any Python thread run."""
    print(f"waiting for all workers of TF_CONFIG, {PATIENCE} s at most; without them this ends with 1", file=sys.stderr)
    with open(os.devnull, "w", encoding="ascii") as nowhere:
        faulthandler.dump_traceback_later(PATIENCE, exit=True, file=nowhere)
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        finally:
            faulthandler.cancel_dump_traceback_later()


def _task() -> tuple[str, int]:
    """Type and index of this process in TF_CONFIG."""
    text = os.environ.get("TF_CONFIG", "")
    example = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
    try:
        found = json.loads(text)
        kind, index = found["task"]["type"], int(found["task"]["index"])
        found["cluster"][kind][index]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        what = f"is {text!r}" if text else "is not set"
        raise ConfigError(
            f"multi_worker_mirrored needs the environment variable TF_CONFIG, which {what}; it looks like {example}"
        ) from error
    return kind, index


def _tpu(config: TrainConfig) -> Strategy:
    return _tpu_at(config.tpu)


@functools.cache
def _tpu_at(name: str) -> Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, tf.errors.OpError) as error:
        said = str(error).strip().splitlines()
        raise ConfigError(
            f"no TPU {name or 'of this machine'} can be used ({said[0] if said else type(error).__name__}); "
            "name one with --tpu, use --tpu=local on a TPU VM, or another --distribution_strategy"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def _parameter_server(config: TrainConfig) -> Strategy:
    raise ConfigError(
        "parameter_server is not offered: its workers update the weights whenever they are done, so a run could "
        "neither equal one device nor be repeated or resumed exactly; use multi_worker_mirrored"
    )


STRATEGIES: dict[str, Callable[[TrainConfig], Strategy]] = {
    "auto": _auto,
    "one_device": _one_device,
    "mirrored": _mirrored,
    "multi_worker_mirrored": _multi_worker,
    "tpu": _tpu,
    "parameter_server": _parameter_server,
}


def is_tpu(strategy: Strategy) -> bool:
    """Whether the strategy computes on a TPU, where shapes are static and there are no strings."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def worker(strategy: Strategy) -> tuple[int, int]:
    """Index of this process among the workers, from 0, and the number of workers."""
    resolver = strategy.cluster_resolver
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or not resolver.cluster_spec():
        return 0, 1
    spec = resolver.cluster_spec().as_dict()
    names = [(kind, i) for kind in ("chief", "worker") for i in range(len(spec.get(kind, ())))]
    return names.index((resolver.task_type, resolver.task_id)), len(names)


def meet(strategy: Strategy) -> None:
    """Wait for all workers."""
    if worker(strategy)[1] > 1:
        strategy.reduce("SUM", strategy.run(lambda: tf.constant(1.0)), axis=None)


def describe(strategy: Strategy) -> str:
    """`2 x GPU`, or `1 x CPU (8 cores)`."""
    kind = tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type
    device = f"CPU ({os.cpu_count()} cores)" if kind == "CPU" else str(kind)
    return f"{strategy.num_replicas_in_sync} x {device}"
