"""`keras-bert verify_export`: does an exported model still answer as it did when it was exported?

Replays the golden requests of the manifest: in a fresh load of the version, or against a live server.
"""

from pathlib import Path
from urllib.parse import urlsplit

from keras_bert.cli.flags import Flags, note
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.serving import golden, versions


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("verify_export", "ask an exported model whether it still answers as it did")
    flags.require("export_dir", "A version directory, or the directory of the model: then its newest version.")
    flags.add("url", "", "Ask this server instead, such as http://localhost:8501 or .../v1/models/NAME/versions/1.")
    flags.add("timeout", 60.0, "Seconds that a server may take for an answer.")
    return flags


def main(argv: list[str]) -> int:
    """Run the command; prints how far the answers of each signature lie apart."""
    flags = define()
    if not flags.parse(argv):
        return 0
    folder = version_folder(Path(flags["export_dir"]))
    url = model_url(flags["url"], folder) if flags["url"] else ""
    manifest = golden.read_manifest(folder)
    golden.check_files(folder, manifest)
    worst = golden.replay(manifest, golden.server(url, manifest, flags["timeout"]) if url else loaded(folder))
    for name, apart in worst.items():
        print(f"{name:16} {apart:.1e}")
    note(f"{url or folder}: {len(manifest['golden'])} requests answered as exported, within {manifest['tolerance']:g}")
    return 0


def loaded(folder: Path) -> golden.Ask:
    """Asks a fresh load of the version, in the manner of every client: without the classes of this package."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  (registers the ops of the tokenizer)

    try:
        model = tf.saved_model.load(str(folder))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise CheckpointError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]})") from error
    return golden.loaded(model)


def version_folder(path: Path) -> Path:
    """`path` itself where it is a version, else the newest version in it.

    Raises:
        CheckpointError: there is none.
    """
    if (path / "saved_model.pb").exists():
        return path
    found = versions.versions(path)
    if not found:
        raise CheckpointError(f"{path}: is no version of a model and has none in it; run `keras-bert export` first")
    return versions.folder_of(path, found[-1])


def model_url(url: str, folder: Path) -> str:
    """The address of the model: a server alone is asked for the model and version that the directory is named for.

    Raises:
        ConfigError: it is no address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"--url must be like http://localhost:8501, got {url!r}")
    if parts.path.strip("/"):
        return url.rstrip("/").removesuffix(":predict")
    folder = folder.absolute()
    return f"{url.rstrip('/')}/v1/models/{folder.parent.name}/versions/{int(folder.name)}"
