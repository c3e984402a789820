"""Bounds s1 of |a'| and s2 of |a''| for every activation a certificate may meet; wrm card, section 5."""

from __future__ import annotations

import math

from torch import nn

Slopes = tuple[float, float | None, str]

TANH_CURVATURE = 4 / (3 * math.sqrt(3))
SIGMOID_CURVATURE = 1 / (6 * math.sqrt(3))
SILU_SLOPE = 1.09984  # maximum of the derivative, 1.0998393
GELU_SLOPE = 1.12891  # Phi(sqrt 2) + sqrt 2 phi(sqrt 2) = 1.1289042
GELU_CURVATURE = 0.797885  # 2 phi(0) = 0.7978846
GELU_TANH_SLOPE, GELU_TANH_CURVATURE = 1.12902, 0.79791  # maxima 1.1289931 and 0.7978846 of the tanh form

SOFTPLUS_THRESHOLD = 15.0
"""nn.Softplus returns x itself above its threshold: a jump of exp(-threshold)/beta. From 15 on it is below the rounding
of float32 at that x, so in that arithmetic it is the softplus; certificates evaluate the softplus without the jump."""


KNOWN = (
    nn.ELU,
    nn.CELU,
    nn.Softplus,
    nn.Tanh,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.SiLU,
    nn.GELU,
    nn.ReLU,
    nn.LeakyReLU,
    nn.Hardtanh,
)


def plain(module: nn.Module, known: tuple[type[nn.Module], ...]) -> bool:
    """Return whether a module computes what one of the known classes does: their forward, and no hook around it.

    A subclass with a forward of its own, a layer that rounds its weights for example, is a different map.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not hooked and any(isinstance(module, kind) and type(module).forward is kind.forward for kind in known)


def slopes(module: nn.Module) -> Slopes | None:
    """Return (s1, s2, reason) of an activation; s2 is None, and the reason says why, where a' is not Lipschitz.

    ELU with alpha = 1 has a continuous derivative and |a''| <= 1 on both sides of 0, so its gradient is 1-Lipschitz
    although a'' jumps. With another alpha the slopes at 0 differ.

    Args:
        module: Any module; not an activation known here: None.

    Example:
        >>> slopes(nn.Softplus(beta=2.0))
        (1.0, 0.5, '')
        >>> slopes(nn.ReLU())
        (1.0, None, 'ReLU has a kink at 0')
        >>> slopes(nn.Linear(1, 1)) is None
        True
    """
    if not plain(module, KNOWN):
        return None
    match module:
        case nn.ELU() if module.alpha == 1:
            return 1.0, 1.0, ""
        case nn.ELU():
            return (
                max(1.0, abs(module.alpha)),
                None,
                f"ELU with alpha = {module.alpha:g} has a kink at 0 (alpha = 1 has none)",
            )
        case nn.CELU() if module.alpha > 0:
            return 1.0, 1 / module.alpha, ""
        case nn.Softplus() if module.beta > 0:
            if module.threshold < SOFTPLUS_THRESHOLD:
                return math.inf, None, f"Softplus jumps at its threshold of {module.threshold:g} (20 or more does not)"
            return 1.0, module.beta / 4, ""
        case nn.Tanh():
            return 1.0, TANH_CURVATURE, ""
        case nn.Sigmoid():
            return 0.25, SIGMOID_CURVATURE, ""
        case nn.LogSigmoid():
            return 1.0, 0.25, ""
        case nn.SiLU():
            return SILU_SLOPE, 0.5, ""
        case nn.GELU():
            return (
                (GELU_SLOPE, GELU_CURVATURE, "")
                if module.approximate == "none"
                else (GELU_TANH_SLOPE, GELU_TANH_CURVATURE, "")
            )
        case nn.ReLU():
            return 1.0, None, "ReLU has a kink at 0"
        case nn.LeakyReLU():
            return max(1.0, abs(module.negative_slope)), None, "LeakyReLU has a kink at 0"
        case nn.ReLU6() | nn.Hardtanh():
            return 1.0, None, f"{type(module).__name__} has kinks"
    return None
