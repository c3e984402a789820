"""What a network of each task can be asked for.

A model's card names its task; attacks and certificates name the tasks they serve.
"""

# B batch · T length · V vocabulary · K classes · D features

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Generator, Tensor


@runtime_checkable
class Classify(Protocol):
    """Task "classify": an input in the card's range gives one logit per class."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Map x (B, *shape), raw in the card's range, to logits (B, K), not softmax outputs."""
        ...


@runtime_checkable
class Language(Protocol):
    """Task "language": the next token after every prefix."""

    def __call__(self, tokens: Tensor, state: Any = None, /) -> tuple[Tensor, Any]:
        """Map tokens (B, T) int64 and the state after the text before them to logits (B, T, V) and the new state.

        Logits at position t predict token t + 1. `state=None` starts afresh; a returned state may be given to the next
        call, detached, to go on in the same B texts.
        """
        ...


@runtime_checkable
class Translate(Protocol):
    """Task "translate": sentences to sentences, and how likely given ones are."""

    def translate(self, sentences: Sequence[str], /) -> list[str]:
        """Return one translation per sentence, in order, detokenised."""
        ...

    def log_probabilities(self, sentences: Sequence[str], references: Sequence[str], /) -> Tensor:
        """Return log p(reference | sentence) in nats, (B,), teacher-forced and summed over the reference's tokens."""
        ...


@runtime_checkable
class Generate(Protocol):
    """Task "generate": samples of the learnt distribution."""

    def generate(self, count: int, /, *, generator: Generator | None = None) -> Tensor:
        """Return samples (count, *shape) in the card's range; the same generator state gives the same samples."""
        ...


@runtime_checkable
class Embed(Protocol):
    """Task "embed": an input to a vector."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Map x (B, *shape), raw in the card's range, to vectors (B, D)."""
        ...


PROTOCOLS: Mapping[str, type] = {
    "classify": Classify,
    "language": Language,
    "translate": Translate,
    "generate": Generate,
    "embed": Embed,
}
