"""The paper's language model."""

# T steps · B sequences · V vocabulary · H hidden units

from __future__ import annotations

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]


class RecurrentLM(nn.Module):
    """Embedding, LSTM, decoder, with dropout before and after the LSTM.

    Args:
        vocabulary_size: V.
        hidden: H, also of the embedding.
        layers: LSTM layers.
        dropout: Probability.
    """

    def __init__(self, vocabulary_size: int = 10_000, hidden: int = 300, layers: int = 1, dropout: float = 0.5):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, hidden)
        self.recurrent = nn.LSTM(hidden, hidden, layers)
        self.decoder = nn.Linear(hidden, vocabulary_size)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            for weight in (self.embedding.weight, self.decoder.weight):
                weight.uniform_(-0.1, 0.1)
            self.decoder.bias.zero_()

    def forward(self, tokens_TB: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return (logits (T, B, V), state) of (T, B) int64 tokens."""
        y, state = self.recurrent(self.dropout(self.embedding(tokens_TB)), state)
        return self.decoder(self.dropout(y)), state
