"""model.json: what it says, and what is refused. No torch here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from iclr18cli.errors import UserError
from iclr18cli.plugin import Task

FORMAT = "iclr18.model/1"
CARD, WEIGHTS = "model.json", "model.safetensors"
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What must be known to rebuild a network and to feed it (ARCHITECTURE, section 7).

    Args:
        model: Registry name, "wrm/elu-cnn".
        kwargs: Arguments of its builder: JSON scalars and lists of them.
        task: classify, language, translate, generate or embed.
        shape: Shape of one raw input, without the batch; None stands for a length that may vary.
        range: Smallest and largest value an input may have; None: all of R^d.
        dtype: Type of the inputs; a floating one is that of the weights and the arithmetic too.
        classes: Number of classes; 0 where the task has none.
        dataset: The data set it was trained on, as the user named it.
        plugin: Distribution and version the network's code comes from; filled in by `save_model`.
        transforms: Re-parametrisations applied after building, in order: `{"name": …, "kwargs": {…}}` each.
        weights, sha256: File beside the card, and its digest; filled in by `save_model`.

    Raises:
        ValueError: A field has the wrong type or is out of range.
    """

    model: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    task: Task = "classify"
    shape: tuple[int | None, ...] = ()
    range: tuple[float, float] | None = None
    dtype: str = "float32"
    classes: int = 0
    dataset: str = ""
    plugin: str = ""
    transforms: Sequence[Mapping[str, Any]] = ()
    weights: str = WEIGHTS
    sha256: str = ""

    def __post_init__(self) -> None:
        for name in ("model", "dataset", "plugin", "weights", "sha256"):
            _check(isinstance(getattr(self, name), str), name, "a string", getattr(self, name))
        _check(self.task in get_args(Task), "task", f"one of {', '.join(get_args(Task))}", self.task)
        _check(self.dtype in DTYPES, "input.dtype", f"one of {', '.join(DTYPES)}", self.dtype)
        _check(_is_count(self.classes), "output.classes", "a whole number >= 0", self.classes)
        sizes_fit = isinstance(self.shape, list | tuple) and all(n is None or _is_count(n) for n in self.shape)
        _check(sizes_fit, "input.shape", "a list of whole numbers", self.shape)
        _check(self.range is None or _is_range(self.range), "input.range", "null or [low, high]", self.range)
        _check(_is_kwargs(self.kwargs), "kwargs", "names with numbers, strings, or lists of them", self.kwargs)
        transforms_fit = isinstance(self.transforms, list | tuple) and all(map(_is_transform, self.transforms))
        _check(transforms_fit, "transforms", '{"name": …, "kwargs": {…}} each', self.transforms)
        # A plain file name: the card may not point outside its own directory.
        _check(re.fullmatch(r"\w[\w.-]*", self.weights) is not None, "weights", "a plain file name", self.weights)
        # Copies, as they read back from the file: lists inside, nothing shared with the caller.
        object.__setattr__(self, "kwargs", json.loads(json.dumps(dict(self.kwargs))))
        object.__setattr__(self, "transforms", tuple(json.loads(json.dumps(list(self.transforms)))))
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "range", None if self.range is None else (float(self.range[0]), float(self.range[1])))

    def to_json(self) -> dict[str, Any]:
        """Return the contents of model.json."""
        return {
            "format": FORMAT,
            "model": self.model,
            "kwargs": dict(self.kwargs),
            "task": self.task,
            "input": {
                "shape": list(self.shape),
                "range": None if self.range is None else list(self.range),
                "dtype": self.dtype,
            },
            "output": {"classes": self.classes},
            "weights": self.weights,
            "sha256": self.sha256,
            "dataset": self.dataset,
            "plugin": self.plugin,
            "transforms": [dict(transform) for transform in self.transforms],
        }

    @classmethod
    def from_json(cls, document: Any) -> ModelCard:
        """Return the card that a parsed model.json describes; keys it does not know are ignored.

        Raises:
            ValueError: It is of another format, a key is missing, or a value does not fit.
        """
        _check(isinstance(document, dict), "model.json", "a JSON object", document)
        _check(document.get("format") == FORMAT, "format", repr(FORMAT), document.get("format"))
        try:
            return cls(
                shape=document["input"]["shape"],
                range=document["input"]["range"],
                dtype=document["input"]["dtype"],
                classes=document["output"]["classes"],
                **{key: document[key] for key in ("model", "kwargs", "task", "weights", "sha256", "dataset", "plugin")},
                transforms=document["transforms"],
            )
        except KeyError as error:
            raise ValueError(f"the key {error} is missing") from error
        except TypeError as error:
            raise ValueError("'input' and 'output' must be JSON objects") from error


def _check(holds: bool, name: str, wanted: str, received: Any) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}; received {received!r:.120}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_range(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool) or _is_number(value)


def _is_kwargs(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and _is_plain(v) for k, v in value.items())


def _is_transform(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == {"name", "kwargs"}
        and isinstance(value["name"], str)
        and _is_kwargs(value["kwargs"])
    )


def read_card(directory: str | Path) -> ModelCard:
    """Return the card of a run directory without touching the weights.

    Raises:
        UserError: There is none, or it is damaged.
    """
    path = Path(directory) / CARD
    if not path.is_file():
        raise UserError(
            f"There is no model in {directory}.",
            why=f"{CARD} is missing; it is written when a training ends",
            fix="finish the training with --resume, or name another run",
        )
    try:
        return ModelCard.from_json(json.loads(path.read_bytes(), parse_constant=_refuse_constant))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"The model card {path} cannot be used.",
            why=str(error),
            fix=f"restore it from the run, or use the version of iclr18 that wrote it (this one reads {FORMAT})",
        ) from error


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
