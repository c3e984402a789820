"""Text as one line of tokens, with the signature of `iclr18cli.text.corpus.open_corpus`, which is to replace this."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from iclr18cli.errors import UserError
from iclr18cli.paths import data_roots

END, UNKNOWN = "<eos>", "<unk>"


@dataclass(frozen=True)
class Corpus:
    """Tokens of three splits, (N,) int64, numbered by their place in the vocabulary."""

    train: Tensor
    valid: Tensor
    test: Tensor
    vocabulary: tuple[str, ...]

    def split(self, name: str, limit: int = 0) -> Tensor:
        """Return the first `limit` tokens (0: all) of a split."""
        tokens: Tensor = getattr(self, name)
        return tokens[:limit] if limit else tokens


def open_corpus(reference: str, *, data_dir: str | None = None, download: bool = False) -> Corpus:
    """Read python-docs (in every CPython), ptb, or lines:PATH, the last tenths being validation and test.

    Raises:
        UserError: There is no such text on this machine.
    """
    if reference == "ptb":
        places = [root / "ptb" for root in data_roots(data_dir)]
        folder = next((place for place in places if place.is_dir()), places[-1])
        try:
            texts = [(folder / f"ptb.{name}.txt").read_text().splitlines() for name in ("train", "valid", "test")]
        except OSError as error:
            raise UserError("The text 'ptb' is not on this machine.", why=str(error), fix="--data-dir DIR") from error
    else:
        lines = _python_docs() if reference == "python-docs" else _lines(reference)
        first, second = len(lines) * 8 // 10, len(lines) * 9 // 10
        texts = [lines[:first], lines[first:second], lines[second:]]
    words = [[word for line in text for word in (*line.split(), END)] for text in texts]
    counted = Counter(words[0])
    kept = sorted((w for w in counted if reference == "ptb" or counted[w] > 1), key=lambda w: (-counted[w], w))
    vocabulary = tuple(dict.fromkeys([UNKNOWN, END, *kept]))
    number = {word: place for place, word in enumerate(vocabulary)}
    train, valid, test = (torch.tensor([number.get(word, 0) for word in part]) for part in words)
    return Corpus(train, valid, test, vocabulary)


def _python_docs() -> list[str]:
    from pydoc_data.topics import topics

    return [line.lower() for name in sorted(topics) for line in topics[name].splitlines() if line.strip()]


def _lines(reference: str) -> list[str]:
    kind, _, path = reference.partition(":")
    if kind != "lines" or not Path(path).is_file():
        raise UserError(f"There is no text '{reference}'.", fix="python-docs, ptb, or lines:PATH of a text file")
    return Path(path).read_text().splitlines()


def columns(tokens: Tensor, count: int) -> Tensor:
    """Return (N // count, count): the text cut into `count` pieces side by side; what is left over is dropped."""
    length = len(tokens) // count
    if length < 2:
        raise UserError(f"{len(tokens)} tokens make no {count} sequences.", fix="a smaller --batch-size, or more text")
    return tokens[: length * count].view(count, length).T.contiguous()
