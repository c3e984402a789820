"""Our attacks beside torchattacks, foolbox, ART and the reference AutoAttack, on trained runs and the same points.

    python benchmarks/attacks.py pgd        RUN... [--points 500] [--eps 0.1 --eps 0.3] [--steps 40] [--rounds 3]
    python benchmarks/attacks.py minimal    RUN... [--points 100]
    python benchmarks/attacks.py autoattack RUN... [--points 200] [--eps 0.1 --eps 0.3]

A peer that is not installed is left out and named. Everything of one table runs in one process, in turns, on one torch
thread by default. "accuracy left" is over all points; who wins a row is for the reader to see.

pgd: linf, one start, the same steps and step length, 2.5 eps / steps. Ours starts at the point itself and keeps every
example's best iterate; the peers start at a random point and return the last iterate.
minimal: the nearest error in l2. CW with 9 values of c and 100 Adam steps each at the same learning rate; DeepFool with
50 steps. Success is the share of clean-correct points for which an error was found; the median is over these points, a
failure counting as infinitely far.
autoattack: the standard version, linf; the reference is PyPI's pyautoattack.
"""

from __future__ import annotations

import contextlib
import io
import statistics
from collections.abc import Callable
from typing import Any

import measuring
import torch
from measuring import peer, trained
from torch import Tensor, nn

from iclr18cli.attack.evaluation import attack_model
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.data.tensors import Split

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
UNIT = (0.0, 1.0)


def pgd_attacks(eps: float, steps: int) -> dict[str, Attack]:
    """Return PGD of every package, with one start."""
    from iclr18cli.attack.pgd import pgd

    length = Budget(steps=steps).step_length(eps)
    budget = Budget(steps=steps, restarts=1)
    made: dict[str, Attack] = {"iclr18": lambda net, x, y: pgd(net, x, y, threat=Threat("linf", eps), budget=budget)}
    if package := peer("torchattacks"):
        made["torchattacks"] = lambda net, x, y: package.PGD(net, eps=eps, alpha=length, steps=steps)(x, y)
    if foolbox := peer("foolbox"):

        def of_foolbox(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            attack = foolbox.attacks.LinfPGD(abs_stepsize=length, steps=steps, random_start=True)
            return attack(foolbox.PyTorchModel(net, bounds=UNIT, device=x.device), x, y, epsilons=eps)[1]

        made["foolbox"] = of_foolbox
    if art := peer("art.attacks.evasion"):

        def of_art(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            attack = art.ProjectedGradientDescent(
                art_classifier(net, x), norm="inf", eps=eps, eps_step=length, max_iter=steps, num_random_init=1,
                batch_size=len(x), verbose=False,
            )  # fmt: skip
            return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)

        made["ART"] = of_art
    return made


def art_classifier(net: nn.Module, x: Tensor) -> Any:
    """Wrap a network for ART."""
    from art.estimators.classification import PyTorchClassifier

    classes = net(x[:1]).shape[1]
    return PyTorchClassifier(net, nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes, clip_values=UNIT)


def minimal_attacks() -> dict[tuple[str, str], Attack]:
    """Return (attack, package) -> CW-L2 and DeepFool of every package."""
    from iclr18cli.attack.carlini_wagner import carlini_wagner_l2
    from iclr18cli.attack.deepfool import deepfool

    free = Threat("l2", float("inf"))
    made: dict[tuple[str, str], Attack] = {
        ("CW", "iclr18"): lambda net, x, y: carlini_wagner_l2(
            net, x, y, threat=free, budget=Budget(steps=100, searches=9)
        ),
        ("DeepFool", "iclr18"): lambda net, x, y: deepfool(net, x, y, threat=free, budget=Budget(steps=50)),
    }
    if foolbox := peer("foolbox"):

        def of_foolbox(attack: Any) -> Attack:
            return lambda net, x, y: attack(
                foolbox.PyTorchModel(net, bounds=UNIT, device=x.device), x, y, epsilons=None
            )[1]

        made["CW", "foolbox"] = of_foolbox(foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=9, steps=100))
        made["DeepFool", "foolbox"] = of_foolbox(foolbox.attacks.L2DeepFoolAttack(steps=50))
    if package := peer("torchattacks"):
        made["CW", "torchattacks (c = 1)"] = lambda net, x, y: package.CW(net, c=1, steps=900)(x, y)
        made["DeepFool", "torchattacks"] = lambda net, x, y: package.DeepFool(net, steps=50)(x, y)
    if art := peer("art.attacks.evasion"):

        def cw_of_art(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            attack = art.CarliniL2Method(
                art_classifier(net, x), binary_search_steps=9, max_iter=100, batch_size=len(x), verbose=False
            )
            return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)

        made["CW", "ART"] = cw_of_art
    return made


def autoattack_of_reference(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Run PyPI's pyautoattack, standard version, seed 0."""
    package = peer("pyautoattack")
    attack = package.AutoAttack(net, norm="Linf", eps=eps, version="standard", device=x.device, seed=0)
    attack.verbose = False
    with contextlib.redirect_stdout(io.StringIO()):
        return attack.run_standard_evaluation(x, y, batch_size=len(x))[0]


def right(net: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    """Return which points are classified correctly."""
    with torch.no_grad():
        return net(z).argmax(1) == y


def pgd_table(runs: dict[str, nn.Module], split: Split, options: Any, clock: measuring.Clock) -> list[list[Any]]:
    """Compare PGD at equal steps."""
    rows, x, y = [], split.inputs(), split.y
    for name, net in runs.items():
        for eps in options.eps:
            left: dict[str, float] = {}

            def timed(package: str, attack: Attack, net: nn.Module = net, left: dict[str, float] = left) -> float:
                torch.manual_seed(0)
                kept: list[Tensor] = []
                seconds = clock.of(lambda: kept.append(attack(net, x, y)))
                left[package] = 100 * right(net, kept[0].to(x), y).double().mean().item()
                return seconds

            attacks = pgd_attacks(eps, options.steps)
            tasks = {p: (lambda p=p, a=a, timed=timed: timed(p, a)) for p, a in attacks.items()}
            samples = measuring.interleaved(tasks, rounds=options.rounds)
            rows += [
                [name, eps, package, measuring.milliseconds(samples[package], per=len(y)),
                 measuring.ratio(samples, "iclr18", package), left[package]]
                for package in attacks
            ]  # fmt: skip
    return rows


def minimal_table(runs: dict[str, nn.Module], split: Split, options: Any, clock: measuring.Clock) -> list[list[Any]]:
    """Compare the nearest errors found."""
    rows = []
    for name, net in runs.items():
        keep = right(net, split.inputs(), split.y)
        x, y = split.inputs()[keep], split.y[keep]
        seconds: dict[tuple[str, str], float] = {}
        for (attack, package), function in minimal_attacks().items():
            torch.manual_seed(0)
            found: list[Tensor] = []
            seconds[attack, package] = clock.of(
                lambda f=function, found=found, x=x, y=y, n=net: found.append(f(n, x, y))
            )
            z = found[0].to(x)
            wrong = ~right(net, z, y)
            distance = (z - x).flatten(1).double().norm(dim=1)
            distance[~wrong] = float("inf")
            rows.append([name, attack, package, f"{100 * wrong.double().mean().item():.1f}",
                         statistics.median(distance.tolist()), seconds[attack, package],
                         seconds[attack, "iclr18"] / seconds[attack, package]])  # fmt: skip
    return rows


def autoattack_table(runs: dict[str, nn.Module], split: Split, options: Any, clock: measuring.Clock) -> list[list[Any]]:
    """Compare the standard AutoAttack."""
    rows, x, y = [], split.inputs(), split.y
    for name, net in runs.items():
        for eps in options.eps:
            kept: dict[str, Any] = {}

            def ours(net: nn.Module = net, eps: float = eps, kept: dict[str, Any] = kept) -> None:
                kept["report"] = attack_model(net, split, attack="autoattack", threat=Threat("linf", eps),
                                              diagnose=False, batch_size=len(split))  # fmt: skip

            own_seconds = clock.of(ours)
            report = kept["report"]
            stages = " ".join(f"{s['attack']} {s['broken']}" for s in report.stages)
            rows.append([name, eps, "iclr18", 100 * report.value, own_seconds, 1.0, stages])
            if peer("pyautoattack"):
                seconds = clock.of(
                    lambda net=net, eps=eps, kept=kept: kept.update(z=autoattack_of_reference(net, x, y, eps))
                )
                left = right(net, x, y) & right(net, kept["z"], y)
                rows.append([name, eps, "reference", 100 * left.double().mean().item(), seconds,
                             own_seconds / seconds, ""])  # fmt: skip
            print(f"{name} eps {eps:g}: {rows[-2:]}", flush=True)
    return rows


TABLES: dict[str, tuple[Callable[..., list[list[Any]]], list[str]]] = {
    "pgd": (pgd_table, ["run", "eps", "package", "ms/point", "ours / it", "accuracy left %"]),
    "minimal": (minimal_table, ["run", "attack", "package", "success %", "median l2", "seconds", "ours / it"]),
    "autoattack": (autoattack_table, ["run", "eps", "package", "robust %", "seconds", "ours / it", "broken by"]),
}


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directories of runs trained on one data set")
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--eps", type=float, action="append")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    measuring.add_torch_options(parser)
    options = parser.parse_args()
    options.eps = options.eps or [0.1, 0.3]
    clock = measuring.clock_of(options)
    runs, split = trained(options.runs, options.points, options.device)
    make, columns = TABLES[options.table]
    rows = make(runs, split, options, clock)
    about = measuring.machine(options.device)
    missing = [name for name in ("torchattacks", "foolbox", "art", "pyautoattack") if peer(name) is None]
    notes = [f"not installed: {', '.join(missing)}"] if missing else []
    title = f"{options.table}: the first {len(split)} test points of {split.name}, seed 0, {clock.kind} time"
    measuring.report(title, columns, rows, about, notes)
    measuring.write(options.json, {"columns": columns, "rows": rows, "machine": about})


if __name__ == "__main__":
    main()
