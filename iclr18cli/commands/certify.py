"""`iclr18 certify RUN --method M`: the options are those of all methods, each of which takes its own."""

from __future__ import annotations

import inspect
import time
from typing import Any

import typer

from iclr18cli import config as configs
from iclr18cli.call import Call, Outcome, find_technique
from iclr18cli.certify.registry import certifiers, find
from iclr18cli.command import RUN, argument, deliver, on_command_line, option, typer_command
from iclr18cli.errors import ClaimError, ExitCode, UsageError, UserError
from iclr18cli.execute import certified, open_runs
from iclr18cli.execute import perform as perform_call
from iclr18cli.plugin import resolve
from iclr18cli.settings import Settings

OF_THE_TECHNIQUE = "technique"
ALL = "all"


def app() -> Any:
    """Build the command from the configs of every method."""
    classes = {name: resolve(spec.config) for name, spec in certifiers().items()}

    def certify(ctx: typer.Context, /, **given: Any) -> None:
        flags = {name: value for name, value in given.items() if on_command_line(ctx, name)}
        values = {k: v for cls in (*classes.values(), Settings) for k, v in configs.explicit(cls, flags).items()}
        deliver(ctx, lambda console: perform(given["run"], given["method"] or ALL, values, console), given)

    names = ", ".join([*classes, f"{OF_THE_TECHNIQUE} (the run's own claim)", ALL])
    method = option("--method", str, f"{names}. Default: all.", metavar="M")
    options: dict[str, inspect.Parameter] = {}
    for name, cls in classes.items():
        for made in configs.parameters(cls, panel=f"--method {name}"):
            options.setdefault(made.name, made)
    shared = configs.parameters(Settings, panel="Run")
    parameters = [argument("run", str, RUN), method, *options.values(), *shared]
    help_text = (
        "State what holds for a run, with its verdict and its limits; a contradicted bound ends with exit code 4."
    )
    return typer_command(certify, "certify", parameters, help_text=help_text)


def perform(reference: str, method: str, values: dict[str, Any], console: Any) -> Outcome:
    """Certify a run with one method, its technique's own, or with all that apply."""
    if method not in (OF_THE_TECHNIQUE, ALL):
        find(method)
    shared = {field.name for field in configs.options(Settings)}
    settings = configs.build(Settings, {k: v for k, v in values.items() if k in shared})
    given = {k: v for k, v in values.items() if k not in shared}
    run = open_runs([reference], settings, console)[0]
    if method == OF_THE_TECHNIQUE:
        try:
            technique = find_technique(run.technique)
        except UsageError:
            made_by = run.directory.info.get("plugin") or "the plugin that made it"
            raise UserError(
                f"{run.path} was made by '{run.technique}', which no active plugin offers.",
                why="iclr18 plugins list shows what is",
                fix=f"install {made_by}, or: iclr18 certify {run.path} --method all",
            ) from None
        if "certify" not in technique.commands:
            raise UserError(
                f"The technique '{technique.name}' certifies nothing of its own.", fix="iclr18 certify RUN --method all"
            )
        return perform_call(Call(technique, "certify", flags=values, runs=[reference]), console)
    if method != ALL:
        return _one(method, run, given)
    _ = run.card  # its error says how to get a model
    outcomes, refusals = [], []
    known = certifiers()
    for name in known:
        fields = {field.name for field in configs.options(resolve(known[name].config))}
        try:
            outcomes.append((name, _one(name, run, {k: v for k, v in given.items() if k in fields})))
        except (UsageError, ClaimError):
            raise
        except UserError as error:
            refusals.append(error)
            outcomes.append(
                (name, Outcome({"method": name, "refused": error.what, "why": error.why, "fix": error.fix}, ""))
            )
    if len(refusals) == len(known):
        raise (
            refusals[0]
            if len(refusals) == 1
            else UserError(
                "No certificate method applies to this run.",
                why="; ".join(f"{n}: {o.document['refused']}" for n, o in outcomes),
                fix=f"iclr18 certify {run.path} --method M says what one of them needs",
            )
        )
    for name, refusal in zip((n for n, o in outcomes if "refused" in o.document), refusals, strict=True):
        console.hint(f"{name} does not apply: {refusal}")
    code = max((outcome.code for _, outcome in outcomes), default=ExitCode.DONE)
    document = {
        "run": str(run.path),
        "method": ALL,
        "certificates": [c for _, o in outcomes for c in o.document.get("certificates", ())],
        "refused": [dict(o.document) for _, o in outcomes if "refused" in o.document],
    }
    text = "\n\n".join(o.text for _, o in outcomes if o.text)
    return Outcome(document, text, code, run.directory, [c for _, o in outcomes for c in (o.value or ())])


def _one(method: str, run: Any, given: dict[str, Any]) -> Outcome:
    spec = find(method)
    config_class = resolve(spec.config)
    foreign = set(given) - {field.name for field in configs.options(config_class)}
    if foreign:
        raise UsageError(
            f"--method {method} takes no {', '.join('--' + name.replace('_', '-') for name in sorted(foreign))}."
        )
    config = configs.build(config_class, given)
    if run.card.task not in spec.tasks:
        raise UserError(f"{method} certifies models for {', '.join(spec.tasks)}; this run's task is {run.card.task}.")
    reason = resolve(spec.refuses)(run) if spec.refuses else None
    if reason:
        raise UserError(f"{method} does not apply to this run.", why=reason)
    start = time.perf_counter()
    certificates = resolve(spec.run)(config, run)
    options = {"method": method, **configs.to_dict(config), "seed": run.seed}
    given_all = {"technique": run.technique, "command": "certify", "options": options}
    return certified(certificates, run.directory, given_all, time.perf_counter() - start)
