"""Our certificates beside their peers on trained runs: randomized smoothing and ART's, IBP and CROWN and auto_LiRPA's.

    python benchmarks/certify.py smoothing RUN... [--points 10] [--draws 1000] [--sigma 0.25]
    python benchmarks/certify.py bounds    RUN... [--points 50] [--eps 0.1]

smoothing: the same points, draws and alpha. *bare* is a loop of noise, forward pass and argmax in batches of the same
size, with nothing around it. The radii agree up to the draws; the table shows the mean of both.
bounds: certified accuracy and time per point of IBP and CROWN, with PGD inside the ball left out. auto_LiRPA is timed
where it is installed; it has no ELU.

A peer that is not installed is left out and named.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import measuring
import torch
from measuring import peer, trained
from torch import Tensor, nn

from iclr18cli.attack.memory import batch_size_for
from iclr18cli.attack.threat import Threat
from iclr18cli.data.tensors import Split

ALPHA = 0.001


def bare(net: nn.Module, x: Tensor, sigma: float, draws: int, batch: int) -> list[int]:
    """Count classes under noise with nothing around the loop."""
    found = []
    with torch.no_grad():
        for point in x:
            counts = torch.zeros(net(x[:1]).shape[1], dtype=torch.int64, device=x.device)
            for start in range(0, draws, batch):
                size = min(batch, draws - start)
                noisy = point + sigma * torch.randn(size, *point.shape, device=x.device)
                counts += torch.bincount(net(noisy).argmax(1), minlength=len(counts))
            found.append(int(counts.max()))
    return found


def smoothing_table(runs: dict[str, nn.Module], split: Split, options: Any, clock: measuring.Clock) -> list[list[Any]]:
    """Compare randomized smoothing."""
    from iclr18cli.certify.randomized import certify_point

    rows, x, y = [], split.inputs(), split.y
    for name, net in runs.items():
        batch, radii = batch_size_for(net, x[:2]), dict[str, list[float]]()

        def ours(net: nn.Module = net, batch: int = batch, radii: dict[str, list[float]] = radii) -> None:
            points = [
                certify_point(net, point, int(label), index, sigma=options.sigma, n0=100, n=options.draws, alpha=ALPHA,
                              batch_size=batch)
                for index, (point, label) in enumerate(zip(x, y, strict=True))
            ]  # fmt: skip
            radii["iclr18"] = [point.radius for point in points]

        tasks = {
            "iclr18": lambda ours=ours: clock.of(ours),
            "bare": lambda net=net, batch=batch: clock.of(
                lambda: bare(net, x, options.sigma, options.draws + 100, batch)
            ),
        }
        if peer("art.estimators.certification.randomized_smoothing"):
            from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

            classes = net(x[:1]).shape[1]
            smoothed = PyTorchRandomizedSmoothing(
                net, nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes, sample_size=100, scale=options.sigma,
                alpha=ALPHA,
            )  # fmt: skip

            def theirs(smoothed: Any = smoothed, batch: int = batch, radii: dict[str, list[float]] = radii) -> None:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    found = smoothed.certify(x.cpu().numpy(), n=options.draws, batch_size=batch)[1]
                radii["ART"] = [max(0.0, float(radius)) for radius in found]

            tasks["ART"] = lambda theirs=theirs: clock.of(theirs)
        samples = measuring.interleaved(tasks, rounds=options.rounds)
        for package, times in samples.items():
            found = radii.get(package, [])
            mean = sum(found) / len(found) if found else None
            rows.append([name, package, measuring.milliseconds(times, per=len(x)),
                         measuring.ratio(samples, "iclr18", package), mean])  # fmt: skip
    return rows


def bounds_table(runs: dict[str, nn.Module], split: Split, options: Any, clock: measuring.Clock) -> list[list[Any]]:
    """Compare IBP and CROWN."""
    from iclr18cli.certify.bounds import margins

    rows, x, y, threat = [], split.inputs(), split.y, Threat("linf", options.eps)
    for name, net in runs.items():
        kept: dict[str, Tensor] = {}
        seconds: dict[str, float] = {}
        for method in ("ibp", "crown"):

            def ours(net: nn.Module = net, method: str = method, kept: dict[str, Tensor] = kept) -> None:
                kept[method] = margins(net, x, y, threat=threat, method=method)

            seconds[method] = clock.of(ours)
        lirpa = peer("auto_LiRPA")
        for word in ("IBP", "CROWN") if lirpa else ():
            with contextlib.suppress(NotImplementedError):
                seconds[f"auto_LiRPA {word}"], kept[f"auto_LiRPA {word}"] = of_lirpa(
                    lirpa, net, x, y, options, word, clock
                )
        for method, found in kept.items():
            own = torch.ones_like(found, dtype=torch.bool).scatter(1, y[:, None].to(found.device), False)
            sure = ((found > 0) | ~own).all(1)
            base = "crown" if method.lower().endswith("crown") else "ibp"
            rows.append([name, method, 100 * sure.double().mean().item(), 1000 * seconds[method] / len(x),
                         seconds[base] / seconds[method]])  # fmt: skip
    return rows


def of_lirpa(
    package: Any, net: nn.Module, x: Tensor, y: Tensor, options: Any, word: str, clock: Any
) -> tuple[float, Tensor]:
    """Return (seconds, margins) of auto_LiRPA."""
    classes = net(x[:1]).shape[1]
    eye = torch.eye(classes, device=x.device)
    C = eye[y][:, None] - eye[None]
    kept: list[Tensor] = []

    def run() -> None:
        bounded = package.BoundedModule(net, x[:1])
        ball = package.PerturbationLpNorm(
            norm=float("inf"), x_L=(x - options.eps).clamp(0, 1), x_U=(x + options.eps).clamp(0, 1)
        )
        kept.append(bounded.compute_bounds(x=(package.BoundedTensor(x, ball),), C=C, method=word, bound_upper=False)[0])

    return clock.of(run), kept[0]


TABLES: dict[str, Any] = {
    "smoothing": (smoothing_table, ["run", "package", "ms/point", "ours / it", "mean radius"]),
    "bounds": (bounds_table, ["run", "method", "certified %", "ms/point", "ours / it"]),
}


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directories of runs trained on one data set")
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    measuring.add_torch_options(parser)
    options = parser.parse_args()
    clock = measuring.clock_of(options)
    runs, split = trained(options.runs, options.points, options.device)
    make, columns = TABLES[options.table]
    rows = make(runs, split, options, clock)
    about = measuring.machine(options.device)
    missing = [name for name in ("art", "auto_LiRPA") if peer(name) is None]
    notes = [f"not installed: {', '.join(missing)}"] if missing else []
    title = f"{options.table}: the first {len(split)} test points of {split.name}, seed 0, {clock.kind} time"
    measuring.report(title, columns, rows, about, notes)
    measuring.write(options.json, {"columns": columns, "rows": rows, "machine": about})


if __name__ == "__main__":
    main()
