"""What is served and how: the server's flags, and TensorFlow Serving's model configuration file."""

import dataclasses
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from keras_bert.errors import ConfigError
from keras_bert.serving.protos import MODEL_CONFIG, message_types

log = logging.getLogger("keras_bert.server")
Policy = Callable[[Iterable[int]], set[int]]
_OTHER = list(MODEL_CONFIG["ModelType"]).index("OTHER")


def _flag(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": None})


@dataclass(frozen=True)
class ServerConfig:
    """How requests are taken and run. Names are those of TensorFlow Serving where it has them."""

    max_batch_size: int = _flag(16, "Rows of concurrent requests that run together; 1 runs each request alone.")
    batch_timeout_micros: int = _flag(0, "How long a request may wait for others while a thread is idle.")
    num_batch_threads: int = _flag(2, "Batches that run at the same time; each uses all cores.")
    max_request_bytes: int = _flag(16 * 2**20, "Larger request bodies are refused with status 413.")
    max_request_rows: int = _flag(10_000, "Requests of more rows are refused with status 413.")
    request_timeout: float = _flag(30.0, "Seconds until status 504 answers a request that is read; 0: never.")
    head_timeout: float = _flag(20.0, "Seconds that a client has for the head of a request; 0: any time.")
    body_timeout: float = _flag(60.0, "Seconds for the body of a request, and to take an answer in; 0: any time.")
    limit_concurrency: int = _flag(512, "Connections at a time; status 503 answers requests on further ones.")
    drain_timeout: float = _flag(30.0, "Seconds that open requests have after SIGTERM, before status 503 answers them.")
    openai: bool = _flag(False, "Answer /v1/embeddings and /rerank too, as clients of OpenAI, Cohere and Jina ask.")
    rest_api_enable_cors_support: bool = _flag(False, "Let pages of other sites ask, from any browser.")
    model_config_file_poll_wait_seconds: float = _flag(0.0, "How often to read --model_config_file again; 0: never.")
    file_system_poll_wait_seconds: float = _flag(1.0, "How often to look for new and removed versions; 0: never.")

    def __post_init__(self) -> None:
        for name in (
            "max_batch_size",
            "num_batch_threads",
            "max_request_bytes",
            "max_request_rows",
            "limit_concurrency",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        seconds = [name for name in vars(self) if name.endswith(("_timeout", "_seconds"))]
        for name in ("batch_timeout_micros", *seconds):
            if not 0 <= getattr(self, name) <= 10**9:
                raise ConfigError(f"{name} must be from 0 to 10^9, got {getattr(self, name)}")


@dataclass(frozen=True)
class Latest:
    """The largest `number` of what is there."""

    number: int = 1

    def __call__(self, versions: Iterable[int]) -> set[int]:
        return set(sorted(versions)[-self.number :])


@dataclass(frozen=True)
class Specific:
    """These versions, where they are there."""

    versions: frozenset[int]

    def __call__(self, versions: Iterable[int]) -> set[int]:
        return set(self.versions.intersection(versions))


@dataclass(frozen=True)
class ModelConfig:
    """One model: the directory of its versions, which of them are served, and names for some."""

    base_path: str
    policy: Policy = Latest()
    labels: dict[str, int] = dataclasses.field(default_factory=dict)


def read_model_config(path: str) -> dict[str, ModelConfig]:
    """The models of a `--model_config_file`, the text form of TensorFlow Serving's ModelServerConfig.

    Raises:
        ConfigError: the file cannot be read, is not of that form, or names no model or one twice.
    """
    message = message_types(MODEL_CONFIG)["ModelServerConfig"]()
    try:
        text_format.Parse(Path(path).read_text("utf-8"), message)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ConfigError(f"--model_config_file {path}: {error}") from error
    models: dict[str, ModelConfig] = {}
    for model in message.model_config_list.config:
        if not model.name or not model.base_path or model.name in models:
            raise ConfigError(f"--model_config_file {path}: each model needs a name of its own and a base_path")
        labels = {label.key: label.value for label in model.version_labels}
        if model.model_platform not in ("", "tensorflow") or model.model_type == _OTHER:
            raise ConfigError(f"--model_config_file {path}: {model.name} is not of the platform tensorflow")
        if model.HasField("logging_config"):
            log.warning("%s: %s has a logging_config; no requests are logged here", path, model.name)
        models[model.name] = ModelConfig(model.base_path, _policy(model.model_version_policy), labels)
    if not models:
        raise ConfigError(f"--model_config_file {path}: names no model")
    return models


def _policy(message: Any) -> Policy:
    if message.HasField("all"):
        return set
    if message.HasField("specific"):
        return Specific(frozenset(message.specific.versions))
    return Latest(message.latest.num_versions or 1)
