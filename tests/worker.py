"""One worker of several: trains 20 uneven steps and saves its weights. TF_CONFIG says which one it is.

python tests/worker.py OUTPUT.npz
"""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "training"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_bert.config import TrainConfig
from keras_bert.training.devices import strategy_for, worker

strategy = strategy_for(TrainConfig(distribution_strategy="multi_worker_mirrored"))

import numpy as np  # noqa: E402
import test_training as toys  # noqa: E402

start, examples = toys.network(), toys.toy(33)
to = toys.trainer(start, "multi_worker_mirrored", optimizer=toys.CLIPPED)
said = toys.train(to, examples, toys.uneven(33, 8, steps=20))
loss, answers = toys.evaluate(to, examples)
number, count = worker(to.strategy)
found = {path.replace("/", "|"): value for path, value in toys.weights(to.network).items()}
np.savez(sys.argv[1], **found, said=said, loss=loss, who=[number, count], scores=answers["probabilities"])
