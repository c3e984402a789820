"""Linear and embedding layers with multi-bit codes: trained through the quantiser, or packed for good."""

# B vectors · D inputs · M rows · N entries of a row · K bits · W words

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18cli.compression.binary_codes import alternating
from iclr18cli.compression.kernels import choose, multiply, packed_pays, quantise_vectors
from iclr18cli.compression.methods import Method, code_rows
from iclr18cli.compression.packing import PackedCodes, pack, word_count
from iclr18cli.compression.straight_through import straight_through


@dataclass(frozen=True, kw_only=True)
class MultiBitConfig:
    """How a network is coded.

    Attributes:
        weight_bits: K of every row of every matrix.
        activation_bits: C of every hidden vector, on line; 0: hidden vectors stay float.
        method: How weights are coded. Hidden vectors are coded by alternation, or greedily or refined if weights are.
        iterations: T for weights, which are coded once.
        activation_iterations: T on line.
    """

    weight_bits: int = 2
    activation_bits: int = 2
    method: Method = "alternating"
    iterations: int = 2
    activation_iterations: int = 2

    def weights(self, w_MN: Tensor) -> Tensor:
        """Return quantised weights, with the gradient passed straight through."""
        codes = code_rows(w_MN.detach(), self.weight_bits, method=self.method, iterations=self.iterations)
        return straight_through(w_MN, codes.dense())

    def activations(self, x: Tensor) -> Tensor:
        """Return quantised vectors (..., N), each with coefficients of its own; unchanged with 0 bits."""
        if not self.activation_bits:
            return x
        x_BN, bits = x.detach().reshape(-1, x.shape[-1]), self.activation_bits
        if self.method in ("greedy", "refined"):
            codes = code_rows(x_BN, bits, method=self.method)
        else:
            codes = alternating(x_BN, bits, iterations=self.activation_iterations)
        return straight_through(x, codes.dense().view_as(x))


class Packed(nn.Module):
    """Rows as packed codes, in buffers: what a model file holds of a matrix."""

    alpha: Tensor
    words: Tensor

    def __init__(self, rows: int, length: int, bits: int):
        super().__init__()
        self.length = length
        self.register_buffer("alpha", torch.zeros(rows, bits))
        self.register_buffer("words", torch.zeros(rows, bits, word_count(length), dtype=torch.int64))

    @property
    def codes(self) -> PackedCodes:
        """The rows."""
        return PackedCodes(self.alpha, self.words, self.length)

    def load(self, w_MN: Tensor, config: MultiBitConfig) -> None:
        """Code a float matrix."""
        found = pack(
            code_rows(w_MN.detach().float(), config.weight_bits, method=config.method, iterations=config.iterations)
        )
        self.alpha.copy_(found.alpha_MK)
        self.words.copy_(found.words_MKW)

    def dense(self) -> Tensor:
        """Return the quantised matrix (M, N), float32."""
        return self.codes.unpacked().dense()

    def packed_pays(self, config: MultiBitConfig) -> bool:
        """Say whether the codes themselves are multiplied, at batch 1: see `kernels.packed_pays`."""
        return packed_pays(len(self.alpha), self.length, max(config.weight_bits, config.activation_bits))

    def product(self, x_BN: Tensor, config: MultiBitConfig, dense_MN: Tensor | None = None) -> Tensor:
        """Return (B, M): the product with vectors coded on line; by a packed kernel where that is the faster way.

        Args:
            x_BN: Vectors.
            config: How they are coded.
            dense_MN: The decoded matrix, if the caller has it.
        """
        if config.activation_bits and kernel_pays(x_BN, config):
            vectors = quantise_vectors(x_BN, config.activation_bits, iterations=config.activation_iterations)
            if self.packed_pays(config):
                return multiply(self.codes, vectors).T
            return F.linear(vectors.unpacked().dense(), self.dense() if dense_MN is None else dense_MN)
        return F.linear(config.activations(x_BN), self.dense())


def kernel_pays(x_BN: Tensor, config: MultiBitConfig) -> bool:
    """Say whether codes are multiplied by a kernel: for one vector at a time; a batch reads the weights once anyway."""
    online = config.method not in ("greedy", "refined")
    return online and len(x_BN) == 1 and not torch.is_grad_enabled() and choose(x_BN.device) != "torch"


class PackedEmbedding(nn.Module):
    """An embedding of packed rows: a token picks a row, which is then exactly its codes' sum."""

    def __init__(self, layer: nn.Embedding, config: MultiBitConfig):
        super().__init__()
        self.weight = Packed(layer.num_embeddings, layer.embedding_dim, config.weight_bits)

    def forward(self, token: Tensor) -> Tensor:
        """Return (..., D) rows of (...) tokens."""
        part = PackedCodes(self.weight.alpha[token.flatten()], self.weight.words[token.flatten()], self.weight.length)
        return part.unpacked().dense().view(*token.shape, -1)


class PackedLinear(nn.Module):
    """A linear layer of packed rows whose inputs are coded on line."""

    def __init__(self, layer: nn.Linear, config: MultiBitConfig):
        super().__init__()
        self.config, self.weight = config, Packed(layer.out_features, layer.in_features, config.weight_bits)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., M) for (..., N)."""
        y = self.weight.product(x.flatten(0, -2), self.config).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


class QuantisedLinear(nn.Module):
    """A linear layer that computes with quantised weights and inputs."""

    def __init__(self, layer: nn.Linear, config: MultiBitConfig):
        super().__init__()
        self.layer, self.config = layer, config

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., M) for (..., N)."""
        return F.linear(self.config.activations(x), self.config.weights(self.layer.weight), self.layer.bias)


class QuantisedEmbedding(nn.Module):
    """An embedding whose rows are quantised."""

    def __init__(self, layer: nn.Embedding, config: MultiBitConfig):
        super().__init__()
        self.layer, self.config = layer, config

    def forward(self, token: Tensor) -> Tensor:
        """Return (..., D) rows of (...) tokens; only rows that occur are coded."""
        rows_BD = F.embedding(token.flatten(), self.layer.weight)
        return self.config.weights(rows_BD).view(*token.shape, -1)
