"""`dgc bench`: seconds and bytes of a training step on links of several rates, beside dense, fp16 and PowerSGD."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, get_args

from iclr18_dgc import link
from iclr18_dgc.config import BenchConfig, Compressor
from iclr18cli.errors import UsageError, UserError, did_you_mean
from iclr18cli.report.plot import new_figure
from iclr18cli.run.atomic import write_json

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run

DENSE = "none"
TIMEOUT_SECONDS = 900


def bench(config: BenchConfig, run: Run) -> dict[str, Any]:
    """Measure every compressor on every link, keep the table, and draw it."""
    for name in config.compressor:
        if name not in get_args(Compressor):
            raise UsageError(f"There is no compressor '{name}'.", fix=did_you_mean(name, get_args(Compressor)))
    speeds = {rate: link.bits_per_second(rate) for rate in config.link}
    why = "--model-only" if config.model_only else link.why_not()
    measured = {rate for rate, speed in speeds.items() if speed is None or not why}
    loopback: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    with run.progress(len(speeds), "links") as bar:
        if len(measured) < len(speeds) or link.LOOPBACK in speeds:
            loopback = on_link(link.LOOPBACK, config)
        for rate, speed in speeds.items():
            if rate == link.LOOPBACK:
                found = loopback
            elif rate in measured:
                found = on_link(rate, config)
            else:
                assert speed is not None
                found = {name: modelled(row, speed) for name, row in loopback.items()}
            rows += table_rows(rate, found, measured=rate in measured)
            bar.advance()
    document = {"rows": rows, "modelled_because": why, "workers": config.workers, "steps": config.steps}
    write_json(run.path / "artifacts" / "bench.json", document)
    run.figure("bench", figure(rows, config.workers))
    run.finish(**{f"{row['compressor']} {row['link']} seconds": row["seconds"] for row in rows})
    told: dict[str, Any] = {"per step and worker": rows}
    if len(measured) < len(speeds):
        told["link model"] = (
            f"seconds on a limited link are computed: loopback's plus bytes / rate ({why}); they were not measured"
        )
    return told


def on_link(rate: str, config: BenchConfig) -> dict[str, dict[str, Any]]:
    """Return compressor -> what rank 0 measured.

    Raises:
        UserError: The link could not be made, or a rank failed.
    """
    try:
        with link.joined_by(rate, config.workers) as places:
            return _measured(places, config)
    except OSError as error:
        raise UserError(
            f"The link of {rate} could not be made.", why=str(error), fix="--model-only computes its times instead"
        ) from error


def _measured(places: list[link.Place], config: BenchConfig) -> dict[str, dict[str, Any]]:
    port = _free_port() if not places[0].prefix else 29518
    asked = {
        "compressors": list(config.compressor), "hidden": list(config.hidden), "batch_size": config.batch_size,
        "steps": config.steps, "density": config.density, "rank": config.rank,
    }  # fmt: skip
    ranks = []
    for number, place in enumerate(places):
        around = {
            **os.environ, "RANK": str(number), "WORLD_SIZE": str(len(places)), "MASTER_ADDR": place.address,
            "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": place.interface, "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }  # fmt: skip
        words = [*place.prefix, sys.executable, "-m", "iclr18_dgc.bench_rank",
                 json.dumps({**asked, "interface": place.interface})]  # fmt: skip
        ranks.append(subprocess.Popen(words, env=around, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        said = [rank.communicate(timeout=TIMEOUT_SECONDS) for rank in ranks]
    except subprocess.TimeoutExpired as error:
        raise UserError(f"A rank did not end within {TIMEOUT_SECONDS} seconds.", fix="fewer --steps") from error
    finally:
        for rank in ranks:
            rank.kill()
    for number, (rank, (_, complaint)) in enumerate(zip(ranks, said, strict=True)):
        if rank.returncode:
            last = (complaint.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"Rank {number} of the benchmark failed.", why=last)
    return {row["compressor"]: row for row in json.loads(said[0][0])}


def modelled(row: dict[str, Any], speed: float) -> dict[str, Any]:
    """Return a row as it would be on a link that carries `speed` bits a second each way and delays nothing."""
    return {**row, "seconds": row["seconds"] + 8 * row["claimed"] / speed, "sent": row["claimed"]}


def table_rows(rate: str, found: dict[str, dict[str, Any]], *, measured: bool) -> list[dict[str, Any]]:
    """Return the rows of one link, with what each gains over the dense gradient."""
    dense = found.get(DENSE)
    return [
        {
            "link": rate,
            "compressor": name,
            "seconds": row["seconds"],
            "sent_bytes": row["sent"],
            "claimed_bytes": row["claimed"],
            "times_faster": dense["seconds"] / row["seconds"] if dense else None,
            "times_fewer_bytes": dense["sent"] / row["sent"] if dense and row["sent"] else None,
            "how": "measured" if measured else "computed",
        }
        for name, row in found.items()
    ]


def figure(rows: list[dict[str, Any]], workers: int) -> Any:
    """Draw seconds and bytes per step, a group of bars for each link."""
    drawn, axes = new_figure(1, 2)
    links, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("link", "compressor"))
    width = 0.8 / len(names)
    for panel, key, label in zip(axes, ("seconds", "sent_bytes"), ("seconds per step", "bytes sent per step"),
                                 strict=True):  # fmt: skip
        for number, name in enumerate(names):
            own = {row["link"]: row[key] for row in rows if row["compressor"] == name}
            places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(links))]
            panel.bar(places, [own.get(rate, 0.0) for rate in links], width, label=name)
        panel.set_xticks(range(len(links)), links)
        panel.set_yscale("log")
        panel.set_ylabel(label)
    axes[0].legend(frameon=False, fontsize=7)
    axes[0].set_title(f"{workers} workers")
    return drawn


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
