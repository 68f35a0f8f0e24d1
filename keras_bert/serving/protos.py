"""The messages of TensorFlow Serving that are read and written here, declared without its package (protobuf alone).

They live in a pool of their own, so that `tensorflow-serving-api` may be imported beside them. Messages of
TensorFlow inside them (`TensorProto`, `Example`) are declared as the bytes they are on the wire.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "double": _Field.TYPE_DOUBLE,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "uint32": _Field.TYPE_UINT32,
}

_Messages = Mapping[str, Mapping[str, tuple[int, str]] | Sequence[str]]

MODEL_CONFIG: _Messages = {
    "ModelServerConfig": {"model_config_list": (1, "ModelConfigList")},
    "ModelConfigList": {"config": (1, "*ModelConfig")},
    "ModelConfig": {
        "name": (1, "string"),
        "base_path": (2, "string"),
        "model_type": (3, "ModelType"),
        "model_platform": (4, "string"),
        "logging_config": (6, "LoggingConfig"),
        "model_version_policy": (7, "VersionPolicy"),
        "version_labels": (8, "*Label"),
    },
    "VersionPolicy": {"latest": (100, "Latest"), "all": (101, "All"), "specific": (102, "Specific")},
    "Latest": {"num_versions": (1, "uint32")},
    "All": {},
    "Specific": {"versions": (1, "*int64")},
    "Label": {"key": (1, "string"), "value": (2, "int64")},
    "ModelType": ["MODEL_TYPE_UNSPECIFIED", "TENSORFLOW", "OTHER"],
    "LoggingConfig": {"log_collector_config": (1, "LogCollector"), "sampling_config": (2, "Sampling")},
    "LogCollector": {"type": (1, "string"), "filename_prefix": (2, "string")},
    "Sampling": {"sampling_rate": (1, "double"), "attributes": (2, "int32")},
}
"""`tensorflow_serving/config/model_server_config.proto`, the file that `--model_config_file` names."""

PREDICTION_LOG: _Messages = {
    "PredictionLog": {
        "classify_log": (2, "ExamplesLog"),
        "regress_log": (3, "ExamplesLog"),
        "predict_log": (6, "PredictLog"),
    },
    "PredictLog": {"request": (1, "PredictRequest")},
    "PredictRequest": {"model_spec": (1, "ModelSpec"), "inputs": (2, "*NamedTensor")},
    "PredictResponse": {"outputs": (1, "*NamedTensor"), "model_spec": (2, "ModelSpec")},
    "NamedTensor": {"key": (1, "string"), "value": (2, "bytes")},
    "ModelSpec": {"name": (1, "string"), "signature_name": (3, "string")},
    "ExamplesLog": {"request": (1, "ExamplesRequest")},
    "ExamplesRequest": {"model_spec": (1, "ModelSpec"), "input": (2, "Input")},
    "Input": {"example_list": (1, "ExampleList"), "example_list_with_context": (2, "ExampleList")},
    "ExampleList": {"examples": (1, "*bytes"), "context": (2, "bytes")},
}
"""`tensorflow_serving/apis/prediction_log.proto`, the records of a warm-up file."""


def message_types(messages: _Messages) -> dict[str, Any]:
    """Message classes by name, from `{message: {field: (number, type)}}`; `*` before a type repeats it.

    A list of names in place of the fields makes an enumeration.
    """
    file = descriptor_pb2.FileDescriptorProto(name="serving.proto", package="serving", syntax="proto3")
    for name, fields in messages.items():
        if not isinstance(fields, Mapping):
            values = [descriptor_pb2.EnumValueDescriptorProto(name=v, number=i) for i, v in enumerate(fields)]
            file.enum_type.add(name=name, value=values)
            continue
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = _Field.LABEL_REPEATED if kind.startswith("*") else _Field.LABEL_OPTIONAL
            kind = kind.removeprefix("*")
            added = message.field.add(name=field, number=number, label=label)
            if kind in _SCALARS:
                added.type = _SCALARS[kind]
            else:
                enumeration = not isinstance(messages[kind], Mapping)
                added.type = _Field.TYPE_ENUM if enumeration else _Field.TYPE_MESSAGE
                added.type_name = f".serving.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    find = pool.FindMessageTypeByName
    names = [name for name, fields in messages.items() if isinstance(fields, Mapping)]
    return {name: message_factory.GetMessageClass(find(f"serving.{name}")) for name in names}
