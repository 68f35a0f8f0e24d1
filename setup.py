"""Packaging. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'^__version__ = "(.+)"$', (here / "keras_bert/__init__.py").read_text("utf8"), re.M).group(1)

extras = {
    "serve": ["starlette>=0.40", "uvicorn>=0.30"],
    "hub": ["huggingface_hub>=0.24", "kagglehub>=0.3"],
    "plot": ["matplotlib>=3.8"],  # the pictures of reports
    "vocab": ["tokenizers>=0.20"],
    "onnx": ["onnx>=1.16", "onnxruntime>=1.18", "torch>=2.5"],  # to write it; to run it onnxruntime alone
    "generate": ["rouge-score>=0.1.2", "sacrebleu>=2.4"],
    "beam": ["apache-beam>=2.60"],  # in an environment of its own: its protobuf is older than TensorFlow's
    "gpu": ["tensorflow[and-cuda]>=2.20,<2.21"],
    "garden": ["tf-models-official~=2.20.0"],
    "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.25"],
}
extras["peers"] = [  # what benchmarks and proofs compare with
    *extras["onnx"],
    "bert-tensorflow==1.0.4",
    "jax>=0.5",
    "keras-hub",
    "matplotlib>=3.8",
    "onnx>=1.16",
    "onnxruntime>=1.18",
    "openvino>=2024.4",
    "seqeval>=1.2",
    "scikit-learn>=1.5",
    "transformers>=4.50",
]
extras["dev"] = [
    *extras["plot"],
    *extras["serve"],
    *extras["vocab"],
    "build",
    "grpcio>=1.60",  # the tests of export/client.py
    "huggingface_hub>=0.24",
    "hypothesis>=6.100",
    "ipykernel>=6.29",
    "mypy>=1.11",
    "nbclient>=0.10",
    "pre-commit>=3.7",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "pyyaml>=6",
    "ruff>=0.6",
    "scikit-learn>=1.5",
    "wrapt>=1.14",  # tests/conftest.py; TensorFlow brings it anyway
]

setup(
    name="keras3-bert",
    version=version,
    description="BERT from raw text to a served answer, in TensorFlow and Keras 3.",
    long_description=(here / "README.md").read_text("utf8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["keras_bert", "keras_bert.*"]),
    package_data={"keras_bert": ["py.typed", "samples/*", "text/unicode/*", "serving/server_ops.txt"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=1.4",
        "keras>=3.13.2,<4",
        "keras-nlp>=0.26",
        "numpy>=1.26",
        "safetensors>=0.4.5",
        "tensorflow>=2.20,<2.21",
        "tensorflow-text>=2.20,<2.21; platform_system != 'Windows'",
    ],
    extras_require=extras,
    entry_points={"console_scripts": ["keras-bert = keras_bert.__main__:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
    ],
)
