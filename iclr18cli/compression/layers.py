"""Recurrent, linear and embedding layers with multi-bit codes: trained through the quantiser, or packed for good.

`train_quantised_(net, config)` swaps the layers of a network for ones that hold float weights and compute with
quantised ones; `quantise_(net, config)` for ones that hold codes alone. `multi_bit` makes empty packed layers: the
transform "multi-bit" of a model card, by which a compressed run is opened again.
"""

# T steps · B sequences · D inputs · H hidden units · M rows · N entries of a row · K bits · W words

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18cli.compression.binary_codes import alternating
from iclr18cli.compression.kernels import choose, multiply, quantise_vectors
from iclr18cli.compression.methods import Method, code_rows
from iclr18cli.compression.packing import PackedCodes, pack, word_count
from iclr18cli.compression.straight_through import straight_through

TRANSFORM = "multi-bit"
State = tuple[Tensor, Tensor]


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

    def product(self, x_BN: Tensor, config: MultiBitConfig) -> Tensor:
        """Return (B, M): the product with vectors coded on line; by a packed kernel where that is the faster way."""
        if config.activation_bits and _kernel_pays(x_BN, config):
            vectors = quantise_vectors(x_BN, config.activation_bits, iterations=config.activation_iterations)
            return multiply(self.codes, vectors).T
        return F.linear(config.activations(x_BN), self.dense())


def _kernel_pays(x_BN: Tensor, config: MultiBitConfig) -> bool:
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


class PackedLSTM(nn.Module):
    """An `nn.LSTM`, one direction, time first, of packed rows; the hidden state is coded on line at every step.

    The first layer's inputs are taken as they are: rows of a quantised embedding, whose codes are known. Those of
    higher layers are hidden states and coded.
    """

    def __init__(self, layer: nn.LSTM, config: MultiBitConfig):
        super().__init__()
        check(layer)
        self.config, self.dropout, bits = config, layer.dropout, config.weight_bits
        H = self.hidden_size = layer.hidden_size
        sizes = [layer.input_size] + [H] * (layer.num_layers - 1)
        self.inputs = nn.ModuleList(Packed(4 * H, size, bits) for size in sizes)
        self.states = nn.ModuleList(Packed(4 * H, H, bits) for _ in sizes)
        self.biases = nn.ParameterList(
            nn.Parameter(bias(layer, number).detach().clone()) for number in range(len(sizes))
        )

    def forward(self, x_TBD: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return ((T, B, H), (h, c)) like `nn.LSTM`."""
        weights = [(w.dense(), u.dense()) for w, u in zip(self.inputs, self.states, strict=True)]  # type: ignore[operator]
        packed = list(self.states) if _kernel_pays(x_TBD[0], self.config) else None
        return unroll(x_TBD, state, weights, list(self.biases), self.config, packed=packed)


class QuantisedLSTM(nn.Module):
    """An `nn.LSTM` that computes with quantised weights and states and trains its float ones straight through."""

    def __init__(self, layer: nn.LSTM, config: MultiBitConfig):
        super().__init__()
        check(layer)
        self.layer, self.config = layer, config

    def forward(self, x_TBD: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return ((T, B, H), (h, c)) like `nn.LSTM`."""
        numbers = range(self.layer.num_layers)
        weights = [
            tuple(self.config.weights(getattr(self.layer, f"weight_{part}_l{n}")) for part in ("ih", "hh"))
            for n in numbers
        ]
        dropout = self.layer.dropout if self.training else 0.0
        return unroll(x_TBD, state, weights, [bias(self.layer, n) for n in numbers], self.config, dropout=dropout)


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


def unroll(
    x_TBD: Tensor, state: State | None, weights: Any, biases: list[Tensor], config: MultiBitConfig, *,
    dropout: float = 0.0, packed: list[Any] | None = None,
) -> tuple[Tensor, State]:  # fmt: skip
    """Run an LSTM over a sequence, hidden states coded before they are multiplied, Eq. (6).

    Args:
        x_TBD: Inputs; those of the first layer are not coded.
        state: (h, c), each (layers, B, H); None: zeros.
        weights: For each layer (4H, D) and (4H, H), quantised; gates in torch's order i, f, g, o.
        biases: For each layer (4H,).
        config: How states are coded.
        dropout: Between layers.
        packed: The second matrices as `Packed`, where a kernel multiplies them.
    """
    T, B = x_TBD.shape[:2]
    H = weights[0][1].shape[1]
    zeros = x_TBD.new_zeros(len(weights), B, H)
    h_LBH, c_LBH = (zeros, zeros) if state is None else state
    last_h, last_c = [], []
    for number, (w, u) in enumerate(weights):
        if number:
            x_TBD = config.activations(F.dropout(x_TBD, dropout, dropout > 0))
        input_TBM, outputs = F.linear(x_TBD, w, biases[number]), []
        h_BH, c_BH = h_LBH[number], c_LBH[number]
        for t in range(T):
            if packed is not None:
                state_BM = packed[number].product(h_BH, config)
            else:
                state_BM = F.linear(config.activations(h_BH), u)
            i, f, g, o = (input_TBM[t] + state_BM).chunk(4, 1)
            c_BH = f.sigmoid() * c_BH + i.sigmoid() * g.tanh()
            h_BH = o.sigmoid() * c_BH.tanh()
            outputs.append(h_BH)
        last_h.append(h_BH)
        last_c.append(c_BH)
        x_TBD = torch.stack(outputs)
    return x_TBD, (torch.stack(last_h), torch.stack(last_c))


def check(layer: nn.LSTM) -> None:
    """Raise ValueError for an LSTM of a kind that is not coded here."""
    if layer.bidirectional or layer.batch_first or layer.proj_size:
        raise ValueError(f"only one-way LSTMs, time first, without projection are coded; received {layer!r}")


def bias(layer: nn.LSTM, number: int) -> Tensor:
    """Return the sum of a layer's two biases, (4H,); zeros without."""
    if not layer.bias:
        return getattr(layer, f"weight_hh_l{number}").new_zeros(4 * layer.hidden_size)
    return getattr(layer, f"bias_ih_l{number}") + getattr(layer, f"bias_hh_l{number}")


PACKED: dict[type[nn.Module], Any] = {nn.Embedding: PackedEmbedding, nn.Linear: PackedLinear, nn.LSTM: PackedLSTM}
QUANTISED: dict[type[nn.Module], Any] = {
    nn.Embedding: QuantisedEmbedding, nn.Linear: QuantisedLinear, nn.LSTM: QuantisedLSTM,
}  # fmt: skip


def multi_bit(module: nn.Module, **config: Any) -> nn.Module:
    """Swap every embedding, linear layer and LSTM for an empty packed one, in place: `apply` of the transform."""
    return swap(module, PACKED, MultiBitConfig(**config))


def transform(config: MultiBitConfig) -> dict[str, Any]:
    """Return what a model card says of a network coded with a config."""
    return {"name": TRANSFORM, "kwargs": asdict(config)}


def train_quantised_(module: nn.Module, config: MultiBitConfig) -> nn.Module:
    """Swap every embedding, linear layer and LSTM for one that trains through the quantiser, in place.

    The float layers stay inside, with their parameters, so that tied weights stay tied.
    """
    return swap(module, QUANTISED, config)


def trained_float_(module: nn.Module) -> nn.Module:
    """Undo `train_quantised_`: put the float layers with their trained parameters back, in place."""
    for name, child in list(module.named_children()):
        if type(child) in QUANTISED.values():
            setattr(module, name, child.layer)
        else:
            trained_float_(child)
    return module


@torch.no_grad()
def quantise_(module: nn.Module, config: MultiBitConfig) -> nn.Module:
    """Code every embedding, linear layer and LSTM of a float network, in place. Tied matrices become one."""
    coded: dict[int, Packed] = {}

    def load(parent: nn.Module, name: str, packed: Packed, weight: Tensor) -> None:
        if weight.data_ptr() in coded:
            setattr(parent, name, coded[weight.data_ptr()])
        else:
            packed.load(weight, config)
            coded[weight.data_ptr()] = packed

    floats = {name: layer for name, layer in module.named_modules() if type(layer) in PACKED}
    multi_bit(module, **asdict(config))
    for name, layer in floats.items():
        packed = module.get_submodule(name)
        if isinstance(layer, nn.LSTM):
            for n in range(layer.num_layers):
                packed.inputs[n].load(getattr(layer, f"weight_ih_l{n}"), config)  # type: ignore[index, union-attr]
                packed.states[n].load(getattr(layer, f"weight_hh_l{n}"), config)  # type: ignore[index, union-attr]
        else:
            load(packed, "weight", packed.weight, layer.weight)  # type: ignore[arg-type]
    return module


def swap(module: nn.Module, layers: dict[type[nn.Module], Any], config: MultiBitConfig) -> nn.Module:
    """Replace layers in place, keeping device, and return the module."""
    for name, child in list(module.named_children()):
        if type(child) in layers:
            made = layers[type(child)](child, config).train(child.training)
            setattr(module, name, made.to(next(child.parameters()).device))
        elif type(child) not in layers.values():
            swap(child, layers, config)
    return module


def memory(module: nn.Module) -> dict[str, int]:
    """Return the bytes of a packed network: `packed` as stored, `float32` of the same matrices, `rest` uncoded."""
    packed = [part for part in module.modules() if isinstance(part, Packed)]
    coded = {id(buffer) for part in packed for buffer in part.buffers()}
    rest = [tensor for tensor in (*module.parameters(), *module.buffers()) if id(tensor) not in coded]
    return {
        "packed": sum(part.codes.bytes for part in packed),
        "float32": sum(4 * part.length * len(part.alpha) for part in packed),
        "rest": sum(tensor.numel() * tensor.element_size() for tensor in rest),
    }
