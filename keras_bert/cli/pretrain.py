"""`keras-bert pretrain`: a corpus in, a BERT out.

    keras-bert pretrain --input_file=corpus --model_dir=bert --size=mini --num_train_steps=10000

The run directory holds the model in our format (`keras_bert.json`, `vocab.txt`, `model.safetensors`), which `finetune`
and `convert` take, and the record of the run: `flags.txt`, `metrics.jsonl`, `final_metrics.json`, `checkpoints/`,
`tensorboard/`. The same command goes on with a run that was stopped.
"""

import dataclasses
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from keras_bert.checkpoints.checkpoints import WEIGHTS_FILE, open_checkpoint
from keras_bert.cli import model_dir
from keras_bert.cli.flags import Flags, note
from keras_bert.cli.model_dir import FINAL_FILE
from keras_bert.config import (
    SIZES,
    EncoderConfig,
    MaskingConfig,
    OptimizerConfig,
    PretrainConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
    choose,
    dumps,
)
from keras_bert.errors import ConfigError
from keras_bert.files import sha256, write_atomic
from keras_bert.pretrain.corpus import MANIFEST, VOCABULARY, read_json
from keras_bert.pretrain.pairs import PAIRS
from keras_bert.text.vocabulary import fingerprint, read_vocabulary
from keras_bert.training.states import locked

KINDS = (PretrainConfig, MaskingConfig, EncoderConfig, OptimizerConfig, TrainConfig, RunConfig)


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("pretrain", "train a BERT on a corpus that `keras-bert corpus` made", KINDS, ["num_train_epochs"])
    flags.require("input_file", "The corpus: its directory, or a glob of TFRecord files.")
    flags.require("model_dir", "Directory of the run; a run found there with the same flags is continued.")
    flags.add("size", "", "Shape of a new model; --init_checkpoint has its own.", ("", *SIZES))
    flags.add("vocab_file", "", "Vocabulary of a new model; default: the one that is kept in the corpus.")
    flags.add("do_lower_case", True, "Is the text of a new model lower-cased? Default: as the corpus was made.")
    flags.add("init_checkpoint", "", "Model to go on from (continued, in-domain pretraining); default: a new one.")
    flags.add("eval_input_file", "", "Corpus to evaluate on; default: none, only training losses are recorded.")
    flags.add("phase_two_input_file", "", "Corpus of the last --phase_two_steps, usually of longer rows.")
    flags.add("max_seq_length", 512, "Most tokens in a row, and positions of a new model.")
    flags.add("overwrite", False, "Delete the run found in --model_dir and start anew.")
    return flags


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    flags = define()
    if not flags.parse(argv):
        return 0
    run(flags)
    return 0


def run(flags: Flags) -> dict[str, Any]:
    """Check everything that can be checked at once, then train; returns what `final_metrics.json` holds.

    Raises:
        ConfigError: flags that contradict each other, or a directory that cannot be used.
        DataError: a corpus or vocabulary that cannot be used.
    """
    pretraining, optimizer = flags.config(PretrainConfig), flags.config(OptimizerConfig)
    masking, config, keeping = flags.config(MaskingConfig), flags.config(TrainConfig), flags.config(RunConfig)
    folder = Path(flags["model_dir"])
    check(flags, pretraining, optimizer)
    if pretraining.pack_rows and (config.jit_compile == "on" or config.distribution_strategy == "tpu"):
        raise ConfigError("--pack_rows makes batches of changing size, which --jit_compile=on and a TPU cannot take")
    model_dir.check(folder, flags)
    encoder, vocabulary, text, found = model(flags)

    note("starting TensorFlow")
    import keras

    from keras_bert.pretrain.objectives import PretrainNetwork
    from keras_bert.pretrain.reader import Corpus
    from keras_bert.pretrain.run import CorpusBatches, Phase, pretrain
    from keras_bert.training import hardware, loop
    from keras_bert.training.devices import meet, strategy_for, worker

    strategy = strategy_for(config)

    def rows(source: str) -> CorpusBatches:
        corpus = Corpus.open(source, vocab_size=encoder.vocab_size, say=note)
        if corpus.manifest.get("vocabulary_sha256", fingerprint(vocabulary)) != fingerprint(vocabulary):
            raise ConfigError(f"{source}: was made with another vocabulary than that of the model")
        longest = corpus.manifest.get("config", {}).get("max_seq_length", flags["max_seq_length"])
        if longest > flags["max_seq_length"]:
            raise ConfigError(f"{source}: has rows of {longest} tokens, --max_seq_length is {flags['max_seq_length']}")
        return CorpusBatches(corpus, vocabulary, masking, config, longest, pretraining.pack_rows)

    sources = [flags["input_file"], *filter(None, [flags["phase_two_input_file"]])]
    second = pretraining.phase_two_steps
    steps = [pretraining.num_train_steps - second, second]
    sizes = [config.train_batch_size, pretraining.phase_two_batch_size or config.train_batch_size]
    phases = [Phase(rows(source), n, size) for source, n, size in zip(sources, steps, sizes, strict=False)]
    held_out = rows(flags["eval_input_file"]) if flags["eval_input_file"] else None
    keras.utils.set_random_seed(config.seed)
    network = PretrainNetwork(
        encoder,
        classes(phases[0].rows.corpus.manifest),
        objectives=list(pretraining.weights) or None,
        reduction=pretraining.loss_reduction,
    )
    for source in filter(None, (*(phase.rows for phase in phases), held_out)):
        source.check(network.head)
    if found is not None:
        from keras_bert.checkpoints import checkpoints

        report = checkpoints.load(network, found)
        note(f"{found.path}: {report}")
    begun = time.monotonic()
    with ExitStack() as stack:
        if not keeping.dry_run and worker(strategy)[0] == 0:
            stack.enter_context(locked(folder))
            model_dir.prepare(folder, flags)
        meet(strategy)
        kept = loop.Keeping(None if keeping.dry_run else folder, keeping, catch_signals=True)
        history = pretrain(
            network, vocabulary, text, phases, held_out, config, pretraining, optimizer, kept, note, sys.stderr
        )
    final = {
        "schema": 1,
        "task": "pretrain",
        "last": history[-1],
        "history": history,
        "seconds": round(time.monotonic() - begun, 2),
        "weights_sha256": sha256(folder / WEIGHTS_FILE),
        **hardware.environment(),
    }
    if not (folder / FINAL_FILE).exists():  # else the run was finished before, and nothing was trained now
        write_atomic(folder / FINAL_FILE, dumps(final))
    print("  ".join(f"{k} {v:.4f}" for k, v in history[-1].items() if isinstance(v, float)), flush=True)
    note(f"saved in {folder}")
    return final


def check(flags: Flags, pretraining: PretrainConfig, optimizer: OptimizerConfig) -> None:
    """Refuse flags that contradict each other.

    Raises:
        ConfigError: they do.
    """
    if flags["init_checkpoint"]:
        if flags["size"] or flags["vocab_file"] or flags.given("do_lower_case"):
            raise ConfigError("--init_checkpoint has a size, a vocabulary and a case; give it or those, not both")
        if given := flags.given_of(EncoderConfig):
            raise ConfigError(
                f"--init_checkpoint says what the encoder is; leave out {', '.join(f'--{n}' for n in given)}"
            )
    elif not flags["size"]:
        raise ConfigError("a new model needs a --size; or name one to go on from with --init_checkpoint")
    elif optimizer.freeze_layers >= 0:
        raise ConfigError("--freeze_layers of a new model would keep random weights; it needs --init_checkpoint")
    if flags["input_file"].endswith((".txt", ".jsonl", ".json", ".csv", ".tsv")):
        raise ConfigError(f"--input_file {flags['input_file']}: is text; make a corpus of it with `keras-bert corpus`")
    if bool(flags["phase_two_input_file"]) != bool(pretraining.phase_two_steps):
        raise ConfigError("--phase_two_input_file and --phase_two_steps go together; give both or none")
    if optimizer.num_warmup_steps > pretraining.num_train_steps:
        raise ConfigError(
            f"--num_warmup_steps {optimizer.num_warmup_steps} is more than the {pretraining.num_train_steps} of the run"
        )
    if flags["max_seq_length"] < 5:
        raise ConfigError(f"--max_seq_length must be at least 5, got {flags['max_seq_length']}")


def model(flags: Flags) -> tuple[EncoderConfig, list[str], TextConfig, Any]:
    """The shape, vocabulary and text settings of the model, and the checkpoint that it goes on from, or None."""
    length = flags["max_seq_length"]
    if flags["init_checkpoint"]:
        found = open_checkpoint(flags["init_checkpoint"])
        return found.encoder, found.vocabulary, found.text, found
    manifest = manifest_of(flags["input_file"])
    made = manifest.get("config", {})
    file = flags["vocab_file"] or (Path(flags["input_file"]) / VOCABULARY if manifest else "")
    if not file:
        raise ConfigError(f"--input_file {flags['input_file']}: has no vocabulary beside it; give --vocab_file")
    vocabulary = read_vocabulary(file)
    encoder = dataclasses.replace(
        SIZES[flags["size"]],
        vocab_size=len(vocabulary),
        max_positions=max(length, 8),
        pad_token_id=vocabulary.index("[PAD]"),
        **flags.given_of(EncoderConfig),
    )
    lower = flags["do_lower_case"] if flags.given("do_lower_case") else made.get("do_lower_case", True)
    text = TextConfig(
        do_lower_case=lower, max_seq_length=min(128, length), flavour=made.get("flavour", TextConfig.flavour)
    )
    return encoder, vocabulary, text, None


def manifest_of(source: str) -> dict[str, Any]:
    """What the build said of the corpus in a directory; nothing for single files."""
    file = Path(source) / MANIFEST
    return read_json(file) if file.exists() else {}


def classes(manifest: dict[str, Any]) -> int:
    """Labels of sentence pairs in a corpus; records without a manifest are the original's, which have two."""
    return choose(PAIRS, manifest["config"]["pairs"], "pairs of the corpus").classes if manifest else 2
