"""Results as text for a person: measured values and certificates. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from iclr18cli.console import bold, labelled, show, table


def metrics_text(document: Mapping[str, Any]) -> str:
    """Lay out measured values: numbers line by line, rows of a list as a table, then where they were saved."""
    lines = []
    metrics = dict(document["metrics"])
    width = max((len(name) for name in metrics), default=0)
    for name, value in metrics.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            columns = list(value[0])
            lines += ["", table(columns, [[row.get(c) for c in columns] for row in value], title=name)]
        elif not isinstance(value, Mapping | list) or len(show(value)) < 100:
            lines.append(f"{name.ljust(width)}  {show(value)}")
    if document.get("file"):
        lines.append(f"saved  {document['file']}")
    return "\n".join(lines)


def certificates_text(documents: Sequence[Mapping[str, Any]]) -> str:
    """Render certificates one below the other; limits and assumptions they share are told once, at the end."""
    keys = ("not_claimed", "assumptions") if len(documents) > 1 else ()
    shared = {key: documents[0][key] for key in keys if all(d[key] == documents[0][key] for d in documents)}
    texts = [certificate_text({**d, **dict.fromkeys(shared, ())}) for d in documents]
    words = {"not_claimed": "not claimed", "assumptions": "assuming"}
    told = [line for key, lines in shared.items() for line in labelled(words[key], lines)]
    return "\n\n".join([*texts, *(["Of all of them:\n" + "\n".join(told)] if told else [])])


def certificate_text(document: Mapping[str, Any]) -> str:
    """Render one certificate for a person: first the sentence, then what is not claimed, then the number."""
    lines = [bold(document["statement"])]
    lines += labelled("not claimed", document["not_claimed"])
    lines += labelled("assuming", document["assumptions"])
    sign = {"upper": "<=", "lower": ">=", "equal": "="}[document["bound"]]
    vacuous = f"   VACUOUS (threshold {show(document['vacuous_above'])})" if document["vacuous"] else ""
    value = outward(document["value"], document["bound"])
    lines.append(f"  {document['verdict']:<11}  {document['quantity']} {sign} {value}{vacuous}")
    if document["empirical"]:
        lines.append(f"  attack       {document['empirical']['attack']}: {show(document['empirical']['value'])}")
    if not document["holds"]:
        lines.append("  CONTRADICTED: what was found does not agree with the claim; do not rely on it")
    lines += labelled("warning", document["warnings"])
    return "\n".join(lines)


def certificate_name(document: Mapping[str, Any]) -> str:
    """Name a certificate on one line: kind, quantity, radius and norm."""
    within = _within(document["threat"])
    return f"{document['kind']} certificate, {document['quantity']}{within and ' at ' + within}"


def _within(threat: Mapping[str, Any]) -> str:
    """Say the adversary's budget in a few characters: "l2 0.1" of each point, "rho 0.01" on average."""
    if threat.get("radius") is None:
        return ""
    average = threat.get("average", threat.get("average|pointwise") == "average")
    return f"{'rho' if average else threat.get('norm', '')} {show(threat['radius'])}".strip()


def summary_row(method: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return one line of the summary of several methods; its keys are part of the schema `iclr18.certify/1`."""
    threat = document["threat"]
    return {
        "method": method,
        "verdict": document["verdict"],
        "quantity": document["quantity"],
        "norm": threat.get("norm"),
        "radius": threat.get("radius"),
        "within": _within(threat),
        "bound": document["bound"],
        "value": document["value"],
        "attack": document["empirical"]["value"] if document["empirical"] else None,
        "vacuous": document["vacuous"],
        "holds": document["holds"],
    }


def summary_table(rows: Sequence[Mapping[str, Any]], refused: Sequence[str] = ()) -> str:
    """Lay out the summary of several methods, refused ones last."""
    sign = {"upper": "<=", "lower": ">=", "equal": "="}
    lines = [
        [row["method"], row["verdict"], row["quantity"],
         row["within"],
         f"{sign[row['bound']]} {outward(row['value'], row['bound'])}",
         show(row["attack"]), "VACUOUS" if row["vacuous"] else "", "" if row["holds"] else "CONTRADICTED"]
        for row in rows
    ]  # fmt: skip
    lines += [[name, "does not apply", "", "", "", "", "", ""] for name in refused]
    heads = ["method", "verdict", "quantity", "within", "value", "attack", "", ""]
    return table(heads, lines, title="Summary")


def outward(value: float | None, bound: str, *, digits: int = 4) -> str:
    """Write a bound with few digits, rounded so that it stays true: an upper one up, a lower one down.

    Example:
        >>> outward(0.157641, "upper"), outward(0.157641, "lower"), outward(0.157641, "equal")
        ('0.1577', '0.1576', '0.1576')
    """
    if value is None or value == 0 or not math.isfinite(value) or bound == "equal":
        return show(value)
    unit = 10.0 ** (math.floor(math.log10(abs(value))) + 1 - digits)
    steps = math.ceil(value / unit) if bound == "upper" else math.floor(value / unit)
    return f"{steps * unit:.{digits}g}"
