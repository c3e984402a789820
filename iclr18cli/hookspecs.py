"""The hooks of `iclr18`, interface version 1.

Offers return records, import nothing heavy and are idempotent. Events observe and never steer: an exception in one is
reported once and the observer is left out for the rest of the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pluggy

from iclr18cli.plugin import AttackSpec, CertifierSpec, Check, DatasetSpec, ModelSpec, RunInfo, Technique

hookspec = pluggy.HookspecMarker("iclr18")


@hookspec
def iclr18_techniques() -> Iterable[Technique]:  # type: ignore[empty-body]
    """Offer techniques: `return [Technique(name="hello", summary="Say hello", commands={...})]`."""


@hookspec
def iclr18_datasets() -> Iterable[DatasetSpec]:  # type: ignore[empty-body]
    """Offer data sets: `return [DatasetSpec(name="moons", task="classify", summary="...", load="hello.data:load")]`."""


@hookspec
def iclr18_models() -> Iterable[ModelSpec]:  # type: ignore[empty-body]
    """Offer networks: `return [ModelSpec(name="hello/net", task="classify", summary="...", build="hello.net:Net")]`."""


@hookspec
def iclr18_attacks() -> Iterable[AttackSpec]:  # type: ignore[empty-body]
    """Offer attacks: `return [AttackSpec(name="nudge", norms=("l2",), summary="...", run="hello.attack:nudge")]`."""


@hookspec
def iclr18_certifiers() -> Iterable[CertifierSpec]:  # type: ignore[empty-body]
    """Offer certificates: `return [CertifierSpec(name="margin", config="...", run="...", summary="...")]`."""


@hookspec
def iclr18_checks() -> Iterable[Check]:  # type: ignore[empty-body]
    """Offer lines of `iclr18 plugins doctor`: `return [Check(name="hello weights", run="hello.check:weights")]`."""


@hookspec
def iclr18_run_started(run: RunInfo) -> None:
    """Observe that a run starts or goes on."""


@hookspec
def iclr18_run_logged(run: RunInfo, step: int, metrics: Mapping[str, float]) -> None:
    """Observe one line of metrics.jsonl."""


@hookspec
def iclr18_run_finished(run: RunInfo, status: str) -> None:
    """Observe that a run ended: done, interrupted or failed."""
