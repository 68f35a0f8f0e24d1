"""A stand-in server with TF Serving's REST contract, for laptops, notebooks and tests.

It answers status, metadata, `:predict`, `:classify` and `:regress` with the paths, bodies, status codes and messages
of TF Serving, so that a client written against it runs unchanged against the real one. It needs the extra `serve`
(starlette and uvicorn). Importing this package loads neither them nor TensorFlow.
"""

from typing import Any

__all__ = ["create_app", "serve"]


def __getattr__(name: str) -> Any:
    """Loads `create_app` and `serve` on first use, because they bring TensorFlow with them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from keras_bert.server import rest

    return getattr(rest, name)
