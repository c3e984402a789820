"""Settings of the whole suite: one torch thread per worker, so that parallel workers do not fight over cores."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("ICLR18_RUNS", None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets, $ICLR18_DATA; a test that needs it is skipped without it."""
    folder = os.environ.get("ICLR18_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real data: set ICLR18_DATA")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.markexpr:
        config.option.markexpr = "not slow"
