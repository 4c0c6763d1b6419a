"""What is seen of a long job where standard error is no terminal."""

import io
import re

import pytest

from championship_sr.store import progress as module
from championship_sr.store.progress import progress, tell_every


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have passed, for the test to set."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    yield now
    tell_every(30)


def job(clock, steps: int, **options) -> None:
    with progress(total=steps, desc="train", unit="step", **options) as bar:
        for _ in range(steps):
            clock[0] += 10
            bar.update()
            bar.set_postfix({"loss": "0.01234"})


def test_a_line_every_thirty_seconds_has_step_loss_rate_and_time_left(clock, capsys):
    job(clock, 8)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"train: step 3 of 8, 10.00s/step, 00:(49|50) left, loss=0.01234", lines[0])
    assert re.fullmatch(r"train: step 6 of 8, 10.00s/step, 00:(19|20) left, loss=0.01234", lines[1])


def test_short_jobs_processes_that_are_not_the_first_and_zero_seconds_are_silent(clock, capsys):
    job(clock, 2)
    job(clock, 8, first=False)
    tell_every(0)
    job(clock, 8)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar(clock, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    job(clock, 2)
    assert "\r" in terminal.getvalue() and "2/2" in terminal.getvalue()


def test_a_job_without_standard_error_goes_on(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    job(clock, 8)
    assert clock[0] == 80
