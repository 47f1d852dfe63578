"""The table of a step's operations, and the files beside it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from demopsd_dist.run_record.profiling.operations import SHOWN, Operation, ProcessOperations, operations_page, write
from demopsd_dist.util.errors import RunFolderError

PRODUCT = Operation("aten::mm", "512x576, 576x1536", calls=10, self_s=1.0, flops=5e10)
COPY = Operation("aten::copy_", "", calls=40, self_s=3.0, flops=0.0)


def rows_of(page: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"][2:]


def test_the_longest_operation_comes_first_and_the_rest_of_the_time_last() -> None:
    page = operations_page([ProcessOperations("learner 0", 5.0, [PRODUCT, COPY], b"")], step=3)
    assert "# Operations of torch in step 3" in page
    assert "## learner 0, 5.00 s" in page
    assert rows_of(page) == [
        ["`aten::copy_`", "", "40", "3.000", "60%", ""],
        ["`aten::mm`", "512x576, 576x1536", "10", "1.000", "20%", "50"],
        ["outside of operations", "", "", "1.000", "20%", ""],
    ]


def test_many_operations_are_added_up_in_one_row() -> None:
    many = [Operation(f"aten::op{i}", "", 2, 0.5, 0.0) for i in range(SHOWN + 3)]
    rows = rows_of(operations_page([ProcessOperations("teacher 0", 100.0, many, b"")], step=1))
    assert len(rows) == SHOWN + 2
    assert rows[SHOWN] == ["3 others", "", "6", "1.500", "2%", ""]


def test_an_operation_without_time_has_no_rate() -> None:
    page = operations_page([ProcessOperations("learner 0", 1.0, [PRODUCT._replace(self_s=0.0)], b"")], step=1)
    assert rows_of(page)[0] == ["`aten::mm`", "512x576, 576x1536", "10", "0.000", "0%", ""]


def test_each_process_has_a_trace(tmp_path: Path) -> None:
    folder = tmp_path / "operations-step-000003"
    traces = {"learner 0": gzip.compress(b"{}"), "rollout 1": gzip.compress(b"[]")}
    write(folder, 3, [ProcessOperations(name, 1.0, [COPY], trace) for name, trace in traces.items()])
    assert {path.name for path in folder.iterdir()} == {"operations.md", "learner-0.json.gz", "rollout-1.json.gz"}
    assert gzip.decompress((folder / "rollout-1.json.gz").read_bytes()) == b"[]"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"file/operations-step-000001 cannot be written"):
        write(tmp_path / "file" / "operations-step-000001", 1, [])
