"""The DDP example of the plugin's README, run as it stands there."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[2] / "plugins" / "iclr18_dgc" / "README.md"


@pytest.fixture
def example(tmp_path):
    section = README.read_text().split("## On your own DDP model")[1].split("\n## ")[0]
    (text,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len([line for line in text.splitlines() if line.strip()]) <= 25
    file = tmp_path / "example.py"
    file.write_text(text)
    return file


def free_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def test_the_example_of_the_readme_trains_alone_and_as_two(example):
    both = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    for places in ([{}], [both | {"RANK": str(rank)} for rank in range(2)]):
        running = [
            subprocess.Popen([sys.executable, str(example)], cwd=example.parent, env=clean | place, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE) for place in places
        ]  # fmt: skip
        told = [process.communicate(timeout=120) for process in running]
        assert [process.returncode for process in running] == [0] * len(running), told
        for rank, (out, _) in enumerate(told):
            loss, ratio = re.fullmatch(rf"rank {rank}: loss ([\d.]+), (\d+) times fewer bytes .*\n", out).groups()
            assert float(loss) < 0.5
            assert int(ratio) >= 5
        saved = [torch.load(example.parent / f"worker-{r}.pt", weights_only=True) for r in range(len(running))]
        assert all(torch.equal(saved[0]["model"][name], saved[-1]["model"][name]) for name in saved[0]["model"])
