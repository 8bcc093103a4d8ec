"""Settings of every test. Nothing is seeded here: a test that draws seeds its own source."""

import gc
import os

import pytest
import torch
from hypothesis import settings

# Promises fail by assert; pytest then shows the values of both sides.
pytest.register_assert_rewrite("robustcli.promises")

# Processes of pytest-xdist have the width of the terminal, which tables of commands would follow.
os.environ.pop("COLUMNS", None)

# Tiny tensors otherwise spend most of their time waiting for each other.
torch.set_num_threads(1)

# The same examples in every run and no time limit for one: a test fails because of the code alone.
settings.register_profile("robustcli", deadline=None, derandomize=True, max_examples=20, database=None)
settings.load_profile("robustcli")


def pytest_collection_finish() -> None:
    """Take modules and collected tests, which stay to the end, out of what is searched for garbage again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: processes that share the work then end together."""
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("full", "slow")])
