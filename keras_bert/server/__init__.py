"""A stand-in server with TF Serving's REST contract, for laptops, notebooks and tests.

It answers status, metadata, `:predict`, `:classify` and `:regress` with the paths, bodies, status codes and messages
of TF Serving, so that a client written against it runs unchanged against the real one; with a flag also the paths of
OpenAI's embeddings and of Cohere's and Jina's rerankers. It needs the extra `serve` (starlette and uvicorn). Importing
this package loads neither them nor TensorFlow.
"""

from keras_bert.rooms import exported

__getattr__, __dir__ = exported(__name__, {"rest": "create_app", "running": "serve"})
