"""Recurrent language models: AWD-LSTM (Merity, Keskar, Socher 2017) and everything smaller than it.

T steps · B sequences · V words · E entries of an embedding · H hidden units · G gates (4 LSTM, 3 GRU)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from iclr18cli.text.dropout import Masks, apply, mask

Cell = Literal["lstm", "gru"]
CELLS: dict[str, tuple[Any, int]] = {"lstm": (nn.LSTM, 2), "gru": (nn.GRU, 1)}
"""Layer and number of state tensors of a cell."""


class RecurrentLM(nn.Module):
    """Embedding, recurrent layers, decoder; every dropout of AWD-LSTM.

    Dropped matrices are used by `torch.func.functional_call`: parameters, names and state dict are those of the plain
    layers, in evaluation as in training. In evaluation mode nothing is dropped.

    Args:
        vocabulary_size: V.
        embedding: E; None: H.
        hidden: H. With tied weights the last layer has E units.
        layers: Recurrent layers.
        cell: "lstm" or "gru".
        tied: The decoder's matrix is the embedding's.
        dropout_embedding, dropout_input, dropout_hidden, dropout_output, weight_drop: Probabilities: of a word, of
            entries of an embedding, between layers, after the last one, of entries of hidden-to-hidden matrices.
        locked: One mask for all steps; otherwise every step has its own (plain dropout).

    Raises:
        ValueError: A size is not positive, or a probability not in [0, 1).
    """

    def __init__(
        self, vocabulary_size: int = 10_000, embedding: int | None = None, hidden: int = 300, layers: int = 1,
        cell: Cell = "lstm", tied: bool = False, dropout_embedding: float = 0.0, dropout_input: float = 0.0,
        dropout_hidden: float = 0.0, dropout_output: float = 0.0, weight_drop: float = 0.0, locked: bool = True,
    ):  # fmt: skip
        super().__init__()
        E = hidden if embedding is None else embedding
        if min(vocabulary_size, E, hidden, layers) < 1:
            raise ValueError(f"sizes must be at least 1; received {(vocabulary_size, E, hidden, layers)}")
        rates = (dropout_embedding, dropout_input, dropout_hidden, dropout_output, weight_drop)
        if not all(0 <= p < 1 for p in rates):
            raise ValueError(f"probabilities must lie in [0, 1); received {rates}")
        if cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}; received {cell!r}")
        self.rates, self.locked = rates, locked
        layer, self.states_per_layer = CELLS[cell]
        self.sizes = [E, *[hidden] * (layers - 1), E if tied else hidden]
        self.embedding = nn.Embedding(vocabulary_size, E)
        self.recurrent = nn.ModuleList(layer(self.sizes[n], self.sizes[n + 1]) for n in range(layers))
        self.decoder = nn.Linear(self.sizes[-1], vocabulary_size)
        if tied:
            self.decoder.weight = self.embedding.weight
        with torch.no_grad():
            self.embedding.weight.uniform_(-0.1, 0.1)
            self.decoder.weight.uniform_(-0.1, 0.1)
            self.decoder.bias.zero_()

    def draw(self, steps: int, sequences: int) -> Masks:
        """Draw the masks of one pass over T steps of B sequences, from torch's global generator."""
        word, entering, between, last, weight = self.rates
        like, T, B = next(self.parameters()), 1 if self.locked else steps, sequences
        hidden = [mask((T, B, size), between, like) for size in self.sizes[1:-1]]
        weights = [mask(tuple(w.shape), weight, like) for w in self._hidden_to_hidden()] if weight else []
        return Masks(
            embedding=mask((self.embedding.num_embeddings, 1), word, like) if word else None,
            weights=tuple(w for w in weights if w is not None) or None,
            input=mask((T, B, self.sizes[0]), entering, like),
            hidden=tuple(h for h in hidden if h is not None) or None,
            output=mask((T, B, self.sizes[-1]), last, like),
        )

    def _hidden_to_hidden(self) -> list[Tensor]:
        return [getattr(layer, "weight_hh_l0") for layer in self.recurrent]  # noqa: B009  for the type checker

    def features(
        self, tokens_TB: Tensor, state: Sequence[Tensor] | None = None, masks: Masks | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return (last layer's output (T, B, H), the same after dropout, state).

        Args:
            tokens_TB: int64.
            state: For each layer h (and c), (1, B, H); None: zeros.
            masks: Of this pass; None: drawn in training mode, none in evaluation mode.
        """
        if masks is None:
            masks = self.draw(*tokens_TB.shape) if self.training else Masks()
        if masks.embedding is None:
            x = self.embedding(tokens_TB)
        else:  # only the words that occur are multiplied
            x = F.embedding(tokens_TB, self.embedding.weight) * masks.embedding[tokens_TB]
        x, carried, per = apply(x, masks.input), [], self.states_per_layer
        for n, layer in enumerate(self.recurrent):
            if n and masks.hidden is not None:
                x = x * masks.hidden[n - 1]
            given = None if state is None else state[n * per : (n + 1) * per]
            own = given if given is None or per > 1 else given[0]
            own = tuple(own) if own is not None and per > 1 else own
            if masks.weights is None:
                x, new = layer(x, own)
            else:
                dropped = {"weight_hh_l0": self._hidden_to_hidden()[n] * masks.weights[n]}
                x, new = functional_call(layer, dropped, (x, own))
            carried += list(new) if per > 1 else [new]
        return x, apply(x, masks.output), carried

    def forward(
        self, tokens_TB: Tensor, state: Sequence[Tensor] | None = None, masks: Masks | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return (logits (T, B, V), state) of (T, B) int64 tokens."""
        _, dropped, state = self.features(tokens_TB, state, masks)
        return self.decoder(dropped), state


def activation_penalty(dropped_TBH: Tensor) -> Tensor:
    """Return AR without its factor alpha: mean of the squared outputs after dropout (Merity et al. 2017, Eq. 5)."""
    return dropped_TBH.square().mean()


def temporal_penalty(raw_TBH: Tensor) -> Tensor:
    """Return TAR without its factor beta: mean squared change of the undropped output; 0 for one step (Eq. 6)."""
    return raw_TBH.diff(dim=0).square().mean() if len(raw_TBH) > 1 else raw_TBH.new_zeros(())
