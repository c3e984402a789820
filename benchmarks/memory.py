"""Memory that training on MNIST takes for its data.

    python benchmarks/memory.py [--steps 2] [--json FILE]

One process: some training steps on a few random images first (that memory is torch's and the network's), then MNIST is
read, then the same steps on it. Printed in units of the raw bytes (60,000 images of 784 bytes and their labels): 1 is
data held once. `Split.to` of the device the data is on must give the very same storage. Needs ICLR18_DATA with MNIST.
"""

from __future__ import annotations

import dataclasses
import tempfile

import measuring
import torch
from iclr18_wrm.train import fit, network
from wrm_step import CONFIGS

from iclr18cli.config import to_dict
from iclr18cli.data.registry import open_split
from iclr18cli.data.tensors import Split
from iclr18cli.run.start import open_run
from iclr18cli.settings import TrainSettings


def few_steps(data: Split, steps: int, folder: str) -> None:
    """Train a fresh network for some steps."""
    config = dataclasses.replace(CONFIGS["mnist"], inner_steps=2)
    net = network(config, data)[0]
    with open_run("wrm", to_dict(config), TrainSettings(runs_dir=folder, device="cpu")) as run:
        epochs = run.epochs

        def stopping(*arguments: object, **options: object) -> object:
            for batch in epochs(*arguments, **options):
                if run.step >= steps:
                    run.stop()
                yield batch

        run.epochs = stopping
        fit(net, data, config, run)


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randint(256, (256, 1, 28, 28), dtype=torch.uint8)
    few = Split(x, torch.arange(256) % 10, tuple("0123456789"), "few", "train")
    with tempfile.TemporaryDirectory() as folder:
        few_steps(few, options.steps, folder)
        before = measuring.resident_bytes()
        measuring.reset_peak()
        few_steps(few, options.steps, folder)
        training = measuring.peak_bytes() - before
        before = measuring.resident_bytes()
        measuring.reset_peak()
        data = open_split("mnist", "train")
        reading, held = measuring.peak_bytes() - before, measuring.resident_bytes() - before
        measuring.reset_peak()
        few_steps(data, options.steps, folder)
        peak = measuring.peak_bytes() - before
    raw = data.x.nbytes + data.y.nbytes
    same = (
        data.to("cpu").x.data_ptr() == data.x.data_ptr()
        and data.to(torch.device("cpu")).y.data_ptr() == data.y.data_ptr()
    )
    figures = {
        "raw bytes of the data": raw,
        "peak while training on 256 images": training,
        "peak while reading MNIST": reading,
        "held after reading": held,
        "peak while training on MNIST": peak,
        "of that for the data (minus training on 256)": peak - training,
    }
    rows = [[name, value / 2**20, value / raw] for name, value in figures.items()]
    about = measuring.machine("cpu")
    measuring.report(
        f"Resident memory over what the process had, {data.x.dtype} images, batch 128",
        ["memory", "MiB", "in raw bytes"], rows, about,
        [f"Split.to('cpu') gives the same storage: {'yes' if same else 'NO'}"],
    )  # fmt: skip
    measuring.write(options.json, {"bytes": figures, "same_storage": same, "machine": about})


if __name__ == "__main__":
    main()
