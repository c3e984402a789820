"""One's own torch model, named on the command line: its code is imported and run, its weights are only read.

B batch · X the axes of one input
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from iclr18cli.device import derived_seed
from iclr18cli.errors import UsageError
from iclr18cli.models.factory import build
from iclr18cli.models.foreign_weights import load
from iclr18cli.models.format import ModelCard
from iclr18cli.models.inspection import Findings, blaming
from iclr18cli.models.inspection import inspect as inspect_model
from iclr18cli.models.layers import Normalize
from iclr18cli.paths import runs_root
from iclr18cli.run.directory import find_run
from iclr18cli.run.opened import OpenedRun, Subject
from iclr18cli.run.phases import Progress
from iclr18cli.settings import Settings
from iclr18cli.subject import OwnModelOptions

if TYPE_CHECKING:
    from iclr18cli.data.tensors import Split


def subjects(references: Sequence[str], own: OwnModelOptions, settings: Settings, console: Any) -> list[Subject]:
    """Return what attack or certify is to look at: runs, then the model of one's own.

    Args:
        references: Runs by path, name, or beginning of a name.
        own: Options that name a model; `own.dataset` alone replaces the data of the runs.
        settings: The shared options.
        console: Shows progress; hints about the model go to its `hint`.

    Raises:
        UsageError: Nothing is named, or options belong to nothing or cannot be read.
        UserError: A run cannot be found or read.
    """
    own.check(references)
    root = runs_root(settings.runs_dir)
    found: list[Subject] = [
        OpenedRun(directory, settings, progress=console.progress, dataset=own.dataset)
        for directory in [find_run(reference, root) for reference in references]
    ]
    if own.model:
        found.append(OwnModel(own, settings, progress=console.progress, tell=console.hint))
    return found


class OwnModel(Subject):
    """A model that no run made. It is built once; a look at it comes before the first number.

    Attributes:
        options: What was named.
    """

    def __init__(
        self,
        options: OwnModelOptions,
        settings: Settings,
        *,
        progress: Progress | None = None,
        tell: Callable[[str], object] = lambda text: None,
    ):
        super().__init__(settings, progress=progress)
        options.check()
        self.options, self.label, self._tell = options, options.label, tell

    @property
    def place(self) -> Path | None:
        """The folder of `--out`; None: results are printed only."""
        return Path(self.options.out).expanduser() if self.options.out else None

    def keep(self, kind: str, name: str, *, each_rank: bool = False) -> Path | None:
        """Return where a file may be written; its name begins with the model's, as other models may share the folder.

        Args:
            kind, name, each_rank: As for any subject; a hidden file keeps its name.
        """
        if name.startswith("."):
            return super().keep(kind, name, each_rank=each_rank)
        options = self.options
        key = repr((options.model, options.arguments(), options.weights, options.normalize, options.input_range))
        words = re.sub(r"[^A-Za-z0-9]+", "-", self.label).strip("-")[:60]
        return super().keep(kind, f"{words}-{sha256(key.encode()).hexdigest()[:6]}-{name}", each_rank=each_rank)

    @property
    def data(self) -> str:
        """The data set named with the model."""
        return self.options.dataset

    @cached_property
    def findings(self) -> Findings:
        """What was seen of the model on some points of its data.

        Raises:
            UserError: It cannot be built, or does not classify such points.
        """
        points = self._points
        found = inspect_model(
            self._module, points.inputs().to(self.device), points.y.to(self.device), self.options.classes or None
        )
        self.warnings = found.warnings
        for text in found.notes:
            self._tell(f"note  {text}")
        for text in found.warnings:
            self._tell(f"warning  {text}")
        return found

    @cached_property
    def card(self) -> ModelCard:
        """What the model takes and returns; its digest is of the weights and of the answers to the inspected points.

        Raises:
            UserError: It cannot be built, or does not classify such points.
        """
        found, points, bounds = self.findings, self._points, self.options.bounds()
        payload = [json.dumps([self.options.model, self.options.arguments(), self.options.normalize]).encode()]
        for name, value in sorted(self._module.state_dict().items()):
            if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
                numbers = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                payload += [name.encode(), numbers.tobytes()]
        payload.append(found.logits.numpy().tobytes())
        return ModelCard(
            model=self.options.model, task="classify", shape=points.shape, classes=found.classes,
            range=points.range if isinstance(bounds, str) else bounds, dataset=self.options.dataset, weights="none",
            sha256=sha256(b"\0".join(payload)).hexdigest(),
        )  # fmt: skip

    def model(self) -> nn.Module:
        """Return the network, the same one each time: on the device, in evaluation mode, without gradients.

        Raises:
            UserError: It cannot be built, or does not classify the data.
        """
        _ = self.card
        return self._module.eval().requires_grad_(False)

    @cached_property
    def _points(self) -> Split:
        """A few points of the data."""
        from iclr18cli.data.given import spread
        from iclr18cli.data.registry import find

        splits = find(self.options.dataset)[0].splits
        data = self.open_split(self.options.dataset, "test" if "test" in splits else splits[-1])
        return spread(data)

    @cached_property
    def _module(self) -> nn.Module:
        """The network with its weights and its normalisation, as its factory returned it otherwise."""
        options, shape = self.options, self._points.shape
        # The factory's random numbers are the same whenever it is called.
        seed = derived_seed(self.seed, "own model")
        module = build(options.model, options.arguments(), shape=shape, classes=len(self._points.classes), seed=seed)
        if not isinstance(module, nn.Module):
            inspect_model(module, self._points.inputs(), self._points.y)  # says what it is instead
        if any(map(torch.nn.parameter.is_lazy, module.parameters())):
            with blaming("The model cannot take its first inputs."), torch.no_grad():
                module(self._points.inputs(slice(0, 2)))
        if options.weights:
            load(module, options.weights)
        constants = options.normalization()
        if constants is not None:
            if len(constants[0]) not in (1, shape[0]):
                raise UsageError(
                    f"--normalize holds {len(constants[0])} means, the inputs have {shape[0]} channels.",
                    fix="give one number for all channels, or one per channel separated by spaces",
                )
            module = nn.Sequential(Normalize(*constants), module).train(module.training)
        with blaming(f"The model cannot be moved to {self.device}."):
            return module.to(self.device)
