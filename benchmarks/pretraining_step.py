"""One step of masked-language-model pretraining: keras_bert, KerasHub, Model Garden and Hugging Face on PyTorch.

    python benchmarks/pretraining_step.py [--quick] [--cases=mini-128,base-128]

Question: how long does a step take (forward, backward, clipping by the global norm, AdamW), with the same sizes, batch,
token ids and 20 masked positions a row, dropout 0.1, a vocabulary of 30,522? Hugging Face's own model computes the
vocabulary at every position; `gathered` calls its head at the masked positions only, which is what a careful user
writes. Precisions and Model Garden as in `training_step.py`.

Expected: faster than every peer at either precision.
"""

from collections.abc import Callable
from typing import Any

from training_step import (
    SIZES,
    VOCABULARY,
    Peers,
    Step,
    backbone_of,
    encoder_of,
    fitted,
    garden_encoder,
    repeated,
    run,
    torch_step,
    transformers_config,
)

MASKED = 20


def rows(batch: int, length: int, masked: int = MASKED) -> tuple:
    """Token ids `[batch, length]`, all words; positions that are masked and what was there, `[batch, masked]`."""
    import numpy as np

    random = np.random.default_rng(0)
    ids = random.integers(1000, VOCABULARY, (batch, length))
    positions = np.sort(np.stack([random.permutation(length)[:masked] for _ in range(batch)]))
    return ids, positions, np.take_along_axis(ids, positions, 1)


def batch_of(count: int, length: int, masked: int = MASKED) -> dict[str, Any]:
    """These rows as our networks of pretraining take them."""
    import numpy as np

    ids, positions, words = (x.astype("int32") for x in rows(count, length, masked))
    return {
        "token_ids": ids,
        "segment_ids": ids * 0,
        "padding_mask": ids > 0,
        "masked_positions": positions,
        "masked_ids": words,
        "masked_weights": np.ones(words.shape, "float32"),
    }


def ours(size: str, length: int, precision: str) -> Step:
    from keras_bert.pretrain.objectives import PretrainNetwork
    from keras_bert.pretrain.run import Pretraining

    batch = batch_of(SIZES[size][-1], length)
    shape = encoder_of(size)
    return repeated(lambda policy: Pretraining(PretrainNetwork(shape, 0, dtype=policy)), batch, precision)


def keras_hub(size: str, length: int, precision: str) -> Step:
    import keras
    import keras_hub

    ids, positions, words = rows(SIZES[size][-1], length)
    model = keras_hub.models.BertMaskedLM(backbone_of(size, precision), preprocessor=None)
    features = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": ids > 0, "mask_positions": positions}
    return fitted(keras, model, features, words, jit_compile=False)


def garden(size: str, length: int, precision: str) -> Step:
    import tensorflow_models as tfm
    import tf_keras

    ids, positions, words = rows(SIZES[size][-1], length)
    whole = tfm.nlp.models.BertPretrainer(garden_encoder(size, precision), 2, MASKED, activation="gelu")
    model = tf_keras.Model(whole.inputs, whole.outputs[1])  # in the order of names: classification, masked_lm
    features = {"input_word_ids": ids, "input_mask": ids * 0 + 1, "input_type_ids": ids * 0}
    return fitted(tf_keras, model, features | {"masked_lm_positions": positions}, words)


def hugging_face(gathered: bool) -> Callable[[str, int, str], Step]:
    def build(size: str, length: int, precision: str) -> Step:
        import torch
        import transformers

        hidden, count = SIZES[size][1], SIZES[size][-1]
        ids, positions, words = (torch.tensor(x).long() for x in rows(count, length))
        model = transformers.BertForMaskedLM(transformers_config(size)).train()
        labels = torch.full_like(ids, -100).scatter(1, positions, words)
        places = positions[..., None].expand(-1, -1, hidden)

        def loss_at_positions() -> Any:
            logits = model.cls(model.bert(input_ids=ids).last_hidden_state.gather(1, places))
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), words.flatten())

        def loss() -> Any:
            return model(input_ids=ids, labels=labels).loss

        return torch_step(model, loss_at_positions if gathered else loss, precision == "bfloat16")

    return build


PEERS: Peers = {
    "keras_bert": ours,
    "KerasHub": keras_hub,
    "Model Garden": garden,
    "Hugging Face": hugging_face(gathered=False),
    "Hugging Face, gathered": hugging_face(gathered=True),
}


if __name__ == "__main__":
    run(
        __file__,
        __doc__,
        PEERS,
        "A pretraining step",
        "mini-128",
        "`python benchmarks/pretraining_step.py`: mini is 4 layers of 256 with batch 32; 20 masked positions a row, "
        "AdamW, clipping, dropout 0.1, without sentence pairs;",
    )
