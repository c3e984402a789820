"""Certificate methods by name: the core's, and those of plugins. Torch-free."""

from __future__ import annotations

from iclr18cli.certify.builtin import BUILTIN
from iclr18cli.errors import UsageError, did_you_mean
from iclr18cli.plugin import CertifierSpec


def certifiers() -> dict[str, CertifierSpec]:
    """Return every certificate method by name."""
    from iclr18cli.manager import plugins

    return {spec.name: spec for spec in (*BUILTIN, *plugins().certifiers())}


def find(name: str) -> CertifierSpec:
    """Return a certificate method.

    Raises:
        UsageError: there is none of that name.
    """
    known = certifiers()
    if name not in known:
        raise UsageError(f"There is no certificate method '{name}'.", fix=did_you_mean(name, known))
    return known[name]
