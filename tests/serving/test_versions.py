"""Version directories: published whole, deleted whole, and what the server is told of them."""

import json
import os
import subprocess
import sys

import pytest

from keras_bert.__main__ import main
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.server.settings import read_model_config
from keras_bert.serving import versions


def publish(base, content="x", version=None):
    with versions.publishing(base, version) as (folder, target):
        (folder / "variables").mkdir()
        (folder / "saved_model.pb").write_text(content)
    return target


def names(base):
    return sorted(p.name for p in base.iterdir())


def test_versions_count_up_and_other_names_do_not_count(tmp_path):
    for name in ("7", "010", "abc", "-3", ".tmp-99", "1.5", "²"):
        (tmp_path / name).mkdir()
    (tmp_path / "12").write_text("a file")
    assert versions.versions(tmp_path) == [7, 10]
    assert [publish(tmp_path).name, publish(tmp_path, version=40).name, publish(tmp_path).name] == ["11", "40", "41"]
    assert versions.folder_of(tmp_path, 10).name == "010"


@pytest.mark.parametrize("version", [0, -1, 2**63, 7, 10])
def test_a_version_that_cannot_be_is_refused(version, tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "010").mkdir()
    with pytest.raises(ConfigError, match=r"must be from 1 to 9223372036854775807|exists; give another --version"):
        publish(tmp_path, version=version)
    assert names(tmp_path) == ["010", "7"]


def test_nothing_is_seen_of_a_version_until_it_is_whole(tmp_path):
    with versions.publishing(tmp_path / "model") as (folder, target):
        assert versions.versions(tmp_path / "model") == []
        assert folder.name.startswith(".tmp-1-")
    assert target == tmp_path / "model" / "1"
    with pytest.raises(RuntimeError), versions.publishing(tmp_path / "model"):
        raise RuntimeError
    assert names(tmp_path / "model") == ["1"]


def test_a_file_in_the_place_of_the_version_stops_cleanly(tmp_path):
    (tmp_path / "3").write_text("kept")
    with pytest.raises(CheckpointError, match="3: cannot be written"):
        publish(tmp_path, version=3)
    assert names(tmp_path) == ["3"]
    assert (tmp_path / "3").read_text() == "kept"


def test_rolling_back_publishes_the_old_files_again(tmp_path):
    for content in ("a", "b"):
        publish(tmp_path, content)
    target = versions.roll_back(tmp_path, 1)
    assert target.name == "3"
    assert (target / "saved_model.pb").read_text() == "a"
    assert os.stat(target / "saved_model.pb").st_ino == os.stat(tmp_path / "1/saved_model.pb").st_ino
    versions.prune(tmp_path, 1)
    assert names(tmp_path) == ["3"]
    assert (target / "saved_model.pb").read_text() == "a"
    with pytest.raises(ConfigError, match=r"has no version 1; it has \[3\]"):
        versions.roll_back(tmp_path, 1)


def test_pruning_keeps_the_newest_and_the_labelled(tmp_path):
    for _ in range(5):
        publish(tmp_path)
    versions.set_label(tmp_path, "stable", 2)
    assert versions.prune(tmp_path, 2) == [1, 3]
    assert versions.versions(tmp_path) == [2, 4, 5]
    assert versions.prune(tmp_path, 9) == []
    with pytest.raises(ConfigError, match="keep must be at least 1"):
        versions.prune(tmp_path, 0)


def test_labels_are_set_moved_and_taken_away(tmp_path):
    for _ in range(2):
        publish(tmp_path)
    versions.set_label(tmp_path, "stable", 1)
    versions.set_label(tmp_path, "canary", 2)
    versions.set_label(tmp_path, "stable", 2)
    assert versions.labels(tmp_path) == {"canary": 2, "stable": 2}
    versions.set_label(tmp_path, "canary", None)
    assert versions.labels(tmp_path) == {"stable": 2}
    with pytest.raises(ConfigError, match=r"has no version 9; it has \[1, 2\]"):
        versions.set_label(tmp_path, "stable", 9)
    for label in ("", "a/b", "a b", "stäble"):
        with pytest.raises(ConfigError, match="must be letters, digits and _"):
            versions.set_label(tmp_path, label, 1)


@pytest.mark.parametrize("content", ["[1]", "{", '{"a": "1"}', '{"a": true}'])
def test_damaged_labels_are_refused(content, tmp_path):
    (tmp_path / versions.LABELS).write_text(content)
    with pytest.raises(CheckpointError, match=r"labels\.json: .*; delete it and set the labels again"):
        versions.labels(tmp_path)


def test_the_server_reads_the_model_config_file(tmp_path):
    for name in ("plain", "labelled"):
        for _ in range(4):
            publish(tmp_path / name)
    versions.set_label(tmp_path / "labelled", "stable", 1)
    versions.set_label(tmp_path / "labelled", "old", 2)
    odd = 'mod"els\\ é\n'
    models = {"plain": (tmp_path / "plain", "/models/plain"), "labelled": (tmp_path / "labelled", f"/{odd}")}
    (tmp_path / "models.config").write_text(versions.model_config(models), "utf-8")
    found = read_model_config(str(tmp_path / "models.config"))
    assert {name: str(config.base_path) for name, config in found.items()} == {
        "plain": "/models/plain",
        "labelled": f"/{odd}",
    }
    assert found["plain"].policy([1, 2, 3, 4]) == {4}
    assert found["labelled"].policy([1, 2, 3, 4]) == {1, 2, 4}
    assert found["labelled"].labels == {"old": 2, "stable": 1}


def test_the_command(tmp_path, capsys):
    base = tmp_path / "tweets"
    for _ in range(3):
        publish(base)
    config = tmp_path / "models.config"
    flags = ["--label=stable:1", "--roll_back=2", "--keep=1", f"--model_config_file={config}", "--base_path=/m/t"]
    assert main(["versions", f"--export_dir={base}", *flags]) == 0
    said = capsys.readouterr()
    assert "version 2 is published again as 4" in said.err
    assert "deleted 2 versions: 2, 3" in said.err
    lines = [line.split() for line in said.out.splitlines()]
    assert [line[0] for line in lines] == ["1", "4"]
    assert lines[0][-1] == "stable"
    assert lines[1][-1] == "(newest)"
    assert read_model_config(str(config))["tweets"].labels == {"stable": 1}
    assert main(["versions", f"--export_dir={base}", "--label=stable:"]) == 0
    assert versions.labels(base) == {}


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--label=stable"], 2, "--label must be LABEL:VERSION"),
        (["--label=stable:01"], 2, "--label must be a whole number"),
        (["--label=a b:1"], 2, "must be letters, digits and _"),
        (["--label=stable:7"], 2, "has no version 7"),
        (["--roll_back=x"], 2, "--roll_back must be a whole number"),
        (["--keep=-1"], 2, "--keep must be 0 or more"),
        (["--base_path=/m"], 2, "no meaning without --model_config_file"),
        (["--export_dir=nowhere"], 5, "nowhere: has no version of a model"),
    ],
)
def test_what_the_command_refuses(flags, code, said, tmp_path, capsys):
    publish(tmp_path / "model")
    assert main(["versions", f"--export_dir={tmp_path / 'model'}", *flags]) == code
    assert said in capsys.readouterr().err
    assert json.dumps(names(tmp_path / "model")) == '["1"]'


def test_versions_need_no_tensorflow():
    code = "import sys, keras_bert.cli.versions; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
