"""Options that name what attack and certify look at, besides runs: one's own model and data. Torch-free."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from iclr18cli.errors import UsageError
from iclr18cli.plugin import Option

BELONGING = ("model_args", "weights", "input_range", "normalize", "classes", "out")
"""Options that say nothing without --model."""

Numbers = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class OwnModelOptions:
    """One's own torch model: where its code, weights and data are. The code is run; a weights file never is."""

    model: Annotated[
        str,
        Option(
            "Your own torch model: a function or class that returns it, in an importable module or in FILE.py; or the "
            "name of a network of `iclr18 models list`.",
            metavar="PKG.MODULE:FACTORY",
        ),
    ] = ""
    model_args: Annotated[str, Option("Arguments of the factory, a JSON object.", metavar="JSON")] = ""
    weights: Annotated[str, Option("State dict for it: .safetensors, .pt or .pth.", metavar="FILE")] = ""
    input_range: Annotated[
        str, Option("Smallest and largest value of an input; none: all of R^d. Default: the data's.", metavar="LO,HI")
    ] = ""
    normalize: Annotated[
        str,
        Option(
            "Subtract MEAN and divide by STD first, inside the model; per channel: 'M1 M2 M3,S1 S2 S3'.",
            metavar="MEAN,STD",
        ),
    ] = ""
    dataset: Annotated[
        str, Option("Data: a name, npz:FILE or folder:DIR; for runs, another set than their own.", metavar="D")
    ] = ""
    classes: Annotated[int, Option("Number of classes; 0: what the model returns.", min=0)] = 0
    out: Annotated[str, Option("Folder for the results on your own model; otherwise printed only.", metavar="DIR")] = ""

    def check(self, references: Sequence[str] = ()) -> None:
        """Refuse options that name nothing, belong to nothing or cannot be read.

        Args:
            references: Runs named beside them.

        Raises:
            UsageError: As said.
        """
        if not self.model:
            stray = [name for name in BELONGING if getattr(self, name)]
            if stray:
                raise UsageError(
                    f"--{stray[0].replace('_', '-')} belongs to a model of your own.", fix="--model PKG.MODULE:FACTORY"
                )
            if not references:
                raise UsageError(
                    "Nothing is named to look at.",
                    fix="name a run (`iclr18 runs list` shows them), or --model PKG.MODULE:FACTORY --dataset D",
                )
            return
        if not self.dataset:
            raise UsageError(
                f"--model {self.model} needs data.",
                why="a model of your own has no data set of its own",
                fix="--dataset D: a name of `iclr18 data list`, npz:FILE or folder:DIR",
            )
        self.arguments()
        self.bounds()
        self.normalization()

    def arguments(self) -> dict[str, Any]:
        """Return the factory's arguments.

        Raises:
            UsageError: They are not a JSON object.
        """
        if not self.model_args:
            return {}
        try:
            found = json.loads(self.model_args)
        except (ValueError, RecursionError) as error:
            found, why = None, str(error)
        else:
            why = f"it is a JSON {'list' if isinstance(found, list) else 'value'}"
        if not isinstance(found, dict):
            raise UsageError(
                f"--model-args must be a JSON object; received {self.model_args!r:.80}.",
                why=why,
                fix="""--model-args '{"width": 32, "bias": true}'""",
            )
        return found

    def bounds(self) -> tuple[float, float] | str | None:
        """Return (low, high), None for all of R^d, or "" for the range that the data declares.

        Raises:
            UsageError: Something else was given.

        Example:
            >>> OwnModelOptions(input_range="-1,1").bounds(), OwnModelOptions(input_range="none").bounds()
            ((-1.0, 1.0), None)
        """
        if self.input_range in ("", "none"):
            return "" if not self.input_range else None
        numbers = _numbers(self.input_range.split(","))
        if numbers is None or len(numbers) != 2 or not numbers[0] < numbers[1]:
            raise UsageError(
                f"--input-range must be LO,HI with LO < HI, or none; received {self.input_range!r}.",
                fix="--input-range 0,1",
            )
        return numbers[0], numbers[1]

    def normalization(self) -> tuple[Numbers, Numbers] | None:
        """Return (means, deviations), one number each or one per channel; None: nothing is normalised.

        Raises:
            UsageError: Something else was given.

        Example:
            >>> OwnModelOptions(normalize="0.1307,0.3081").normalization()
            ((0.1307,), (0.3081,))
            >>> OwnModelOptions(normalize="0.5 0.4 0.3, 0.2 0.2 0.1").normalization()
            ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
        """
        if not self.normalize:
            return None
        sides = [_numbers(side.split()) for side in self.normalize.split(",")]
        if len(sides) != 2 or not sides[0] or not sides[1] or len(sides[0]) != len(sides[1]) or min(sides[1]) <= 0:
            raise UsageError(
                f"--normalize must be MEAN,STD with STD > 0, as many numbers each; received {self.normalize!r}.",
                fix="--normalize 0.1307,0.3081, or per channel: --normalize '0.49 0.48 0.45,0.25 0.24 0.26'",
            )
        return sides[0], sides[1]

    @property
    def label(self) -> str:
        """The model's name in tables."""
        return f"{self.model} ({Path(self.weights).name})" if self.weights else self.model


def _numbers(words: Sequence[str]) -> Numbers | None:
    """Return the words as finite numbers, or None if one is none."""
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None
