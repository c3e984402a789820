"""LSTM and GRU layers with multi-bit codes: trained through the quantiser, or packed for good; Eq. (6)."""

# T steps · B sequences · D inputs · H hidden units · G gates, 4 of an LSTM, 3 of a GRU · N entries of a row

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18cli.compression.layers import MultiBitConfig, Packed, kernel_pays

Product = Callable[[Tensor], Tensor]
"""h (B, H) -> U h (B, G H), h coded on line."""


class PackedRecurrent(nn.Module):
    """An `nn.LSTM` or `nn.GRU`, one direction, time first, of packed rows; hidden states are coded at every step.

    The first layer's inputs are taken as they are, rows of a quantised embedding, whose codes are known, unless
    `coded_inputs` is set: then they are another module's hidden states. Those of higher layers are always coded.
    """

    coded_inputs = False

    def __init__(self, layer: nn.RNNBase, config: MultiBitConfig):
        super().__init__()
        check(layer)
        self.config, self.mode = config, layer.mode
        H, D, bits, G = layer.hidden_size, layer.input_size, config.weight_bits, gates(layer)
        sizes = [D] + [H] * (layer.num_layers - 1)
        self.inputs = nn.ModuleList(Packed(G * H, size, bits) for size in sizes)
        self.states = nn.ModuleList(Packed(G * H, H, bits) for _ in sizes)
        self.biases = nn.ParameterList(
            nn.Parameter(part.detach().clone()) for number in range(len(sizes)) for part in biases(layer, number)
        )

    def forward(self, x_TBD: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return ((T, B, H), state) like the layer it stands for."""
        packed, layers = kernel_pays(x_TBD[0], self.config), []
        for number, (w, u) in enumerate(zip(self.inputs, self.states, strict=True)):
            if packed:
                dense = None if u.packed_pays(self.config) else u.dense()  # type: ignore[operator]
                product: Product = lambda h_BH, u=u, dense=dense: u.product(h_BH, self.config, dense)  # type: ignore[misc]
            else:
                product = lambda h_BH, dense=u.dense(): F.linear(self.config.activations(h_BH), dense)  # type: ignore[misc, operator]
            layers.append((w.dense(), product, self.biases[2 * number], self.biases[2 * number + 1]))  # type: ignore[operator]
        x_TBD = self.config.activations(x_TBD) if self.coded_inputs else x_TBD
        return unroll(x_TBD, state, layers, self.config, mode=self.mode)

    def load(self, layer: nn.RNNBase) -> None:
        """Code the matrices of a float layer."""
        for n in range(layer.num_layers):
            self.inputs[n].load(getattr(layer, f"weight_ih_l{n}"), self.config)  # type: ignore[operator]
            self.states[n].load(getattr(layer, f"weight_hh_l{n}"), self.config)  # type: ignore[operator]


class QuantisedRecurrent(nn.Module):
    """An `nn.LSTM` or `nn.GRU` that computes with quantised weights and states and trains its float ones.

    `coded_inputs` is as in `PackedRecurrent`.
    """

    coded_inputs = False

    def __init__(self, layer: nn.RNNBase, config: MultiBitConfig):
        super().__init__()
        check(layer)
        self.layer, self.config = layer, config

    def forward(self, x_TBD: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return ((T, B, H), state) like the layer it holds."""
        layers = []
        for n in range(self.layer.num_layers):
            w, u = (self.config.weights(getattr(self.layer, f"weight_{part}_l{n}")) for part in ("ih", "hh"))
            product: Product = lambda h_BH, u=u: F.linear(self.config.activations(h_BH), u)  # type: ignore[misc]
            layers.append((w, product, *biases(self.layer, n)))
        dropout = self.layer.dropout if self.training else 0.0
        x_TBD = self.config.activations(x_TBD) if self.coded_inputs else x_TBD
        return unroll(x_TBD, state, layers, self.config, mode=self.layer.mode, dropout=dropout)


def unroll(
    x_TBD: Tensor, state: Any, layers: list[tuple[Tensor, Product, Tensor, Tensor]], config: MultiBitConfig, *,
    mode: str, dropout: float = 0.0,
) -> tuple[Tensor, Any]:  # fmt: skip
    """Run recurrent layers over a sequence, hidden states coded before they are multiplied, Eq. (6).

    Args:
        x_TBD: Inputs; those of the first layer are not coded.
        state: As torch has it: (h, c) of an LSTM, h of a GRU, each (layers, B, H); None: zeros.
        layers: For each (W (G H, D), h -> U h, bias of inputs, bias of states), gates in torch's order.
        config: How the inputs of higher layers are coded.
        mode: "LSTM" or "GRU".
        dropout: Between layers.
    """
    T, B = x_TBD.shape[:2]
    H = layers[0][2].shape[0] // (4 if mode == "LSTM" else 3)
    zeros = x_TBD.new_zeros(len(layers), B, H)
    if mode == "LSTM":
        h_LBH, c_LBH = (zeros, zeros) if state is None else state
    else:
        h_LBH, c_LBH = (zeros if state is None else state), zeros
    last_h, last_c = [], []
    for number, (w, product, bias_x, bias_h) in enumerate(layers):
        if number:
            x_TBD = config.activations(F.dropout(x_TBD, dropout, dropout > 0))
        # The biases of an LSTM are only ever added up; those of a GRU's candidate are not.
        input_TBM, outputs = F.linear(x_TBD, w, bias_x + bias_h if mode == "LSTM" else bias_x), []
        h_BH, c_BH = h_LBH[number], c_LBH[number]
        for t in range(T):
            if mode == "LSTM":
                i, f, g, o = (input_TBM[t] + product(h_BH)).chunk(4, 1)
                c_BH = f.sigmoid() * c_BH + i.sigmoid() * g.tanh()
                h_BH = o.sigmoid() * c_BH.tanh()
            else:
                r_x, z_x, n_x = input_TBM[t].chunk(3, 1)
                r_h, z_h, n_h = (product(h_BH) + bias_h).chunk(3, 1)
                z = (z_x + z_h).sigmoid()
                h_BH = (1 - z) * (n_x + (r_x + r_h).sigmoid() * n_h).tanh() + z * h_BH
            outputs.append(h_BH)
        last_h.append(h_BH)
        last_c.append(c_BH)
        x_TBD = torch.stack(outputs)
    h_LBH = torch.stack(last_h)
    return x_TBD, ((h_LBH, torch.stack(last_c)) if mode == "LSTM" else h_LBH)


def check(layer: nn.RNNBase) -> None:
    """Raise ValueError for a layer of a kind that is not coded here."""
    if layer.bidirectional or layer.batch_first or layer.proj_size:
        raise ValueError(f"only one-way layers, time first, without projection are coded; received {layer!r}")


def gates(layer: nn.RNNBase) -> int:
    """Return the rows of a layer's matrices for one hidden unit."""
    return 4 if layer.mode == "LSTM" else 3


def biases(layer: nn.RNNBase, number: int) -> tuple[Tensor, Tensor]:
    """Return a layer's two biases, (G H,) each; zeros without."""
    if not layer.bias:
        zero = getattr(layer, f"weight_hh_l{number}").new_zeros(gates(layer) * layer.hidden_size)
        return zero, zero.clone()
    return getattr(layer, f"bias_ih_l{number}"), getattr(layer, f"bias_hh_l{number}")
