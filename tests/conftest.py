"""Settings of every test. Nothing is seeded here: a test that draws seeds its own source."""

import gc
import os

import pytest
import torch
from hypothesis import settings

# Checks fail by assert; pytest then shows the values of both sides.
pytest.register_assert_rewrite("robustcli.contracts")

# pytest-xdist passes on the terminal's width, which would change printed tables.
os.environ.pop("COLUMNS", None)

# With more threads, tiny tensors spend most of their time on synchronization.
torch.set_num_threads(1)

# The same examples in every run and no deadline, so that tests fail only because of the code.
settings.register_profile("robustcli", deadline=None, derandomize=True, max_examples=20, database=None)
settings.load_profile("robustcli")


def pytest_collection_finish() -> None:
    """Exclude modules and collected tests from garbage collection, since they stay to the end."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long tests first, so that parallel processes end together."""
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("full", "slow")])
