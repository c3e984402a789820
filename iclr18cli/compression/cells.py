"""One LSTM at batch 1, step after step, in float32, int8 and packed codes: what a speed table compares.

The float32 cells are the fair ones: weights as they lie in memory, one matrix-vector product each, no nn.LSTM called
token by token, which would pack its weights again at every call. The fastest of them is the baseline.
"""

# T steps · H hidden units = inputs · M = 4H rows

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18cli.compression.kernels import numba_kernels
from iclr18cli.compression.methods import code_rows
from iclr18cli.compression.packing import PackedCodes, pack
from iclr18cli.compression.recurrent import biases

Sequence = Callable[[], Tensor]
"""Runs all steps and returns the last h, (H,)."""
FLOAT = ("float32 mv", "float32 linear", "float32 nn.LSTM, whole sequence", "float32 nn.LSTMCell")


class PackedCell:
    """An LSTM of one layer at batch 1 on packed codes, compiled; inputs are codes too (rows of a packed embedding).

    Args:
        input_rows, state_rows: (4H, D) and (4H, H) packed, gates in torch's order.
        bias: (4H,).
        bits: C of the hidden state.
        iterations: T of its codes.
    """

    def __init__(
        self, input_rows: PackedCodes, state_rows: PackedCodes, bias: Tensor, *, bits: int, iterations: int = 2
    ):
        self.kernels, self.inputs, self.iterations = numba_kernels(), input_rows.length, iterations
        self.matrices = [part.numpy() for part in (
            input_rows.words_MKW, input_rows.alpha_MK, state_rows.words_MKW, state_rows.alpha_MK, bias.detach().float(),
        )]  # fmt: skip
        M, H = len(bias), state_rows.length
        self.h, self.c = torch.zeros(H), torch.zeros(H)
        self._h_codes = (
            torch.zeros(bits, state_rows.words_MKW.shape[2], dtype=torch.int64).numpy(),
            torch.zeros(bits).numpy(),
        )
        self._scratch = [torch.zeros(bits, H).numpy(), torch.zeros(M).numpy(), torch.zeros(M).numpy()]
        self._state = (self.c.numpy(), self.h.numpy())
        self.reset()

    def reset(self) -> None:
        """Go back to h = c = 0."""
        self.h.zero_()
        self.c.zero_()
        codes, beta = self._h_codes
        codes[:] = 0
        beta[:] = 0

    def step(self, words: Any, beta: Any) -> None:
        """Read one input, NumPy arrays (C, W) int64 and (C,) float32; `h` and `c` change in place."""
        in_words, in_alpha, st_words, st_alpha, bias = self.matrices
        codes, pre_x, pre_h = self._scratch
        self.kernels.lstm_step(
            in_words, in_alpha, st_words, st_alpha, bias, words, beta, self.inputs, *self._h_codes, codes,
            self.iterations, pre_x, pre_h, *self._state,
        )  # fmt: skip


def packed_sequence(layer: nn.LSTM, x_TH: Tensor, bits: int) -> tuple[Sequence, int]:
    """Return (runner, bytes of both matrices) of an LSTM with weights, inputs and states of `bits` bits."""
    rows = [pack(code_rows(getattr(layer, f"weight_{part}_l0").detach(), bits)) for part in ("ih", "hh")]
    cell = PackedCell(rows[0], rows[1], whole_bias(layer), bits=bits)
    coded = pack(code_rows(x_TH, bits))
    words, beta = coded.words_MKW.numpy(), coded.alpha_MK.numpy()

    def run() -> Tensor:
        cell.reset()
        for t in range(len(words)):
            cell.step(words[t], beta[t])
        return cell.h

    return run, sum(part.bytes for part in rows)


def float_sequences(layer: nn.LSTM, x_TH: Tensor) -> dict[str, Sequence]:
    """Return runners of the float32 cells; all compute the same."""
    w, u, b = layer.weight_ih_l0.detach(), layer.weight_hh_l0.detach(), whole_bias(layer).detach()  # type: ignore[operator]
    H = layer.hidden_size
    cell = nn.LSTMCell(H, H)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})

    def steps(product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        h, c = torch.zeros(H), torch.zeros(H)
        for x in x_TH:
            i, f, g, o = (product(w, x) + product(u, h)).add_(b).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h

    def cells() -> Tensor:
        state = (torch.zeros(1, H), torch.zeros(1, H))
        for x in x_TH:
            state = cell(x[None], state)
        return state[0][0]

    return {
        "float32 mv": lambda: steps(torch.mv),
        "float32 linear": lambda: steps(lambda a, y: F.linear(y[None], a)[0]),
        "float32 nn.LSTM, whole sequence": lambda: layer(x_TH[:, None])[0][-1, 0],
        "float32 nn.LSTMCell": cells,
    }


def int8_sequence(layer: nn.LSTM, x_TH: Tensor) -> Sequence | None:
    """Return the runner of torch's dynamic int8 LSTM over the whole sequence; None where torch has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.LSTM}, dtype=torch.qint8)[0]
    except (AttributeError, RuntimeError):
        return None
    return lambda: small(x_TH[:, None])[0][-1, 0]


def sequences(
    hidden: int, steps: int, *, seed: int = 0, bits: tuple[int, ...] = (2, 3)
) -> tuple[dict[str, Sequence], dict[str, int]]:
    """Return (name -> runner, name -> bytes of both weight matrices) for an LSTM of random weights, H inputs.

    Args:
        hidden: H.
        steps: T.
        seed: Of weights and inputs.
        bits: Packed cells to make.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer, x_TH = nn.LSTM(hidden, hidden).requires_grad_(False), torch.randn(steps, hidden)
    floats = 2 * 4 * hidden * hidden * 4
    runners = float_sequences(layer, x_TH)
    sizes = dict.fromkeys(runners, floats)
    small = int8_sequence(layer, x_TH)
    if small is not None:
        runners["int8 torch dynamic"], sizes["int8 torch dynamic"] = small, floats // 4
    for k in bits:
        runners[f"packed {k}/{k}"], sizes[f"packed {k}/{k}"] = packed_sequence(layer, x_TH, k)
    return runners, sizes


def whole_bias(layer: nn.LSTM) -> Tensor:
    """Return the sum of a layer's two biases, (4H,)."""
    from_inputs, from_states = biases(layer, 0)
    return (from_inputs + from_states).detach()
