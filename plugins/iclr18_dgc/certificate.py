"""`dgc certify`: that nothing is lost, that replicas stay equal, and that as few bytes are sent as is claimed."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from iclr18_dgc.audit import Audited, audit
from iclr18_dgc.config import CertifyConfig, TrainConfig
from iclr18_dgc.sizes import NETWORKS, PRINTED, Size, size_of
from iclr18cli import config as configs
from iclr18cli.certify.result import Certificate
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun

FRAME_BYTES = 512
"""What a transport may add to a collective, for each other worker: headers and announcements of a few dozen bytes."""


def certify(config: CertifyConfig, run: OpenedRun) -> list[Certificate]:
    """Let real workers go on with the run's training for a few steps, and compare what they sent with what they owe.

    Raises:
        UserError: The run was not trained with a sparse compressor, or on text.
    """
    if run.card.task == "language":
        raise UserError(
            f"{run.path} is a language model, whose training is not replayed.",
            why="the audit lets workers go on with batches of independent examples",
            fix="iclr18 dgc certify a run on images; the exchange is the same code",
        )
    trained = training_config(run)
    if trained.compressor not in ("dgc", "gradient-dropping"):
        raise UserError(
            f"{run.path} was trained with --compressor {trained.compressor}, which holds nothing back.",
            fix="name a run of --compressor dgc or gradient-dropping",
        )
    start = time.perf_counter()
    data, net = run.split("train"), run.model().cpu().requires_grad_(True)
    batch_size = config.batch_size or trained.batch_size
    with tempfile.TemporaryDirectory(prefix="iclr18-audit-") as folder, run.progress(None, "audit"):
        found = audit(net, data.inputs(), data.y, trained, workers=config.workers, steps=config.steps,
                      batch_size=batch_size, seed=run.seed, folder=Path(folder))  # fmt: skip
    seconds = time.perf_counter() - start
    common = {"sample": sample(data, config, batch_size), "seconds": seconds / 3, "arithmetic": "float32"}
    own = size_of([tuple(p.shape) for p in net.parameters()], trained.density, whole_entries=True)
    return [
        conservation(found, config, trained, **common),
        replicas(found, config, **common),
        wire_bytes(found, config, trained, **common),
        sizes(own, trained.density),
    ]


def training_config(run: OpenedRun) -> TrainConfig:
    """Return the options a run was trained with.

    Raises:
        UserError: Another technique made the run.
    """
    if run.technique != "dgc":
        raise UserError(f"{run.path} was made by '{run.technique}'.", fix="name a run of iclr18 dgc train")
    names = {field.name for field in configs.options(TrainConfig)}
    return configs.build(TrainConfig, {name: value for name, value in run.config.items() if name in names})


def sample(data: Split, config: CertifyConfig, batch_size: int) -> dict[str, Any]:
    """Say what the audit computed on."""
    return {"dataset": data.name, "split": data.split, "n": len(data), "workers": config.workers, "steps": config.steps,
            "batch_size": batch_size}  # fmt: skip


def conservation(found: list[Audited], config: CertifyConfig, trained: TrainConfig, **common: Any) -> Certificate:
    """State that what entered the residual is what was sent and what still waits (card, property 2)."""
    value = max(one.imbalance for one in found)
    # Each of the T steps rounds u, v and the sum once; a relative error of the largest entry.
    allowed = 4 * config.steps * torch.finfo(torch.float32).eps
    if trained.values != "fp32":
        allowed *= 2  # the difference to the rounded value is rounded once more
    return Certificate(
        kind="technique", verdict="measured", subject="compressor", value=value, bound="equal",
        quantity="largest |v - (sum u - sum sent)| relative to the largest |sum u|", holds=value <= allowed,
        statement=(
            f"In {config.steps} further steps of this run on {config.workers} workers, every worker's residual "
            f"equalled all that had entered it less all that it had sent, to {value:.2g} of the largest entry (float32 "
            f"rounding allows {allowed:.2g}); {100 * found[0].pending:.1f} % of the entries wait to be sent."
        ),
        not_claimed=[
            "That what waits is sent soon, or that late gradients do no harm: that is the accuracy of the run.",
            "Steps that were not audited, other machines, or GPUs.",
        ],
        constants={"allowed": allowed}, solver={"workers": [one.imbalance for one in found]}, **common,
    )  # fmt: skip


def replicas(found: list[Audited], config: CertifyConfig, **common: Any) -> Certificate:
    """State that all workers hold the same parameters, bit for bit (card, property 6)."""
    digests = {one.digest for one in found}
    return Certificate(
        kind="technique", verdict="measured", subject="compressor", value=float(len(digests)), bound="equal",
        quantity="different parameter digests", holds=len(digests) == 1,
        statement=(
            f"After these {config.steps} steps the {config.workers} workers held "
            + ("bit-identical parameters" if len(digests) == 1 else f"{len(digests)} different sets of parameters")
            + f" (SHA-256 {found[0].digest[:16]}…)."
        ),
        not_claimed=["Equal bits on other machines, other numbers of workers, or GPUs."],
        solver={"digests": [one.digest for one in found]}, **common,
    )  # fmt: skip


def wire_bytes(found: list[Audited], config: CertifyConfig, trained: TrainConfig, **common: Any) -> Certificate:
    """State how many bytes a step sent by the kernel's count, beside the program's own (card, property 10)."""
    claimed, warnings = found[0].claimed_sent, []
    slack = found[0].collectives * (config.workers - 1) * FRAME_BYTES
    counts = [one.counted_sent for one in found if one.counted_sent is not None]
    if counts:
        holds = all(
            one.claimed_sent <= count <= one.claimed_sent + slack for one, count in zip(found, counts, strict=True)
        )
        said = f"{max(counts) / config.steps:,.0f} bytes a step left a worker by the kernel's count of its connections"
    else:
        holds, said = True, f"{claimed / config.steps:,.0f} bytes a step left a worker by the program's own count"
        warnings.append(
            "This system does not count the bytes of a connection: the claim was not compared with the wire."
        )
    ratio = found[0].dense / found[0].payload
    return Certificate(
        kind="technique", verdict="measured", subject="compressor", value=ratio, bound="equal",
        quantity="times smaller than the gradient", holds=holds, vacuous=ratio <= 1, vacuous_above=1.0,
        statement=(
            f"{said} ({claimed / config.steps:,.0f} claimed, framing allowed up to {slack / config.steps:,.0f} more), "
            f"at density {trained.density:g} with {trained.values} values and {trained.indices} positions: "
            f"{ratio:.1f} times fewer than the gradient has."
        ),
        not_claimed=[
            "Headers of IP and TCP, and what the network sends again.",
            "The mean over the run's training, whose warm-up sent more: see dgc eval.",
            "That a training is as much faster: see dgc bench.",
        ],
        constants={"claimed_per_step": claimed / config.steps, "dense_per_step": found[0].dense / config.steps},
        solver={"counted": counts, "claimed": [one.claimed_sent for one in found], "allowed_framing": slack},
        warnings=warnings, **common,
    )  # fmt: skip


def sizes(own: Size, density: float) -> Certificate:
    """State the gradient sizes of the paper's tables by its own accounting, and this network's."""
    rows = {name: size_of(shapes) for name, shapes in NETWORKS.items()}
    told = "; ".join(
        f"{name} {s.dense_mib:.2f} -> {s.sent_mib:.3f} MiB, {s.ratio:.1f} times" for name, s in rows.items()
    )
    agrees = all(
        abs(rows[name].dense_mib - dense) < 0.01 and abs(rows[name].sent_mib - sent) < 0.005
        and abs(rows[name].ratio - ratio) < 1
        for name, (dense, sent, ratio) in PRINTED.items()
    )  # fmt: skip
    return Certificate(
        kind="technique", verdict="measured", subject="accounting", value=own.ratio, bound="equal",
        quantity="times smaller by the paper's accounting", holds=agrees, arithmetic="integers",
        statement=(
            f"By the paper's accounting (48 bits per entry sent, biases and norms whole) this network's gradient of "
            f"{own.dense_mib:.4g} MiB becomes {own.sent_mib:.4g} MiB at density {density:g}; the paper's tables come "
            f"out as {told}."
        ),
        not_claimed=["Bytes on a wire: fillers, framing and the agreement on finiteness are not in this accounting."],
        constants={f"{name} ratio": s.ratio for name, s in rows.items()},
        solver={name: {"weights": s.weights, "sent whole": s.whole, "MiB": s.dense_mib, "MiB sent": s.sent_mib,
                       "ratio": s.ratio, "printed": PRINTED[name]} for name, s in rows.items()},
    )  # fmt: skip
