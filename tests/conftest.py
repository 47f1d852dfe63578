"""Settings of all tests: one thread for the small tensors here, and no deadlines, because the machine may be busy.

Tests marked `long` are skipped unless DEMOPSD_LONG_TESTS is set: `DEMOPSD_LONG_TESTS=1 make test` runs all.
"""

import os

import hypothesis
import pytest
import torch

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and commands would fit their lines to it
torch.set_num_threads(1)  # waiting threads would be slower than one
hypothesis.settings.register_profile("no deadline", deadline=None)  # slow is not wrong
hypothesis.settings.load_profile("no deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skipped = pytest.mark.skip(reason="takes minutes: DEMOPSD_LONG_TESTS=1 runs it")
    for item in items:
        if item.get_closest_marker("long") and "DEMOPSD_LONG_TESTS" not in os.environ:
            item.add_marker(skipped)
