"""A tab of Chromium for the tests of a file; without Chromium they are skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.chromium import Tab, chromium, chromium_path


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    if chromium_path() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium to test the report")
    with chromium() as tab:
        yield tab
