"""The standard FID, KID and Inception score, where torch-fidelity and its weights are on this machine. Never fetched.

N images
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from iclr18cli.errors import UserError

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
"""File name of torch-fidelity's default extractor."""


def weights_file(given: str = "") -> Path | None:
    """Return the extractor's weights: `given`, $ICLR18_INCEPTION, or torch hub's cache; None: not on this machine."""
    home = Path(os.environ.get("TORCH_HOME", Path("~/.cache/torch").expanduser()))
    for place in (given, os.environ.get("ICLR18_INCEPTION", ""), home / "hub" / "checkpoints" / WEIGHTS):
        if place and Path(place).is_file():
            return Path(place)
    return None


def available(given: str = "") -> bool:
    """Say whether `inception_metrics` would run."""
    return importlib.util.find_spec("torch_fidelity") is not None and weights_file(given) is not None


def inception_metrics(samples_N3HW: Tensor, data_N3HW: Tensor, *, weights: str = "") -> dict[str, Any]:
    """Return fid, kid_mean, kid_std, inception_score_mean, inception_score_std by torch-fidelity.

    Args:
        samples_N3HW, data_N3HW: uint8 RGB images on the CPU.
        weights: File of the extractor's weights; "": where `weights_file` finds it.

    Raises:
        UserError: The package or the weights are not on this machine.
        ValueError: The images are not uint8 RGB.
    """
    file = weights_file(weights)
    if importlib.util.find_spec("torch_fidelity") is None:
        raise UserError("FID needs torch-fidelity.", why="it is not installed", fix="pip install torch-fidelity")
    if file is None:
        raise UserError(
            "FID needs the weights of the Inception network.",
            why=f"{WEIGHTS} is neither in $ICLR18_INCEPTION nor in torch's hub cache",
            fix="fetch it from torch-fidelity's release page and set ICLR18_INCEPTION to the file",
        )
    for images in (samples_N3HW, data_N3HW):
        if str(images.dtype) != "torch.uint8" or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 (N, 3, H, W); received {images.dtype} {tuple(images.shape)}")
    from torch.utils.data import Dataset
    from torch_fidelity import calculate_metrics  # imported here: slow, and not a dependency

    class Images(Dataset[Tensor]):
        def __init__(self, images: Tensor):
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> Tensor:
            return self.images[index]

    found = calculate_metrics(
        input1=Images(samples_N3HW), input2=Images(data_N3HW), fid=True, kid=True, isc=True, verbose=False,
        cuda=False, kid_subset_size=min(1000, len(samples_N3HW), len(data_N3HW)),
        feature_extractor_weights_path=str(file),
    )  # fmt: skip
    return {
        "fid": found["frechet_inception_distance"],
        "kid_mean": found["kernel_inception_distance_mean"],
        "kid_std": found["kernel_inception_distance_std"],
        "inception_score_mean": found["inception_score_mean"],
        "inception_score_std": found["inception_score_std"],
    }
