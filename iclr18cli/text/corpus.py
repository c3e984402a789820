"""Texts for language models, each one long line of words with `<eos>` at the end of every line of the file.

python-docs   the language reference inside every CPython: 8, 1, 1 tenths of its lines
ptb           ptb.train.txt, ptb.valid.txt, ptb.test.txt: 929,589, 73,760 and 82,430 tokens with `<eos>`
wikitext-2    wiki.train.tokens, … : 2,088,628, 217,646 and 245,569 tokens
lines:PATH    a text file, cut like python-docs, or a folder with train.txt, valid.txt and test.txt
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from iclr18cli.data.registry import open_split
from iclr18cli.errors import UserError
from iclr18cli.text.vocabulary import END, Vocabulary

SPLITS = ("train", "valid", "test")
MIN_COUNT = 2
"""Rarer words become `<unk>` in texts that bring no vocabulary of their own."""


@dataclass(frozen=True)
class Text:
    """One split of a text.

    Attributes:
        words: With `<eos>`.
        min_count: How often a word must occur in the training text to be in the vocabulary.
        name, split: Where it is from.
    """

    words: tuple[str, ...]
    min_count: int = 1
    name: str = ""
    split: str = ""

    def __len__(self) -> int:
        return len(self.words)

    def digest(self) -> str:
        """Return the sha256 of the words."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Three splits in numbers, (N,) int64, and their vocabulary, that of the training text."""

    train: Tensor
    valid: Tensor
    test: Tensor
    vocabulary: Vocabulary

    def split(self, name: str, limit: int = 0) -> Tensor:
        """Return the first `limit` tokens (0: all) of a split."""
        tokens: Tensor = getattr(self, name)
        return tokens[:limit] if limit else tokens


def open_corpus(
    reference: str, *, data_dir: str | Path = "", download: bool = False, limit: int = 0, limit_eval: int = 0,
    max_words: int = 0, vocabulary: Vocabulary | None = None,
) -> Corpus:  # fmt: skip
    """Read all splits of a text and number its words.

    Args:
        reference: Name of the data set.
        data_dir, download: As for any data set.
        limit: Train on the first `limit` tokens; the vocabulary is that of these. 0: all.
        limit_eval: Length of the validation and the test text. 0: all.
        max_words: Words of the vocabulary at most, the two special ones included. 0: no limit.
        vocabulary: One to read the text with; None: that of the training text.

    Raises:
        UsageError: There is no such text.
        UserError: It is not on this machine.
    """
    train, valid, test = (open_text(reference, split, data_dir=data_dir, download=download) for split in SPLITS)
    words = train.words[:limit] if limit else train.words
    vocabulary = vocabulary or Vocabulary.of_words(words, min_count=train.min_count, max_size=max_words or None)
    end = limit_eval or None
    return Corpus(
        vocabulary.encode(words), vocabulary.encode(valid.words[:end]), vocabulary.encode(test.words[:end]), vocabulary
    )


def open_text(reference: str, split: str, *, data_dir: str | Path = "", download: bool = False) -> Text:
    """Read one split of a text.

    Raises:
        UserError: The data set is no text, or is not here.
    """
    found = open_split(reference, split, data_dir=data_dir, download=download)
    if not isinstance(found, Text):
        raise UserError(
            f"Data set '{reference}' is no text.", fix="python-docs, ptb, wikitext-2 or lines:PATH; iclr18 data list"
        )
    return found


def load_ptb(root: Path, split: str, argument: str) -> Text:
    """Read the Penn Treebank as Mikolov prepared it: 10,000 words, `<unk>` and `N` among them."""
    return Text(_words(_first(root, f"ptb/ptb.{split}.txt", f"penn/{split}.txt")), 1, "ptb", split)


def load_wikitext2(root: Path, split: str, argument: str) -> Text:
    """Read WikiText-2, the tokens of words (not raw); empty lines count, as they do in its published sizes."""
    path = _first(root, f"wikitext-2/wiki.{split}.tokens", f"wikitext-2/{split}.txt")
    return Text(_words(path), 1, "wikitext-2", split)


def load_lines(root: Path, split: str, argument: str) -> Text:
    """Read the user's own text, words set apart by spaces."""
    path, name = Path(argument).expanduser(), f"lines:{argument}"
    if path.is_dir():
        return Text(_words(_first(path, f"{split}.txt")), MIN_COUNT, name, split)
    if not path.is_file():
        raise UserError(f"There is no text '{path}'.", fix="lines:PATH of a file, or of a folder with train.txt, …")
    return Text(_tenths(_words(path), split), MIN_COUNT, name, split)


def load_python_docs(root: Path, split: str, argument: str) -> Text:
    """Read the articles of `pydoc_data.topics` in lower case: prose and code, about 65,000 words."""
    from pydoc_data.topics import topics

    lines = (line.lower() for name in sorted(topics) for line in topics[name].splitlines() if line.strip())
    words = tuple(word for line in lines for word in (*line.split(), END))
    return Text(_tenths(words, split), MIN_COUNT, "python-docs", split)


def _first(root: Path, *names: str) -> Path:
    return next((root / name for name in names if (root / name).is_file()), root / names[0])


@lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> tuple[str, ...]:
    return tuple(_of_lines(path.read_text(encoding="utf-8").splitlines()))


def _of_lines(lines: list[str]) -> Iterator[str]:
    for line in lines:
        yield from line.split()
        yield END


def _words(path: Path) -> tuple[str, ...]:
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The text {path} cannot be read.", why=str(error), fix="a file in UTF-8") from error


def _tenths(words: tuple[str, ...], split: str) -> tuple[str, ...]:
    """Return 8, 1 or 1 tenths of a text, cut at ends of lines."""
    ends = [place for place, word in enumerate(words) if word == END]
    first, second = (ends[len(ends) * part // 10 - 1] + 1 if len(ends) > 9 else 0 for part in (8, 9))
    return words[{"train": slice(0, first), "valid": slice(first, second), "test": slice(second, None)}[split]]
