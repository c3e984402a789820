"""`alternating quantize`: a run's float model, coded without training (Table 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from iclr18_alternating.config import QuantizeConfig
from iclr18cli.compression.layers import MultiBitConfig
from iclr18cli.compression.methods import code_rows
from iclr18cli.compression.networks import memory, quantise_, transform
from iclr18cli.errors import UsageError, UserError
from iclr18cli.text.perplexity import perplexity, token_losses
from iclr18cli.text.training import save, text_of
from iclr18cli.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run
    from iclr18cli.run.opened import OpenedRun


def quantize(config: QuantizeConfig, run: Run, source: OpenedRun) -> None:
    """Code every matrix of a run and keep the result as a new run.

    Raises:
        UserError: The run is quantised already, or no language model.
        UsageError: The method does not take so many bits.
    """
    if source.card.transforms:
        raise UserError(f"{source.path} is quantised already.", fix="name the float run it was made from")
    if config.method in ("exact", "ternary") and config.bits_weights != 2:
        raise UsageError(f"--method {config.method} takes 2 bits.", fix="--bits-weights 2")
    if source.card.task != "language":
        raise UserError(f"{source.path} is no language model.", fix="iclr18 alternating train --bits-weights 0")
    net, tokens = source.model().cpu(), text_of(source, "test", config.limit)
    coding = MultiBitConfig(
        weight_bits=config.bits_weights, activation_bits=config.bits_activations, method=config.method,
        iterations=config.iterations,
    )  # fmt: skip
    error = mean_error(net, coding)
    before = perplexity(token_losses(net.to(run.device), tokens, run.device))
    quantise_(net.cpu(), coding)
    card = source.card
    save(run.path, net, card.model, dict(card.kwargs), Vocabulary.load(source.path), card.dataset, (transform(coding),))
    after = perplexity(token_losses(net.to(run.device), tokens, run.device))
    size = memory(net)
    run.finish(
        relative_mse=error, float_perplexity=before, perplexity=after, times_smaller=size["float32"] / size["packed"]
    )


def mean_error(net: nn.Module, coding: MultiBitConfig) -> float:
    """Return |W - W_hat|^2 / |W|^2 over all entries of all matrices."""
    lost = total = 0.0
    for w_MN in matrices(net):
        coded = code_rows(w_MN, coding.weight_bits, method=coding.method, iterations=coding.iterations)
        lost += float((w_MN - coded.dense()).double().square().sum())
        total += float(w_MN.double().square().sum())
    return lost / total


def matrices(net: nn.Module) -> list[Tensor]:
    """Return the matrices of a float network, tied ones once."""
    return [parameter.detach() for parameter in net.parameters() if parameter.dim() == 2]
