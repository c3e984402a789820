"""The published JSON schemas by name, as files of the package. Torch-free; reading them needs no jsonschema."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from iclr18cli.errors import UsageError, did_you_mean

SCHEMAS = ("iclr18.certificate/1", "iclr18.certify/1", "iclr18.attack/1", "iclr18.attack-curve/1")
"""One certificate · what `iclr18 certify --json` prints · one attack report · robust accuracy over radii."""


def schema(name: str) -> dict[str, Any]:
    """Return a JSON schema (draft 2020-12), complete: what it refers to is inside.

    Args:
        name: One of `SCHEMAS`; a document names its own in the field "schema".

    Raises:
        UsageError: There is none of that name.

    Example:
        >>> schema("iclr18.certificate/1")["title"]
        'iclr18.certificate/1'
    """
    if name not in SCHEMAS:
        raise UsageError(f"There is no schema {name!r}.", fix=did_you_mean(name, SCHEMAS))
    found = _read(name)
    if name == "iclr18.certify/1":
        found["$defs"] = {"certificate": _read("iclr18.certificate/1")}
    return found


def _read(name: str) -> dict[str, Any]:
    file = name.removeprefix("iclr18.").replace("/", "-") + ".json"
    return json.loads((files("iclr18cli.report") / "schemas" / file).read_text(encoding="utf-8"))
