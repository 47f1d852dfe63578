"""The crash report of a worker's error output."""

from __future__ import annotations

import time

import pytest

from workers.cluster.crash_report import TAIL_BYTES, crash_report, summary

SEGMENTATION_FAULT = """:job_id:01000000
:actor_name:LearnerWorker
Loading weights: 100%|##########| 47/47 [00:00<00:00, 28238.40it/s]
*** SIGSEGV received at time=1796048650 on cpu 1 ***
PC: @     0x7f6c60f26f36  (unknown)  epoll_wait
    @     0x7f6c60e5a050  1941822480  (unknown)
    @     0x7f6c5feab5cd        128  boost::asio::detail::scheduler::do_run_one()
    @ ... and at least 3 more frames
[2026-11-30 14:24:10,148 E 11461 11461] logging.cc:474: *** SIGSEGV received at time=1796048650 on cpu 1 ***
Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "/venv/lib/python3.11/site-packages/ray/_private/worker.py", line 1069 in main_loop
  File "/home/me/script.py", line 3 in <module>

Extension modules: numpy._core._multiarray_umath (total: 1)
"""


def test_a_signal_is_named_with_its_frames() -> None:
    assert summary(SEGMENTATION_FAULT) == (
        "It crashed: SIGSEGV; native frames epoll_wait < boost::asio::detail::scheduler::do_run_one(); "
        "Python frames main_loop (ray/_private/worker.py:1069) < <module> (/home/me/script.py:3)."
    )


def test_an_exception_that_nobody_caught_is_named() -> None:
    output = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
    said = summary(f"{output}*** SIGABRT received at time=1 on cpu 0 ***\nFatal Python error: Aborted\n")
    assert said == (
        "It crashed: terminate called after throwing an instance of 'std::bad_alloc'; what(): std::bad_alloc; SIGABRT."
    )


@pytest.mark.parametrize("output", ["", ":job_id:01000000\nLoading weights: 100%\n"])
def test_a_kill_from_outside_leaves_no_crash(output: str) -> None:
    assert "killed from outside" in summary(output)


def test_output_of_blank_lines_is_summed_up_in_linear_time() -> None:
    started = time.process_time()
    assert "killed from outside" in summary("\n" * TAIL_BYTES)
    assert "killed from outside" in summary("\r\n \t" * (TAIL_BYTES // 4))
    assert time.process_time() - started < 5, "quadratic, it would take minutes"


def test_a_process_that_the_run_has_ended_has_no_report() -> None:
    assert crash_report("pid: 1\nThe actor is dead because it was killed by `ray.kill`.") == ""


def test_the_output_of_another_node_is_named() -> None:
    death = "The actor died.\n\tclass_name: LearnerWorker\n\tpid: 4904\n\tip: 10.0.0.7\n"
    assert crash_report(death) == "Its error output is worker-*-4904.err in Ray's logs of node 10.0.0.7."
    assert crash_report("The actor died.") == ""
