"""Features to compare images in: the last hidden layer of a small classifier that is trained here, once per data set.

Named for what they are ("feature Frechet distance (feature-cnn on mnist)"), never FID: that is one fixed network's.

N images · C channels · H height · W width · D features · K classes · P pixels
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18cli.data.tensors import Split, batches, order
from iclr18cli.device import derived_seed
from iclr18cli.errors import UserError
from iclr18cli.models import weights
from iclr18cli.models.layers import Normalize
from iclr18cli.models.modes import evaluating
from iclr18cli.models.vision import extent, image_shape
from iclr18cli.paths import cache_root
from iclr18cli.run.atomic import write_bytes, write_json
from iclr18cli.run.phases import no_progress

NAME = "feature-cnn"
VERSION = 1
"""Of the network and its training; part of the key of a kept extractor."""

DIMENSION = 64
BATCH = 500
STEPS, PASSES = 2500, 40
"""Adam steps of the default training, unless that is more than so many passes over the data (600 steps on digits)."""


@dataclass(frozen=True, eq=False)
class Extractor:
    """A classifier and the name of its features.

    Args:
        net: The hidden part, images to (N, D) features.
        head: (N, D) to (N, K) logits.
        dataset: What it was trained on.
        accuracy: On the split it was measured on.
        digest: SHA-256 of its weights.
    """

    net: nn.Module
    head: nn.Module
    dataset: str
    accuracy: float
    digest: str

    @property
    def name(self) -> str:
        """Return the name that metrics in these features carry."""
        return f"{NAME} on {self.dataset}"

    def to(self, device: torch.device | str) -> Extractor:
        """Move both parts to a device and return the extractor."""
        self.net.to(device)
        self.head.to(device)
        return self

    @torch.no_grad()
    def features(self, x_NCHW: Tensor) -> Tensor:
        """Return (N, D) float32 features of images in the data's range, on their device."""
        return torch.cat([self.net(x) for x in x_NCHW.split(BATCH)])

    @torch.no_grad()
    def logits(self, features_ND: Tensor) -> Tensor:
        """Return (N, K) logits of features."""
        return self.head(features_ND)

    def about(self) -> dict[str, Any]:
        """Return what a table with such metrics must say."""
        return {"features": self.name, "feature_accuracy": self.accuracy, "feature_sha256": self.digest[:12]}


def feature_cnn(*, input_shape: tuple[int, ...], filters: int = 32, dimension: int = DIMENSION) -> nn.Sequential:
    """Build three 3x3 convolutions with f, 2f, 2f filters and a dense layer of D units: (N, C, H, W) to (N, D).

    Args:
        input_shape: (C, H, W), at least 4x4.
        filters: f.
        dimension: D.
    """
    C, H, W = image_shape(input_shape, at_least=4)
    layers: list[nn.Module] = [Normalize([0.5] * C, [0.5] * C), nn.Conv2d(C, filters, 3, padding=1), nn.ReLU()]
    width = filters
    for _ in (0, 1):
        layers += [nn.Conv2d(width, 2 * filters, 3, stride=2, padding=1), nn.ReLU()]
        width = 2 * filters
        H, W = extent(H, 3, stride=2, padding=1), extent(W, 3, stride=2, padding=1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * H * W, dimension), nn.ReLU())


def extractor(
    train: Split,
    test: Split,
    *,
    steps: int = 0,
    filters: int = 32,
    seed: int = 2018,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Any = None,
) -> Extractor:
    """Return the classifier's features for a data set: from the cache, or trained now and kept there.

    Adam, batch 100, step size 1e-3 falling to 0 along a cosine; all randomness is a function of `seed`.

    Args:
        train, test: Splits of one set of images; the accuracy is measured on the second.
        steps: Training steps; 0: `STEPS`, or `PASSES` over a small set.
        filters: Width of the network.
        seed: Seed of weights and order.
        cache: Folder of kept extractors; None: the user's cache.
        device: Where it is trained and put.
        progress: Progress factory of a run.

    Raises:
        UserError: The data are no images, or have fewer than two classes.
    """
    if len(train.shape) != 3 or len(train.classes) < 2:
        raise UserError(
            f"No classifier features can be learnt from '{train.name}'.",
            why=f"inputs of shape {train.shape}, {len(train.classes)} class(es)",
            fix="use the pixel features, or a set of labelled images",
        )
    steps = steps or min(STEPS, PASSES * -(-len(train) // 100))
    facts = {"version": VERSION, "train": train.digest(), "test": test.digest(), "steps": steps, "filters": filters,
             "seed": seed}  # fmt: skip
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache or cache_root().parent / "features"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, NAME))
        net = feature_cnn(input_shape=train.shape, filters=filters)
        head = nn.Linear(DIMENSION, len(train.classes))
    both = nn.Sequential(net, head)
    kept, note = folder / f"{key}.safetensors", folder / f"{key}.json"
    if kept.is_file() and note.is_file():
        payload = kept.read_bytes()
        digest = hashlib.sha256(payload).hexdigest()
        said = json.loads(note.read_text())
        # Whatever damaged the file: training again is the remedy, so no error.
        if digest == said.get("sha256"):
            both.load_state_dict(weights.loads(payload, kept))
            found = Extractor(net, head, train.name, float(said["accuracy"]), digest)
            both.eval().requires_grad_(False)
            return found.to(device)
    _fit(both.to(device), train.to(device), steps=steps, seed=seed, progress=progress)
    _unit_scale(net, head, train.take(5000).to(device))
    accuracy = _accuracy(both, test.to(device))
    payload = weights.dumps(weights.state_of(both))
    digest = hashlib.sha256(payload).hexdigest()
    write_bytes(kept, payload)
    write_json(note, facts | {"sha256": digest, "accuracy": accuracy, "dataset": train.name})
    both.eval().requires_grad_(False)
    return Extractor(net, head, train.name, accuracy, digest)


def _fit(net: nn.Module, train: Split, *, steps: int, seed: int, progress: Any) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done, epoch = 0, 0
    with torch.enable_grad(), (progress or no_progress)(steps, "feature classifier") as bar:
        while done < steps:
            for index in order(len(train), seed=seed, epoch=epoch).to(train.x.device).split(100)[: steps - done]:
                loss = F.cross_entropy(net(train.inputs(index)), train.y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()
                done += 1
                bar.advance(1)
            epoch += 1


@torch.no_grad()
def _unit_scale(net: nn.Sequential, head: nn.Linear, train: Split) -> None:
    """Give the features root mean square 1, the logits unchanged: a ReLU passes a factor on."""
    squares = torch.stack([net(x).double().square().mean() for x, _ in batches(train, BATCH)])
    scale = squares.mean().sqrt().clamp(min=1e-12).item()
    last = net[-2]
    assert isinstance(last, nn.Linear)
    last.weight.div_(scale)
    last.bias.div_(scale)
    head.weight.mul_(scale)


def _accuracy(net: nn.Module, split: Split) -> float:
    with evaluating(net), torch.no_grad():
        return sum(int((net(x).argmax(1) == y).sum()) for x, y in batches(split, BATCH)) / len(split)


@dataclass(frozen=True, eq=False)
class PixelFeatures:
    """The first principal components of the training pixels: features that no classifier had a hand in.

    Args:
        mean: (P,) mean image.
        axes: (P, D) orthonormal columns.
    """

    mean: Tensor
    axes: Tensor

    @property
    def name(self) -> str:
        """Return the name that metrics in these features carry."""
        return f"{self.axes.shape[1]} principal components of the pixels"

    def features(self, x_NX: Tensor) -> Tensor:
        """Return (N, D) float64 features of inputs of any shape."""
        flat_NP = x_NX.flatten(1).double()
        return (flat_NP - self.mean.to(flat_NP.device)) @ self.axes.to(flat_NP.device)


def pixel_features(train: Split, *, dimension: int = DIMENSION, limit: int = 5000) -> PixelFeatures:
    """Return the principal components of the first `limit` training inputs, at most `dimension` of them."""
    flat_NP = train.take(limit).inputs().flatten(1).double()
    mean_P = flat_NP.mean(0)
    centred = flat_NP - mean_P
    D = min(dimension, centred.shape[1], len(centred) - 1)
    if centred.shape[1] <= len(centred):
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :D]
    else:  # the smaller Gram matrix has the same eigenvalues
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        top = vectors.flip(1)[:, :D]
        axes = centred.T @ top / values.flip(0)[:D].clamp(min=1e-300).sqrt()
    return PixelFeatures(mean_P, axes.contiguous())
