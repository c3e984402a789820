"""A vocabulary: words by number, kept as JSON beside a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from iclr18cli.errors import UserError
from iclr18cli.run.atomic import write_bytes

UNKNOWN, END = "<unk>", "<eos>"
FILE = "vocabulary.json"


class Vocabulary:
    """Words numbered from 0.

    Args:
        words: All different; `<unk>` and `<eos>` are among them.

    Raises:
        ValueError: A word is missing or there twice.

    Example:
        >>> v = Vocabulary.of_words("a b a".split())
        >>> v.words, v.encode(["b", "c", "<eos>"]).tolist()
        (('<unk>', '<eos>', 'a', 'b'), [3, 0, 1])
    """

    def __init__(self, words: Sequence[str]):
        self.words = tuple(words)
        self._number = {word: number for number, word in enumerate(self.words)}
        if len(self._number) < len(self.words) or not {UNKNOWN, END} <= set(self._number):
            raise ValueError(f"words must be different and hold {UNKNOWN} and {END}; received {len(self.words)} words")

    @classmethod
    def of_words(cls, words: Iterable[str], *, min_count: int = 1, max_size: int | None = None) -> Vocabulary:
        """Number `<unk>`, `<eos>` and then the words of a text, the most frequent first, ties by spelling.

        Args:
            words: The text.
            min_count: Rarer words become `<unk>`.
            max_size: Number of words in all, the two special ones included; None: no limit.
        """
        counted = Counter(words)
        kept = sorted((w for w in counted if counted[w] >= min_count), key=lambda w: (-counted[w], w))
        return cls(tuple(dict.fromkeys((UNKNOWN, END, *kept)))[:max_size])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Iterable[str]) -> Tensor:
        """Return the numbers (N,) int64 of words; those it does not know become `<unk>`."""
        unknown = self._number[UNKNOWN]
        return torch.tensor([self._number.get(word, unknown) for word in words], dtype=torch.int64)

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """Return the words of numbers."""
        return [self.words[int(number)] for number in numbers]

    def save(self, directory: Path) -> None:
        """Write vocabulary.json."""
        write_bytes(directory / FILE, (json.dumps(self.words, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, directory: Path) -> Vocabulary:
        """Read vocabulary.json.

        Raises:
            UserError: It is missing or damaged.
        """
        try:
            words = json.loads((directory / FILE).read_bytes())
            if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
                raise ValueError("it must be a list of strings")
            return cls(words)
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{directory} has no vocabulary that can be read.", why=str(error), fix="train the run again"
            ) from error
