"""The timeline of a step: spans of all processes by one clock, in rows that a viewer can show."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demopsd_dist.run_record.profiling.timeline import (
    ClockOffset,
    ClockReading,
    Span,
    Spans,
    Track,
    clock_offset,
    nested_rows,
    read_clock,
    trace_events,
)

spans = st.builds(lambda start, length: Span("x", start, start + length), st.integers(0, 30), st.integers(0, 20))


@given(st.lists(spans, max_size=20))
def test_spans_of_a_row_are_disjoint_or_nested(all_spans: list[Span]) -> None:
    rows = nested_rows(all_spans)
    assert sorted(span for row in rows for span in row) == sorted(all_spans)
    for row in rows:
        for i, one in enumerate(row):
            for two in row[i + 1 :]:
                inside = one.start_s <= two.start_s and two.end_s <= one.end_s
                assert inside or two.start_s >= one.end_s


def test_open_spans_end_now() -> None:
    recorded = Spans(max_spans=2)
    for name in ("first", "second", "third"):
        with recorded.span(name):
            pass
    with recorded.span("now"):
        assert [span.name for span in recorded.since(0.0)] == ["second", "third", "now"]
    assert recorded.since(time.monotonic()) == []


def test_offset_of_a_clock_on_this_and_on_another_machine() -> None:
    assert clock_offset(1.0, read_clock(), 9.0) == ClockOffset(0.0, 0.0)
    assert clock_offset(100.0, ClockReading("another", 1101.5), 103.0) == ClockOffset(1000.0, 1.5)
    track = Track.from_process("learner 0", [Span("step", 1101.0, 1102.0)], ClockOffset(1000.0, 1.5))
    assert track == Track("learner 0", [Span("step", 101.0, 102.0)], 1.5)


def test_the_trace_has_a_process_for_each_track_and_only_the_step() -> None:
    driver = Track("driver", [Span("before", 1.0, 2.0), Span("learn", 9.5, 11.0), Span("score", 10.0, 12.0)])
    learner = Track("learner 0", [Span("step", 10.0, 10.5)], 0.002)
    trace = trace_events([driver, learner], 3, 9.0, 20.0)
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [(e["name"], e["pid"], e["tid"]) for e in events] == [("learn", 1, 1), ("score", 1, 2), ("step", 2, 1)]
    assert (events[2]["ts"], events[2]["dur"]) == (pytest.approx(1e6), pytest.approx(5e5))
    assert trace["otherData"] == {"step": 3, "step_s": 11.0, "clock_error_us": {"driver": 0.0, "learner 0": 2000.0}}
