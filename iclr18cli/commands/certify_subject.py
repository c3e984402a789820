"""Certify one subject by several methods: who takes which option, who refuses, and what they say together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from iclr18cli import config as configs
from iclr18cli import launch
from iclr18cli.call import Outcome, find_technique
from iclr18cli.certify.options import belonging, under_all
from iclr18cli.certify.registry import certifiers, find
from iclr18cli.errors import ClaimError, ExitCode, UsageError, UserError
from iclr18cli.execute import certified
from iclr18cli.plugin import resolve
from iclr18cli.report.text import certificate_name, summary_row, summary_table

SCHEMA = "iclr18.certify/1"

OF_THE_TECHNIQUE = "technique"
"""In place of a method: the claim of the technique that made the run."""


def certify_subject(
    subject: Any,
    names: Sequence[str],
    given: Mapping[str, Any],
    console: Any,
    *,
    label: str = "",
    of_the_technique: Callable[[Mapping[str, Any]], Outcome] | None = None,
) -> Outcome:
    """Certify an opened run, or anything else with a card, a model and a split, by the methods named.

    Args:
        subject: Has `card`, `model()`, `split(split, limit)`, `seed`, `device`, `progress`; `directory` and `path` may
            be None, and then nothing is kept.
        names: Methods, each once; "technique" stands for what `of_the_technique` does.
        given: Options the user gave; each goes to the methods that take it.
        label: What `--method` said.
        of_the_technique: Certifies the subject's own claim with the options given.

    Returns:
        A document of the schema `iclr18.certify/1`, its text, and exit code 4 if a certificate is contradicted.

    Raises:
        UsageError: An option that no method named takes, or a value out of range.
        UserError: No method applies, or none of those that take a given option.
    """
    began, first = time.perf_counter(), launch.world().first
    takers = _takers(names, given, subject)
    if set(names) != {OF_THE_TECHNIQUE}:
        _ = subject.card  # its error says how to get a model
    outcomes: dict[str, Outcome] = {}
    refusals: dict[str, UserError] = {}
    configured: dict[str, Any] = {}
    for name in names:
        if name != OF_THE_TECHNIQUE:
            try:
                configured[name] = _configured(name, given, among_several=len(names) > 1)
            except UsageError:
                raise
            except UserError as error:
                refusals[name] = error
    # Those that an option was given for alone come first: if they refuse, nothing has been computed in vain.
    rarest = {name: min((len(t) for t in takers.values() if name in t), default=len(names) + 1) for name in names}
    for name in sorted(names, key=lambda name: rarest[name]):
        try:
            if name in refusals:
                raise refusals[name]
            if name == OF_THE_TECHNIQUE:
                outcomes[name] = _own(subject, given, of_the_technique, alone=len(names) == 1)
            else:
                outcomes[name] = _one(name, subject, configured[name])
        except (UsageError, ClaimError):
            raise
        except UserError as error:
            refusals[name] = error
            if any(name in those and set(those) <= set(refusals) for those in takers.values()):
                raise
            if set(refusals) == set(names):
                raise _none(names, refusals, subject) from None
    if not first:
        value = [certificate for name in names if name in outcomes for certificate in outcomes[name].value or ()]
        return Outcome({}, "", value=value)
    return _together(subject, label or ",".join(names), names, outcomes, refusals, console, time.perf_counter() - began)


def _takers(names: Sequence[str], given: Mapping[str, Any], subject: Any) -> dict[str, list[str]]:
    """Return for every given option which of the chosen methods take it.

    Raises:
        UsageError: None of them does.
    """
    known = {name: {f.name for f in configs.options(_config_class(name, subject))} for name in names}
    found = {option: [name for name in names if option in known[name]] for option in given}
    foreign = sorted(option for option, takers in found.items() if not takers)
    if foreign:
        spelt = {option: "--" + option.rstrip("_").replace("_", "-") for option in foreign}
        others = {
            name: resolve(spec.config)
            for name, spec in certifiers().items()
            if {f.name for f in configs.options(resolve(spec.config))} & set(foreign)
        }
        raise UsageError(
            f"--method {','.join(names)} takes no {', '.join(spelt.values())}.",
            fix=f"--method {','.join(others)} does, or leave it out" if others else "leave it out",
        )
    return found


def _config_class(name: str, subject: Any) -> type:
    if name != OF_THE_TECHNIQUE:
        return resolve(find(name).config)
    return configs.command_config(technique_of(subject).commands["certify"])


def technique_of(subject: Any) -> Any:
    """Return the technique that made a run.

    Raises:
        UserError: The subject is no run, no active plugin offers its technique, or that certifies nothing.
    """
    made_by = getattr(subject, "technique", "")
    if not made_by:
        raise UserError(
            "This model has no technique of its own that could certify it.", fix="iclr18 certify with --method all"
        )
    try:
        technique = find_technique(made_by)
    except UsageError:
        plugin = subject.directory.info.get("plugin") or "the plugin that made it"
        raise UserError(
            f"{subject.path} was made by '{made_by}', which no active plugin offers.",
            why="iclr18 plugins list shows what is",
            fix=f"install {plugin}, or: iclr18 certify {subject.path} --method all",
        ) from None
    if "certify" not in technique.commands:
        raise UserError(
            f"The technique '{technique.name}' certifies nothing of its own.", fix="iclr18 certify RUN --method all"
        )
    return technique


def _configured(name: str, given: Mapping[str, Any], *, among_several: bool) -> Any:
    """Return a method's config: its defaults, what it takes instead of them among several, and what was given."""
    config_class = resolve(find(name).config)
    cheaper = under_all(config_class) if among_several else {}
    return configs.build(config_class, {**cheaper, **belonging(config_class, given)})


def _own(
    subject: Any,
    given: Mapping[str, Any],
    of_the_technique: Callable[[Mapping[str, Any]], Outcome] | None,
    *,
    alone: bool,
) -> Outcome:
    names = {f.name for f in configs.options(_config_class(OF_THE_TECHNIQUE, subject))}
    if of_the_technique is None:
        raise UserError("This model has no technique of its own that could certify it.")
    return of_the_technique(given if alone else {k: v for k, v in given.items() if k in names})


def _one(name: str, subject: Any, config: Any) -> Outcome:
    """Certify by one method of the core or of a plugin."""
    spec = find(name)
    if subject.card.task not in spec.tasks:
        raise UserError(
            f"{name} certifies models for {', '.join(spec.tasks)}; this model's task is {subject.card.task}."
        )
    reason = resolve(spec.refuses)(subject) if spec.refuses else None
    if reason:
        raise UserError(f"{name} does not apply to this model.", why=reason)
    start = time.perf_counter()
    odd = getattr(subject, "warnings", ())
    certificates = [replace(c, warnings=[*c.warnings, *odd]) for c in resolve(spec.run)(config, subject)]
    options = {"method": name, **configs.to_dict(config), "seed": subject.seed}
    given = {"technique": getattr(subject, "technique", ""), "command": "certify", "options": options}
    outcome = certified(certificates, subject.directory, given, time.perf_counter() - start)
    saved = dict.fromkeys(c.solver["record"] for c in certificates if c.solver.get("record"))
    keep = getattr(subject, "keep", None)
    document = dict(outcome.document)
    if subject.directory is None and keep is not None:
        from iclr18cli.run.atomic import digest, write_json

        place = keep("certify", f"{name}-{digest({'options': options})[:12]}.json")
        if place is not None:
            document["file"] = str(write_json(place, document))
            saved = {document["file"]: None, **saved}
    text = "\n".join(
        [outcome.text, *([""] if saved and subject.directory is None else []), *(f"saved  {p}" for p in saved)]
    )
    return replace(outcome, document=document, text=text)


def _none(names: Sequence[str], refusals: Mapping[str, UserError], subject: Any) -> UserError:
    """Return the error when no method applies: the one reason, or all of them."""
    said = dict.fromkeys(map(str, refusals.values()))
    if len(said) == 1:
        return next(iter(refusals.values()))
    return UserError(
        "No certificate method applies to this model.",
        why="; ".join(f"{name}: {refusals[name].what}" for name in names),
        fix=f"iclr18 certify {subject.path or 'RUN'} --method M says what one of them needs",
    )


def _together(
    subject: Any,
    label: str,
    names: Sequence[str],
    outcomes: Mapping[str, Outcome],
    refusals: Mapping[str, UserError],
    console: Any,
    seconds: float,
) -> Outcome:
    """Put what the methods said into one document and one text, with a summary where there were several."""
    made = [name for name in names if name in outcomes]
    rows = [summary_row(name, c) for name in made for c in outcomes[name].document["certificates"]]
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "run": str(subject.path) if subject.path else None,
        "model": getattr(subject, "label", "") or None,
        "method": label,
        "certificates": [c for name in made for c in outcomes[name].document["certificates"]],
        "refused": [
            {"method": name, "refused": error.what, "why": error.why, "fix": error.fix}
            for name, error in ((name, refusals[name]) for name in names if name in refusals)
        ],
        "summary": rows,
        "done": [
            {"method": name} | {key: outcomes[name].document.get(key) for key in ("options", "seconds", "file")}
            for name in made
        ],
        "seconds": seconds,
    }
    texts = [outcomes[name].text for name in made]
    if len(names) == 1:
        document = {**outcomes[made[0]].document, **document, "seconds": outcomes[made[0]].document["seconds"]}
    else:
        told = [f"{name} does not apply: {refusals[name]}".replace("\n", " ") for name in names if name in refusals]
        texts += ["\n".join(told)] if told else []
        texts.append(summary_table(rows, [name for name in names if name in refusals]))
    for certificate in document["certificates"]:
        if not certificate["holds"]:
            console.warn(f"contradicted: {certificate_name(certificate)}")
    code = max((outcome.code for outcome in outcomes.values()), default=ExitCode.DONE)
    value = [c for name in made for c in (outcomes[name].value or ())]
    return Outcome(document, "\n\n".join(texts), code, subject.directory, value)
