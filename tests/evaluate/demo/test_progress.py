"""The demo says which stage runs and how long the rest takes."""

import time

import pytest

from championship_sr.evaluate.demo.progress import STAGES, DemoStages, spoken


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_each_stage_is_announced_with_what_is_left_at_the_pace_so_far(clock, capsys):
    stages = DemoStages()
    for stage, (_, typical) in STAGES.items():
        with stages.running(stage):
            clock[0] += 3 * typical
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
    assert said[0].endswith("about 2 minutes left")  # nothing is known yet: 90 s
    assert said[2].endswith("about 3 minutes left")  # three times (45 + 7) s
    assert said[3].endswith("about 20 s left")


def test_a_stage_that_found_its_work_done_says_nothing_about_the_pace(clock):
    stages = DemoStages(training=0.5)
    with stages.running("extract"):
        clock[0] += 0.2
    assert stages.pace() == 1.0
    assert stages.left() == 2 + 45 / 2 + 7


@pytest.mark.parametrize(("seconds", "words"), [(2, "about 10 s"), (42, "about 40 s"), (100, "about 2 minutes")])
def test_times_are_said_in_round_numbers(seconds, words):
    assert spoken(seconds) == words
