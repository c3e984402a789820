"""What is measured: a run that was opened, or another subject with a model and data.

Opening a run executes nothing from its directory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from iclr18cli import device as devices
from iclr18cli import launch
from iclr18cli.errors import UserError
from iclr18cli.run.directory import RunDirectory
from iclr18cli.run.phases import Progress, no_progress
from iclr18cli.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from iclr18cli.data.tensors import Split
    from iclr18cli.models.card import ModelCard

T = TypeVar("T")


class Workbench:
    """What a command without a run is given: shared options, the device, a progress bar; everything is seeded.

    Attributes:
        settings, seed: The shared options.
        device: Where to compute.
    """

    def __init__(self, settings: Settings, *, progress: Progress | None = None):
        self.settings, self.seed = settings, settings.seed
        self.device = devices.choose(settings.device)
        self._progress = progress or no_progress
        devices.seed_everything(settings.seed)

    @overload
    def progress(self, work: int | None, label: str) -> AbstractContextManager[Any]: ...
    @overload
    def progress(self, work: Iterable[T], label: str) -> Iterator[T]: ...
    def progress(self, work: Any, label: str) -> Any:
        """Show progress: of an iterable, whose items are passed on, or of a number of steps, by `.advance(n)`."""
        return self._progress(work, label) if work is None or isinstance(work, int) else self._walk(work, label)

    def _walk(self, work: Iterable[T], label: str) -> Iterator[T]:
        with self._progress(len(work) if isinstance(work, Sized) else None, label) as bar:
            for item in work:
                yield item
                bar.advance(1)

    def open_split(self, dataset: str, split: str = "test", *, limit: int = 0) -> Split:
        """Return the first `limit` examples (0: all) of a split of any data set, on the CPU."""
        from iclr18cli.data.registry import open_split

        data = open_split(dataset, split, data_dir=self.settings.data_dir)
        return data.take(limit) if limit else data


class Subject(Workbench):
    """What attack and certify look at: a model with its card and its data, a run's or one's own.

    Attributes:
        label: Its name in tables.
        directory, path: The run it is from; None for a model that is no run's.
        technique: The technique that made it; "" for a model that is no run's.
        warnings: What is odd about the model, one sentence each; known once the card is.
    """

    label: str = ""
    directory: RunDirectory | None = None
    path: Path | None = None
    technique: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def card(self) -> ModelCard:
        """What the model takes and returns."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        """Return the network: on the device, in evaluation mode, without gradients."""
        raise NotImplementedError

    @property
    def data(self) -> str:
        """The data set that is meant where none is named."""
        return self.card.dataset

    @property
    def place(self) -> Path | None:
        """The folder that results are kept in; None: they are not."""
        return self.path

    def keep(self, kind: str, name: str, *, each_rank: bool = False) -> Path | None:
        """Return where a file may be written; its folder is made with the first file. None: nothing is kept.

        Args:
            kind: "attack", "certify" or "plots".
            name: Name of the file.
            each_rank: Ranks after the first get a path as well, to make names of their own from.
        """
        writes = each_rank or launch.world().first
        return None if self.place is None or not writes else self.place / kind / name

    def split(self, split: str = "test", limit: int = 0, *, dataset: str = "") -> Split:
        """Return data for the model, on the CPU.

        Args:
            split: "train" or "test".
            limit: The first `limit` examples; 0: all.
            dataset: Another data set than the model's own.

        Raises:
            UserError: Shape, range or labels are not what the model takes.
        """
        from iclr18cli.models.card import check_inputs

        card = self.card
        data = self.open_split(dataset or self.data, split, limit=limit)
        if card.dtype == "float32":
            # All values of a uint8 image are in [0, 1]: one is enough to see the shape.
            check_inputs(data.inputs(slice(0, 1) if not data.x.is_floating_point() else None), card)
        if not data.x.is_floating_point() and card.range is not None and not card.range[0] <= 0 < 1 <= card.range[1]:
            raise UserError(
                f"The images of '{data.name}' lie in [0, 1], the model takes [{card.range[0]:g}, {card.range[1]:g}].",
                fix=f"choose the data set the model was trained on ({card.dataset})",
            )
        low, high = int(data.y.min()), int(data.y.max())
        if card.task == "classify" and not 0 <= low <= high < card.classes:
            raise UserError(
                f"The labels of '{data.name}' reach from {low} to {high}, the model has {card.classes} classes.",
                why="labels must lie in 0 .. classes - 1",
                fix=f"choose the data set the model was trained on ({card.dataset})",
            )
        return data


class OpenedRun(Subject):
    """A run with its model and data.

    Attributes:
        directory, path: Where the run is kept.
        technique: Name of the technique that made it.
        config: What it was trained with.
    """

    directory: RunDirectory
    path: Path

    def __init__(
        self, directory: RunDirectory, settings: Settings, *, progress: Progress | None = None, dataset: str = ""
    ):
        self.directory, self.path, self.label = directory, directory.path, directory.path.name
        self.technique = directory.info["technique"]
        self.config = directory.trained_config()
        self._dataset = dataset
        super().__init__(settings, progress=progress)

    @cached_property
    def card(self) -> ModelCard:
        """The model's card.

        Raises:
            UserError: The training has not ended yet, or the card is damaged.
        """
        from iclr18cli.models import registry
        from iclr18cli.models.card import CARD, not_installed, read_card

        if not (self.path / CARD).exists():
            status, command = self.directory.status, self.directory.info.get("command", "train")
            fix = f"iclr18 {self.technique} {command} --resume {self.path}"
            if status == "running":
                fix = "wait until it is done"
            elif status == "done":
                fix = "name a run that trained a model"
            raise UserError(f"{self.path} has no model yet.", why=f"its status is {status}", fix=fix)
        card = read_card(self.path)
        if card.model not in registry.models():
            raise not_installed(card)
        return card

    def model(self) -> nn.Module:
        """Return the trained network, built anew: on the device, in evaluation mode, without gradients."""
        from iclr18cli.models.card import open_model

        _ = self.card  # its error says how to get a model
        module, _ = open_model(self.path, self.device)
        return module.requires_grad_(False)

    @property
    def data(self) -> str:
        """The run's own data set, or the one it was opened with."""
        return self._dataset or self.card.dataset or self.config["dataset"]

    def figure(self, name: str, figure: Any) -> Path:
        """Write a matplotlib figure to plots/NAME.png of the run and return its path."""
        return self.directory.figure(name, figure)
