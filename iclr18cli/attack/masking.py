"""The pass over unattacked points: what is right already, and signs that gradients are no guide to this model.

AutoAttack's automatic flags (Croce and Hein 2020) and the advice of Carlini et al. (2019), §3, as far as they come at
the price of one forward and one backward pass.

B batch · X the axes of one input · K classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iclr18cli.attack.losses import objective
from iclr18cli.attack.threat import Loss, Threat
from iclr18cli.data.tensors import Split, batches
from iclr18cli.errors import UserError
from iclr18cli.models.modes import evaluating


@dataclass(frozen=True)
class Clean:
    """Predictions on unattacked points, and the flags seen on the way; all tensors are (N,) on the CPU."""

    correct: Tensor
    predicted: Tensor
    zero_gradient: Tensor
    classes: int
    warnings: Sequence[str]
    arithmetic: str

    @property
    def zero_gradient_share(self) -> float:
        """Return the share of points at which the loss has no input gradient at all."""
        return self.zero_gradient.double().mean().item()


def clean_pass(model: nn.Module, split: Split, *, threat: Threat, loss: Loss, batch_size: int) -> Clean:
    """Classify every point and look at its input gradient.

    Args:
        model: Maps inputs to (B, K) logits.
        split: The points, on the model's device.
        threat: Its domain is what inputs are held against.
        loss: The loss whose gradient is looked at.
        batch_size: Points per batch.

    Raises:
        UserError: Inputs outside the declared range, labels outside the classes, logits of a wrong shape or not finite.
    """
    predicted, zero, probable, drift, classes = [], [], [], 0.0, 0
    dtype = torch.float32
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        for first, (x_BX, y_B) in enumerate(batches(split, batch_size)):
            threat.admit(x_BX)
            x_BX = x_BX.detach().clone().requires_grad_()
            logits_BK = model(x_BX)
            _check_logits(logits_BK, y_B)
            dtype = logits_BK.dtype
            classes = logits_BK.shape[1]
            predicted.append(logits_BK.argmax(1))
            value_B = objective(logits_BK, y_B, loss=loss)
            if value_B.requires_grad:
                (gradient_BX,) = torch.autograd.grad(value_B.sum(), x_BX, materialize_grads=True)
                zero.append(~gradient_BX.flatten(1).any(1))
            else:
                zero.append(torch.ones_like(y_B, dtype=torch.bool))
            logits_BK = logits_BK.detach()
            sums_to_one = (logits_BK.sum(1) - 1).abs().max() < 1e-4
            probable.append(bool(sums_to_one and logits_BK.min() >= 0 and logits_BK.max() <= 1))
            if first == 0:
                with torch.no_grad():
                    drift = (model(x_BX) - logits_BK).abs().max().item()
    zero_N = torch.cat(zero).cpu()
    predicted_N = torch.cat(predicted).cpu()
    return Clean(
        correct=predicted_N == split.y.cpu(),
        predicted=predicted_N,
        zero_gradient=zero_N,
        classes=classes,
        warnings=_warnings(zero_N, all(probable), drift),
        arithmetic=str(dtype).split(".")[1],
    )


def _check_logits(logits_BK: Tensor, y_B: Tensor) -> None:
    if logits_BK.dim() != 2 or logits_BK.shape[0] != len(y_B) or logits_BK.shape[1] < 2:
        raise UserError(
            "The model does not return one row of at least two class scores per input.",
            why=f"{len(y_B)} inputs gave an output of shape {tuple(logits_BK.shape)}",
            fix="Wrap it in a module that returns (batch, classes) logits; two columns for a binary model.",
        )
    low, high = int(y_B.min()), int(y_B.max())
    if low < 0 or high >= logits_BK.shape[1]:
        raise UserError(
            f"Labels reach from {low} to {high}, the model has the classes 0 to {logits_BK.shape[1] - 1}.",
            fix="Attack it on data with the classes it was trained for.",
        )
    if not torch.isfinite(logits_BK).all():
        raise UserError("The model's logits are NaN or infinite on unattacked points.", fix="Train it again.")


def _warnings(zero_N: Tensor, probabilities: bool, drift: float) -> list[str]:
    found = []
    if zero_N.any():
        found.append(
            f"The loss has no input gradient at {int(zero_N.sum())} of {len(zero_N)} unattacked points: gradient "
            "attacks start blind there, and surviving them says little. Try the margin loss and the noise attack."
        )
    if probabilities:
        found.append("The outputs look like probabilities; attacks want logits, and a softmax hides gradients.")
    if drift > 1e-4:
        found.append(
            f"Two passes over the same points differ by {drift:.2g}: the model is random in evaluation mode, and every "
            "number here depends on the draw."
        )
    return found
