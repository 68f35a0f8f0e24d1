"""`keras-bert versions`: list, label, prune and roll back the versions of an exported model."""

from pathlib import Path

from keras_bert.cli.export import parse_version
from keras_bert.cli.flags import Flags, note
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.files import write_atomic
from keras_bert.serving import golden, versions


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("versions", "list, label, prune and roll back the versions of an exported model")
    flags.require("export_dir", "Directory of the model; versions are its subdirectories.")
    flags.add("label", "", "LABEL:VERSION lets clients ask for /labels/LABEL; LABEL: takes it away.")
    flags.add("roll_back", "", "Publish this version again as the newest one.")
    flags.add("keep", 0, "Delete all but this many of the newest versions, and those with a label; 0 deletes none.")
    flags.add("model_config_file", "", "Write the versions and labels to this file, for TensorFlow Serving.")
    flags.add("base_path", "", "The model's directory as the server sees it; default: /models/NAME.")
    return flags


def main(argv: list[str]) -> int:
    """Run the command: label, roll back, delete, write the file, in this order; then print the versions."""
    flags = define()
    if not flags.parse(argv):
        return 0
    base = Path(flags["export_dir"])
    label, _, labelled = flags["label"].partition(":")
    if flags["label"] and ":" not in flags["label"]:
        raise ConfigError(f"--label must be LABEL:VERSION, such as stable:3, got {flags['label']!r}")
    label_version = parse_version(labelled, "label") if labelled else None
    back = parse_version(flags["roll_back"], "roll_back") if flags["roll_back"] else None
    if flags["keep"] < 0:
        raise ConfigError(f"--keep must be 0 or more, got {flags['keep']}")
    if flags["base_path"] and not flags["model_config_file"]:
        raise ConfigError("--base_path has no meaning without --model_config_file")
    if not versions.versions(base):
        raise CheckpointError(f"{base}: has no version of a model; run `keras-bert export` first")
    if label:
        versions.set_label(base, label, label_version)
    if back is not None:
        note(f"version {back} is published again as {versions.roll_back(base, back).name}")
    if flags["keep"]:
        deleted = versions.prune(base, flags["keep"])
        note(f"deleted {len(deleted)} versions" + (f": {', '.join(map(str, deleted))}" if deleted else ""))
    if flags["model_config_file"]:
        name = base.absolute().name
        models = {name: (base, flags["base_path"] or f"/models/{name}")}
        write_atomic(Path(flags["model_config_file"]), versions.model_config(models))
    for line in table(base):
        print(line)
    return 0


def table(base: Path) -> list[str]:
    """A line for each version: number, time of export, size, what it is, labels."""
    found, labels = versions.versions(base), versions.labels(base)
    out = []
    for version in found:
        folder = versions.folder_of(base, version)
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        try:
            content = golden.read_manifest(folder)
            what = f"{content['created']}  {content['head']['task']}, {content['precision']}"
        except CheckpointError:
            what = "not exported by keras-bert"
        marks = [label for label, number in labels.items() if number == version]
        marks += ["(newest)"] if version == found[-1] else []
        out.append(f"{version:>8}  {size / 1e6:8.1f} MB  {what}  {' '.join(marks)}".rstrip())
    return out
