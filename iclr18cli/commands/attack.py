"""`iclr18 attack RUN…`, `iclr18 attack --model PKG.MODULE:FACTORY …`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import typer

from iclr18cli import config as configs
from iclr18cli import launch, spawn
from iclr18cli.attack.config import AttackConfig
from iclr18cli.attack.registry import attacks
from iclr18cli.attack.stages import AUTOATTACK
from iclr18cli.call import Outcome
from iclr18cli.command import OPTIONAL_RUNS, argument, deliver, on_command_line, typer_command
from iclr18cli.console import complain
from iclr18cli.errors import UserError
from iclr18cli.settings import RankSettings
from iclr18cli.subject import OwnModelOptions

CLASSES = (AttackConfig, OwnModelOptions, RankSettings)
TORCHATTACKS = "torchattacks/"


def app() -> Any:
    """Build the command from AttackConfig."""

    def attack(ctx: typer.Context, /, **given: Any) -> None:
        flags = {name: value for name, value in given.items() if on_command_line(ctx, name)}
        values = {k: v for cls in CLASSES for k, v in configs.explicit(cls, flags).items()}
        references = list(given["runs"] or ())
        deliver(ctx, lambda console: perform(references, values, console, argv=ctx.obj or ()), given)

    runs = argument("runs", list[str], OPTIONAL_RUNS)
    panels = zip(CLASSES, ("Attack", "Your own model", "Run"), strict=True)
    options = [made for cls, panel in panels for made in configs.parameters(cls, panel=panel)]
    return typer_command(attack, "attack", [runs, *options], help_text=help_text())


def help_text() -> str:
    """Return the command's help: what it does, and every attack by name with the norms it offers."""
    known = [spec for spec in attacks().values() if not spec.refused]
    own = [f"{s.name} ({', '.join(s.norms)}): {s.summary}" for s in known if not s.name.startswith(TORCHATTACKS)]
    foreign = [s.name.removeprefix(TORCHATTACKS) for s in known if s.name.startswith(TORCHATTACKS)]
    suite = f"{AUTOATTACK}: apgd, apgd-t, fab-t and square with the standard budget, each on what the last left."
    parts = [
        "Try to break predictions: an upper bound of robust accuracy.",
        "Name runs, or your own model by --model; several make one table. An evaluation that is interrupted goes on "
        "where it stopped when the same command is given again.",
        *own,
        suite,
        f"{TORCHATTACKS}NAME with NAME one of {', '.join(foreign)}." if foreign else "",
    ]
    return "\n\n".join(part for part in parts if part)


def perform(references: Sequence[str], values: dict[str, Any], console: Any, *, argv: Sequence[str] = ()) -> Outcome:
    """Attack runs and own models one after the other, keep each report, and set them side by side."""
    config, own, settings = configs.layered(CLASSES, layers=[("", values)])
    config.check()  # wrong names and options are told before torch is imported
    own.check(references)
    if spawn.asked_for(settings):
        from iclr18cli.models.own import subjects

        for subject in subjects(references, own, settings, console):
            _ = subject.card  # what is missing is told once, not by every rank
        return Outcome({}, "", code=spawn.spawn(settings, argv, tell=lambda line: complain(UserError(line))))
    with launch.joined(settings.device):
        return _attacked(references, config, own, settings, console)


def _attacked(references: Sequence[str], config: Any, own: Any, settings: Any, console: Any) -> Outcome:
    from iclr18cli.attack import pictures
    from iclr18cli.attack.runs import attack_run, keep_files
    from iclr18cli.console import plain, table
    from iclr18cli.execute import open_runs
    from iclr18cli.models.doubts import joined
    from iclr18cli.models.own import subjects
    from iclr18cli.run.atomic import digest, write_json

    options = configs.to_dict(config) | {"seed": settings.seed} | ({"dataset": own.dataset} if own.dataset else {})
    source = open_runs([config.from_], settings, console)[0].model() if config.from_ else None
    documents, texts, reports = [], [], {}
    named = subjects(references, own, settings, console)
    for subject in named:
        evaluated = attack_run(subject, config, source=source)
        if evaluated.resumed:
            console.hint(f"resumed  {evaluated.resumed} batches were done already")
        if launch.world().rank:
            continue
        stem = f"{config.name.replace('/', '-').replace(',', '+')}-{digest({'options': options})[:8]}"
        files = keep_files(subject, config, evaluated, stem)
        report = evaluated.report
        report = replace(report, files=files, warnings=joined(subject.warnings, report.warnings))
        document = {"run": str(subject.path) if subject.path else None, "model": subject.label, "options": options,
                    **plain(report.to_json())}  # fmt: skip
        place = subject.keep("attack", f"{stem}.json")
        if place is not None:
            document["file"] = str(write_json(place, document))
        documents.append(document)
        reports[subject.label] = report
        saved = [*files.values(), *([document["file"]] if place else [])]
        texts.append("\n".join([report.to_text(), "", *(f"saved  {path}" for path in saved)]).rstrip())
    if launch.world().rank:
        return Outcome({}, "")
    if len(documents) == 1:
        return Outcome(documents[0], texts[0], value=documents[0])
    if config.sweep:
        rows = [[d["model"], *[p["accuracy"] for p in d["points"]]] for d in documents]
        heads = ["model", *[f"eps {p['eps']:.4g}" for p in documents[0]["points"]]]
        place = named[0].keep("plots", "attack-curves.png")
        if place is not None:
            texts.append(f"saved  {pictures.save(pictures.curves(reports), place)}")
    else:
        rows = [
            [d["model"], d["clean"]["accuracy"], d["robust"]["accuracy"], d["perturbation"].get("median"),
             d["sample"]["n"], "" if d["diagnosis"] is None else ("yes" if d["diagnosis"]["believable"] else "NO")]
            for d in documents
        ]  # fmt: skip
        heads = ["model", "clean accuracy", "robust accuracy (attack)", "median change", "n", "believable"]
    text = "\n\n".join([*texts, table(heads, rows)])
    return Outcome({"runs": documents}, text, value=documents)
