"""`keras-bert vocab`: text files in, a WordPiece vocabulary out.

    keras-bert vocab --input_file='corpus/*.txt' --output_file=vocab.txt --vocab_size=30522

The same texts and flags give the same file, byte for byte, whatever the number of threads and the order of the files
(with one version of the package `tokenizers`, whose trainer does the work). Texts are read once, in pieces.
"""

import codecs
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from keras_bert.cli.flags import Flags, note
from keras_bert.data.tables import find
from keras_bert.errors import ConfigError, DataError
from keras_bert.files import size_of, write_atomic
from keras_bert.progress import Progress
from keras_bert.text.learning import count_words, first_rows, learn, unknown_share

BLOCK = 1 << 20
LONGEST = 16 * BLOCK
"""Characters without any white space that are held together."""


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("vocab", "learn a WordPiece vocabulary from texts")
    flags.require("input_file", "Texts: UTF-8, .jsonl or else plain text; a glob or comma list reads several.")
    flags.require("output_file", "The vocab.txt to write.")
    flags.add("overwrite", False, "Replace an existing --output_file.")
    flags.add("vocab_size", 30522, "Number of word pieces, special and unused ones included.")
    flags.add("do_lower_case", True, "Lower-case the text and strip accents; use the same to train and to serve.")
    flags.add("min_frequency", 2, "Leave out characters and pieces that occur less often.")
    flags.add("num_unused", 994, "Slots [unused0]... for words to be added later; from 99 on, [UNK] has id 100.")
    flags.add("reserved_tokens", "", "Pieces that must be there, comma separated, such as [E1],[E2].")
    flags.add("limit_alphabet", 0, "Most characters to keep; 0 keeps as many as make up 99.99% of the text.")
    flags.add("text_column", "text", "Key of the text in .jsonl files.")
    return flags


def main(argv: list[str]) -> int:
    """Run the command; prints the file it wrote."""
    flags = define()
    if not flags.parse(argv):
        return 0
    output = Path(flags["output_file"])
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"--output_file {output}: must be a file in a directory that exists")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--output_file {output}: no permission to write in {output.parent}")
    if output.exists() and not flags["overwrite"]:
        raise ConfigError(f"--output_file {output}: is there already; name another file, or --overwrite")
    reserved = [token.strip() for token in flags["reserved_tokens"].split(",")] if flags["reserved_tokens"] else []
    for name, least in (("vocab_size", 1), ("min_frequency", 1), ("num_unused", 0), ("limit_alphabet", 0)):
        if flags[name] < least:
            raise ConfigError(f"--{name} must be at least {least}, got {flags[name]}")
    rows = len(first_rows(flags["num_unused"], reserved))
    if flags["vocab_size"] <= rows:
        raise ConfigError(f"--vocab_size {flags['vocab_size']} leaves no room beside {rows} special and unused tokens")
    files = find(flags["input_file"])
    sizes = [size_of(path, "txt") for path in files]
    if output.exists() and any(output.samefile(path) for path in files):
        raise ConfigError(f"--output_file {output}: is also the input; name another file")

    with Progress("reading, in kB", total=sum(size // 1000 for size in sizes), stream=sys.stderr) as progress:
        counts = count_words(read_texts(files, flags["text_column"], progress), flags["do_lower_case"])
    note(f"{sum(counts.values()):,} words, {len(counts):,} different; merging the most frequent pairs")
    pieces = learn(
        counts,
        flags["vocab_size"],
        flags["min_frequency"],
        flags["num_unused"],
        reserved,
        flags["limit_alphabet"],
        stream=sys.stderr,
    )
    try:
        write_atomic(output, "\n".join(pieces) + "\n")
    except OSError as error:
        raise ConfigError(f"--output_file {output}: cannot be written ({error.strerror})") from error
    characters = sum(len(piece) == 1 for piece in pieces)
    note(f"{len(pieces):,} pieces, {characters:,} of them characters")
    note(f"{unknown_share(counts, pieces):.4%} of these texts' words are [UNK]")
    if len(pieces) < flags["vocab_size"]:
        note(f"warning: the texts give no more than {len(pieces):,} pieces; set the model's vocab_size to that")
    print(output)
    return 0


def read_texts(files: list[str], column: str, progress: Progress) -> Iterator[str]:
    """The texts of files, piece by piece; never cuts a word of less than 16 million characters.

    Raises:
        DataError: a file cannot be read or is not UTF-8, or a line of .jsonl has no text.
    """
    for path in files:
        read = (_json_texts(path, column), _plain_texts(path))[not path.lower().endswith(".jsonl")]
        done = 0
        try:
            for size, text in read:
                if text:
                    yield text
                progress.add((done + size) // 1000 - done // 1000)
                done += size
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _plain_texts(path: str) -> Iterator[tuple[int, str]]:
    """Bytes read and a text that ends with white space, again and again."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, rest = 1, ""
    with open(path, "rb") as file:
        while True:
            data = file.read(BLOCK)
            try:
                rest += decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, line + error.object.count(b"\n", 0, error.start), error) from error
            line += data.count(b"\n")
            cut = max(rest.rfind("\n"), rest.rfind(" ")) + 1
            if not data or (not cut and len(rest) > LONGEST):
                cut = len(rest)
            yield len(data), rest[:cut]
            rest = rest[cut:]
            if not data:
                return


def _json_texts(path: str, column: str) -> Iterator[tuple[int, str]]:
    """Bytes read and the text of the line, for every line."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                yield len(line), ""
                continue
            try:
                item = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, error) from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not valid JSON ({error})") from error
            if not isinstance(item, dict) or not isinstance(item.get(column), str):
                has = f"has the keys {', '.join(item)}" if isinstance(item, dict) else f"is a {type(item).__name__}"
                raise DataError(f"{path}, line {number}: no text under {column!r} (--text_column); the line {has}")
            yield len(line), item[column]


def _not_utf8(path: str, line: int, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{path}, line {line}: byte {error.object[error.start]:#04x} is not UTF-8; "
        "save the file as UTF-8 (it may be Latin-1, Windows-1252 or packed now)"
    )
