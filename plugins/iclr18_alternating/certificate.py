"""`alternating certify`: codes that cannot be better, an error that only falls, bytes, perplexity."""

# V hidden states · N entries · C bits

from __future__ import annotations

import time
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from iclr18_alternating.config import CertifyConfig
from iclr18cli.certify.result import Certificate
from iclr18cli.compression.binary_codes import BinaryCodes, alternating, greedy, nearest_codes
from iclr18cli.compression.layers import Packed
from iclr18cli.compression.packing import packed_bytes
from iclr18cli.errors import UserError
from iclr18cli.models.card import WEIGHTS
from iclr18cli.text.certificate import perplexity_certificate
from iclr18cli.text.training import text_of

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun

ROUNDING = 1e-12


def certify(config: CertifyConfig, run: OpenedRun) -> list[Certificate]:
    """Check a quantised run.

    Raises:
        UserError: The run is not quantised.
    """
    if not run.card.transforms:
        raise UserError(f"{run.path} is a float model.", fix=f"iclr18 alternating quantize {run.path}")
    net, tokens = run.model(), text_of(run, "test", config.limit)
    bits = run.card.transforms[0]["kwargs"]["activation_bits"] or 2
    h_VN = hidden_states(net, tokens, config.vectors, run.device)
    sample = {"dataset": run.card.dataset, "split": "test", "n": len(h_VN), "what": "hidden states of the last layer"}
    return [
        falling(h_VN, bits, sample), nearest(h_VN, bits, sample), stored(net, run),
        perplexity_certificate(net, tokens, delta=config.delta, device=run.device, dataset=run.data,
                               words=run.card.classes),
    ]  # fmt: skip


@torch.no_grad()
def hidden_states(net: nn.Module, tokens: Tensor, count: int, device: torch.device) -> Tensor:
    """Return the last `count` hidden states after a piece of text, float64."""
    seen: list[Tensor] = []
    handle = net.recurrent[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))  # type: ignore[index, union-attr]
    try:
        net(tokens[: count + 16, None].to(device))
    finally:
        handle.remove()
    return seen[0][-count:, 0].double()


def falling(h_VN: Tensor, bits: int, sample: dict[str, Any]) -> Certificate:
    """State that no alternation raises the squared error (card, property 1)."""
    began = time.perf_counter()
    errors = [(h_VN - codes.dense()).square().sum(1) for codes in
              (greedy(h_VN, bits), *(alternating(h_VN, bits, iterations=T) for T in range(1, 6)))]  # fmt: skip
    size_V = h_VN.square().sum(1).clamp(min=1e-300)
    rise = max(float(((after - before) / size_V).max()) for before, after in pairwise(errors))
    means = [float((error / size_V).mean()) for error in errors]
    return Certificate(
        kind="technique", verdict="measured", subject="codes", value=rise,
        quantity="largest rise of the relative squared error",
        holds=rise <= ROUNDING, sample=sample, constants={"greedy": means[0], "T=2": means[2], "T=5": means[5]},
        statement=(f"On {len(h_VN)} hidden states of this run, coded with {bits} bits, none of five alternations "
                   f"raised the squared error: {means[0]:.4f} of the squared norm after greedy coding, "
                   f"{means[2]:.4f} at T = 2."),
        not_claimed=["That alternation ends at the best codes: for 3 bits and more it is a local optimum."],
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def nearest(h_VN: Tensor, bits: int, sample: dict[str, Any]) -> Certificate:
    """State that each code is the best of all 2^C for its coefficients (card, property 2)."""
    began = time.perf_counter()
    alpha_VC = alternating(h_VN, bits, refit=False).alpha_MK
    found = BinaryCodes(alpha_VC, nearest_codes(h_VN, alpha_VC, search="tree")).dense()
    best = torch.full_like(h_VN, torch.inf)
    for signs in product((-1.0, 1.0), repeat=bits):
        level_V1 = (alpha_VC * torch.tensor(signs, dtype=torch.float64, device=h_VN.device)).sum(1, keepdim=True)
        best = torch.minimum(best, (h_VN - level_V1).abs())
    excess = float(((h_VN - found).abs() - best).max())
    return Certificate(
        kind="technique", verdict="measured", subject="codes", value=excess,
        quantity="largest distance beyond the nearest level",
        holds=excess <= ROUNDING, sample=sample,
        statement=(f"For {h_VN.numel():,} entries of hidden states the search tree's code was the best of all "
                   f"{2**bits}, by trying them all."),
        not_claimed=["That the coefficients are the best ones."], seconds=time.perf_counter() - began,
    )  # fmt: skip


def stored(net: nn.Module, run: OpenedRun) -> Certificate:
    """State the bytes of the packed matrices, counted in the file's tensors and by formula."""
    parts = {id(part): part for part in net.modules() if isinstance(part, Packed)}.values()
    counted = sum(part.codes.bytes for part in parts)
    formula = sum(packed_bytes(len(part.alpha), part.length, part.alpha.shape[1]) for part in parts)
    floats = sum(4 * len(part.alpha) * part.length for part in parts)
    file = (run.path / WEIGHTS).stat().st_size
    return Certificate(
        kind="technique", verdict="measured", value=floats / counted, bound="equal",
        quantity="times smaller than float32",
        holds=counted == formula and file >= counted, vacuous=counted >= floats, vacuous_above=None,
        statement=(f"The {len(parts)} matrices take {counted:,} bytes packed, as the formula M K (8 ceil(N/64) + 4) "
                   f"says, {floats / counted:.2f} times less than float32; the whole model file has {file:,} bytes."),
        not_claimed=["Memory of the program while it computes.",
                     "That a run is as much faster: see alternating bench."],
        constants={"counted": counted, "formula": formula, "float32": floats, "file": file},
    )  # fmt: skip
