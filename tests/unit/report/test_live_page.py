"""The served report: only with the token and from this machine, renewed when the run records something."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from demopsd_dist.report.live import LivePage, serve_page
from demopsd_dist.util.errors import ConfigError
from launch.watch import main
from tests.browser.recorded_runs import a_run


def get(address: str, **headers: str) -> tuple[int, str]:
    """Status and text of an answer."""
    try:
        with urlopen(Request(address, headers=headers), timeout=30) as answer:
            assert answer.headers["Cache-Control"] == "no-store"
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_only_this_machine_with_the_token_reads_the_run(tmp_path: Path) -> None:
    run = a_run(tmp_path, steps=2, responses=4)
    with serve_page(run) as address, serve_page(run) as other:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", address)
        status, text = get(address)
        assert status == 200
        assert "connect-src &#x27;self&#x27;" in text or "connect-src 'self'" in text
        base, _, token = address.partition("?token=")
        assert token not in text, "the page does not hold its token"
        refused = "open the address that demopsd watch has printed\n"
        for wrong in (base, f"{base}?token=", f"{base}?token={token[:-1]}", f"{base}?token={other.partition('=')[2]}"):
            assert get(wrong) == (403, refused), wrong
        assert get(f"{base}state") == (403, refused)
        assert get(address, Host="evil.example") == (403, refused)
        assert get(address, Host="evil.example:80") == (403, refused)
        assert get(address.replace("/?", "/metrics.jsonl?"))[0] == 404
        assert get(address.replace("/?", "/../config.yaml?"))[0] == 404


def next_state(address: str, before: str) -> str:
    """State after `before`; a change shows only some time after the page was written."""
    deadline = time.monotonic() + 60
    while (now := json.loads(get(address)[1])) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return now


def test_writing_the_page_takes_a_tenth_of_a_core_at_most(tmp_path: Path) -> None:
    """The state stays for nine times as long as the page took, but for the end of the run."""
    live = LivePage(a_run(tmp_path, steps=2, responses=30))
    started = time.monotonic()
    live.html()
    took = time.monotonic() - started
    state = live.state()
    with (tmp_path / "demo" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "learner/loss": 0.125, "perf/step_s": 1.0}\n')
    assert live.state() == state
    while live.state() == state:
        assert time.monotonic() - started < 15 * took + 5
    assert time.monotonic() - started > 5 * took
    live.html()
    (tmp_path / "demo" / "summary.json").write_text('{"wall_s": 3}')
    assert live.state().startswith("done-")


def test_the_state_changes_with_every_record(tmp_path: Path) -> None:
    run = a_run(tmp_path, steps=2, responses=4)
    with serve_page(run) as address:
        state = address.replace("/?", "/state?")
        states = [json.loads(get(state)[1])]
        assert states[0].startswith("running-")
        assert json.dumps(states[0])[1:-1] in get(address)[1]
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3, "learner/loss": 0.125, "perf/step_s": 1.0}\n')
        states.append(next_state(state, states[0]))
        assert "0.125" in get(address)[1]
        (run / "summary.json").write_text("{damaged")
        assert "0.125" in get(address)[1], "the last page stays while a file is being written"
        (run / "summary.json").write_text('{"wall_s": 3}')
        states.append(json.loads(get(state)[1]))
        assert states[2].startswith("done-")
        assert len(set(states)) == 3


def test_a_taken_port_and_a_port_without_a_page_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path, steps=1, responses=1)
    with serve_page(run) as address:
        port = int(re.findall(r":(\d+)/", address)[0])
        with pytest.raises(ConfigError, match=f"--port {port}: "), serve_page(run, port):
            pass
    assert main([str(run), "--port", "8900"]) == 2
    assert "Add --web" in capsys.readouterr().err
    assert main([str(tmp_path), "--web"]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_a_page_that_stands_alone_asks_nobody(tmp_path: Path) -> None:
    from demopsd_dist.report.page import page
    from demopsd_dist.report.read_run import read_run

    text = page([read_run(a_run(tmp_path, steps=1, responses=1))])
    assert "connect-src" not in text
    assert '"live":' not in text.partition('id="data">')[2].partition("</script>")[0]
