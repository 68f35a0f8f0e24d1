"""Learning a WordPiece vocabulary: texts -> counts of their words -> pieces, byte for byte the same on every run.

Texts are normalized and split by the frozen lists that the tokenizers use, so what is counted is what will be looked
up. The merging of pairs is done by the trainer of the package `tokenizers`, which by itself numbers the pieces of one
character in the order of a hash table and breaks ties by those numbers; handing it all of them, sorted, leaves it no
choice that the counts do not decide.

Any word written in the characters of a learned vocabulary can be written in its pieces; [UNK] is only for words with
other characters, and for words longer than the tokenizers take.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TextIO

from keras_bert.errors import ConfigError, DataError
from keras_bert.text.normalization import SURROGATES, changes, members
from keras_bert.text.vocabulary import check_vocabulary
from keras_bert.text.wordpiece import MAX_WORD_CHARACTERS, finalize_sigmas, has_sigma_rule

BEFORE_UNKNOWN = 99
"""So many unused slots come before [UNK], which then has id 100 as in google-research/bert's vocabularies."""
COVERAGE = (9_999, 10_000)
"""The share of all characters that the alphabet must cover where it has no limit of its own."""
MAX_DIFFERENT = 2_000_000
MAX_FED = 100_000_000
"""Words shown to the trainer; counts of larger corpora are divided by a whole number first."""


def splitter(do_lower_case: bool, flavour: str = "original") -> Callable[[str], list[str]]:
    """A function from a text to its words, normalized and split as the tokenizers do it.

    Raises:
        ConfigError: no such flavour.
    """
    table = changes(flavour, do_lower_case)
    spaces, alone = members(flavour, "space"), alone_characters(flavour)

    def spaced(value: str) -> str:
        return "".join(" " if ord(c) in spaces else f" {c} " if ord(c) in alone else c for c in value)

    # A translation with all rules in it: what is a word of its own gets spaces around.
    rules: dict[int, str] = dict.fromkeys(SURROGATES, "")
    rules |= {code: spaced(chr(code)) for code in spaces | alone}
    rules |= {code: spaced(value) for code, value in table.items()}
    final_sigmas = has_sigma_rule(do_lower_case, flavour)

    def split(text: str) -> list[str]:
        if final_sigmas:
            text = finalize_sigmas(text)
        return [word for word in text.translate(rules).split(" ") if word]

    return split


def alone_characters(flavour: str) -> frozenset[int]:
    """The code points that are words of their own: CJK characters and punctuation."""
    return members(flavour, "cjk") | members(flavour, "punctuation")


def count_words(
    texts: Iterable[str], do_lower_case: bool, flavour: str = "original", max_different: int = MAX_DIFFERENT
) -> Counter[str]:
    """How often each word occurs.

    Args:
        texts: read once, one at a time; white space at their ends separates words.
        do_lower_case: lower-case and strip accents.
        flavour: "original" or "hf", see `normalization`.
        max_different: bounds the memory: whenever there are more different words, the rarest are forgotten until
            half as many are left.

    Raises:
        ConfigError: no such flavour.
    """
    split = splitter(do_lower_case, flavour)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split(text))
        if len(counts) > max_different:
            counts = _most_frequent(counts, max_different // 2)
    return counts


def learn(
    counts: Mapping[str, int],
    vocab_size: int = 30522,
    min_frequency: int = 2,
    num_unused: int = 994,
    reserved_tokens: Sequence[str] = (),
    limit_alphabet: int = 0,
    flavour: str = "original",
    stream: TextIO | None = sys.stderr,
) -> list[str]:
    """Word pieces in the order of their ids: the rows of a `vocab.txt`.

    First [PAD], the unused slots and [UNK] [CLS] [SEP] [MASK], in google-research/bert's order, then the reserved
    tokens, the characters in the order of code points, the same as `##` pieces (not of CJK characters and
    punctuation, which are words of their own), and then longer pieces, the most useful first.

    Args:
        counts: words and how often they occur, as `count_words` gives them.
        vocab_size: number of pieces; there are fewer where the words are too few.
        min_frequency: characters and pieces that occur less often are left out.
        num_unused: slots `[unused0]`... for words to be added later.
        reserved_tokens: pieces that must be there, such as `[E1]`.
        limit_alphabet: the most characters to keep, most frequent first; 0 keeps as many as make up 99.99% of all.
        flavour: the one of `count_words`.
        stream: where the trainer shows its progress, if it is a terminal.

    Raises:
        ConfigError: a number is out of its range, a reserved token cannot be one, the vocabulary is too small for
            the characters, or the package `tokenizers` is not installed.
        DataError: there are no words.

    Example:
        learn(count_words(open("texts.txt"), do_lower_case=True), vocab_size=8000)
    """
    for name, value, least in (
        ("vocab_size", vocab_size, 1),
        ("min_frequency", min_frequency, 1),
        ("num_unused", num_unused, 0),
        ("limit_alphabet", limit_alphabet, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")
    first, alone = first_rows(num_unused, reserved_tokens), alone_characters(flavour)
    words = {word: n for word, n in counts.items() if 0 < len(word) <= MAX_WORD_CHARACTERS[flavour] and n > 0}
    if not words:
        raise DataError("there are no words in the texts to learn a vocabulary from")
    characters = alphabet(words, min_frequency, limit_alphabet)
    if not characters:
        raise DataError(f"no character occurs {min_frequency} times in the texts; they are too few for a vocabulary")
    known = set(first)
    single = [p for p in (*characters, *(f"##{c}" for c in characters if ord(c) not in alone)) if p not in known]
    least = len(first) + len(single)
    if vocab_size < least:
        raise ConfigError(
            f"vocab_size {vocab_size} is too small: {len(first)} rows for special, unused and reserved tokens and "
            f"{len(single)} for the {len(characters)} characters; make it {least} or more, or lower num_unused or "
            "limit_alphabet"
        )
    kept = set(characters)
    words = {word: n for word, n in words.items() if len(word) > 1 and kept.issuperset(word)}
    longer = _merge(words, single, vocab_size - least + len(reserved_tokens), min_frequency, stream)
    pieces = [*first, *single, *(p for p in longer if p not in known)][:vocab_size]
    check_vocabulary(pieces, "the learned vocabulary")
    return pieces


def first_rows(num_unused: int, reserved_tokens: Sequence[str] = ()) -> list[str]:
    """The rows that are no text: [PAD], unused slots, [UNK] [CLS] [SEP] [MASK], more unused slots, reserved tokens.

    Raises:
        ConfigError: a reserved token is empty, holds white space, or is there twice.
    """
    unused = [f"[unused{i}]" for i in range(num_unused)]
    rows = ["[PAD]", *unused[:BEFORE_UNKNOWN], "[UNK]", "[CLS]", "[SEP]", "[MASK]", *unused[BEFORE_UNKNOWN:]]
    seen = set(rows)
    for token in reserved_tokens:
        if not token or token.split() != [token]:
            raise ConfigError(f"reserved token {token!r}: must not be empty or hold white space")
        if token in seen:
            raise ConfigError(f"reserved token {token!r}: is in the vocabulary already")
        seen.add(token)
    return [*rows, *reserved_tokens]


def alphabet(counts: Mapping[str, int], min_frequency: int = 1, limit: int = 0) -> list[str]:
    """The characters to keep, in the order of code points; see `learn`."""
    frequency: Counter[str] = Counter()
    for word, n in counts.items():
        for c in word:
            frequency[c] += n
    ranked = sorted((c for c, n in frequency.items() if n >= min_frequency), key=lambda c: (-frequency[c], c))
    if limit:
        return sorted(ranked[:limit])
    part, whole = COVERAGE
    total, covered, enough = frequency.total(), 0, 0
    while enough < len(ranked) and covered * whole < total * part:
        covered += frequency[ranked[enough]]
        enough += 1
    return sorted(ranked[:enough])


def unknown_share(counts: Mapping[str, int], pieces: Sequence[str], flavour: str = "original") -> float:
    """The share of words that a learned vocabulary must call [UNK], in 0..1."""
    characters = {piece for piece in pieces if len(piece) == 1}
    limit = MAX_WORD_CHARACTERS[flavour]
    unknown = sum(n for word, n in counts.items() if len(word) > limit or not characters.issuperset(word))
    return unknown / max(sum(counts.values()), 1)


def _merge(
    words: Mapping[str, int], single: Sequence[str], room: int, min_frequency: int, stream: TextIO | None
) -> list[str]:
    """At most `room` pieces of several characters, in the order in which pairs of pieces are merged."""
    if room <= 0 or not words:
        return []
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ConfigError(
            f"learning a vocabulary needs the package tokenizers, which cannot be imported here ({error}); "
            "`pip install 'keras3-bert[vocab]'`"
        ) from error
    # The characters alone, which the trainer wants in its list too; it leaves out what is there already.
    bare = sorted({piece.removeprefix("##") for piece in single})
    given = list(dict.fromkeys([*bare, *single]))
    scale = -(-sum(words.values()) // MAX_FED)
    trainer = trainers.WordPieceTrainer(
        vocab_size=len(given) + room,
        min_frequency=-(-min_frequency // scale),
        special_tokens=given,
        show_progress=stream is not None and stream.isatty(),
    )
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.train_from_iterator(_repeated(words, scale), trainer)
    table = tokenizer.get_vocab()
    return sorted(table, key=table.__getitem__)[len(given) :]


def _repeated(words: Mapping[str, int], scale: int, size: int = 50_000) -> Iterator[str]:
    """Texts in which each word occurs as often as was counted: the only way to tell the trainer a count."""
    waiting: list[str] = []
    length = 0
    for word in sorted(words):
        left = words[word] // scale
        while left:
            times = min(left, max(1, size // (len(word) + 1)))
            left -= times
            waiting.append(" ".join([word] * times))
            length += times * (len(word) + 1)
            if length >= size:
                yield " ".join(waiting)
                waiting, length = [], 0
    yield " ".join(waiting)


def _most_frequent(counts: Counter[str], limit: int) -> Counter[str]:
    """The words that occur more often than the one which comes at place `limit`."""
    least = sorted(counts.values(), reverse=True)[limit]
    return Counter({word: n for word, n in counts.items() if n > least})
