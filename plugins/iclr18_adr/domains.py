"""Two data sets of the same classes: which images train, and which of them an iteration takes."""

# B batch · N examples

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iclr18_adr.config import TrainConfig
from iclr18cli.data.registry import open_split
from iclr18cli.data.tensors import Split, order
from iclr18cli.device import derived_seed
from iclr18cli.errors import UserError

if TYPE_CHECKING:
    import torch

    from iclr18cli.run.loop import Run

COUNTS = {("p1", "mnist"): 2000, ("p1", "usps"): 1800, ("p2", "mnist"): 55_000, ("p2", "usps"): 6562}
"""Training images of the authors' protocols. Their USPS is divided 7,438 / 1,860; ours is the public 7,291 / 2,007."""


@dataclass(frozen=True)
class Domains:
    """Training splits of source and target; the labels of the target's are there and never read."""

    source: Split
    target: Split

    def __post_init__(self) -> None:
        for split in (self.source, self.target):
            if len(split.shape) != 3:
                raise UserError(f"'{split.name}' holds no images.", why=f"one input has the shape {split.shape}",
                                fix="adr adapts between sets of images (C, H, W)")  # fmt: skip
        if self.source.classes != self.target.classes:
            raise UserError(
                f"'{self.source.name}' and '{self.target.name}' have different classes.",
                why=f"{', '.join(self.source.classes[:12])} against {', '.join(self.target.classes[:12])}",
                fix="Adaptation is between the same classes in the same order: name them alike.",
            )
        if self.source.range != self.target.range:
            raise UserError(
                f"'{self.source.name}' and '{self.target.name}' lie in different ranges.",
                why=f"{self.source.range} against {self.target.range}", fix="Scale both to [0, 1].",
            )  # fmt: skip

    @property
    def shape(self) -> tuple[int, int, int]:
        """The larger of the channels, heights and widths: the shape that G takes."""
        C, H, W = (max(pair) for pair in zip(self.source.shape, self.target.shape, strict=True))
        return C, H, W

    def to(self, device: torch.device) -> Domains:
        """Return both on a device."""
        return Domains(self.source.to(device), self.target.to(device))


def open_domains(config: TrainConfig, run: Run) -> Domains:
    """Open both training splits and take what the protocol asks for.

    Raises:
        UserError: A set is missing, has fewer images than a protocol or a batch asks for, or the two do not fit.
    """
    opened = []
    for name in (config.source, config.target):
        split = open_split(name, "train", data_dir=run.settings.data_dir, download=run.settings.download)
        opened.append(chosen(split, name, config, run.seed))
    return Domains(*opened)


def chosen(split: Split, name: str, config: TrainConfig, seed: int) -> Split:
    """Return the images that train: the protocol's number of them, drawn by the seed, or the first `limit`."""
    if config.protocol != "all":
        count = COUNTS.get((config.protocol, name))
        if count is None:
            raise UserError(f"Protocol {config.protocol} says nothing about '{name}'.", why="it is of mnist and usps",
                            fix="--protocol all")  # fmt: skip
        split = split.take(order(len(split), seed=derived_seed(seed, "protocol", name), epoch=0)[:count])
    if config.limit:
        split = split.take(config.limit)
    if len(split) < config.batch_size:
        raise UserError(f"'{name}' has {len(split)} training images, fewer than a batch of {config.batch_size}.",
                        fix="a smaller --batch-size")  # fmt: skip
    return split
