"""The learning rate against PyTorch's own schedulers and the document's arithmetic; stages that fill the run."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from championship_sr.store.errors import ConfigError
from championship_sr.train.schedule import RunLength, constant, cosine, parse_length, restarts, stages

RATES = {"peak": 1e-3, "lowest": 1e-6, "warmup_from": 1e-5}


def test_lengths_are_steps_epochs_or_per_cent():
    span = RunLength(steps=1000, steps_per_epoch=12.5)
    assert [span.in_steps(x) for x in (7, "7", "7 steps", "1 step", "4 epochs", "1 epoch", "2.5%", "40 %")] == [
        7, 7, 7, 1, 50, 12, 25, 400,
    ]  # fmt: skip


@given(st.integers(1, 3000), st.sampled_from([1, 7, "10 %", "50 %", "33 %", "3 epochs", "100 %"]))
def test_a_length_is_due_as_often_as_it_fits_and_a_share_never_just_before_the_end(steps, every):
    span = RunLength(steps, steps_per_epoch=12.3)
    due = [step for step in range(1, steps + 1) if span.due(step, every)]
    length = max(1.0, span.exact(every))
    assert len(due) in (int(steps / length), int(steps / length + 0.5))
    assert all(abs(after - before - length) <= 1 for before, after in pairwise(due))
    if str(every) in ("10 %", "50 %", "100 %"):
        assert due[-1] == steps


@pytest.mark.parametrize("length", ["ten", "5 minutes", "-1", "nan", "", "inf steps"])
def test_what_is_no_length_is_refused(length):
    with pytest.raises(ValueError, match="is not a length"):
        parse_length(length)


def test_warm_up_rises_in_a_line_to_the_peak():
    rate = cosine(RunLength(100, 10), warmup=10, **RATES)
    assert rate(0) == pytest.approx(1e-5) and rate(5) == pytest.approx((1e-5 + 1e-3) / 2)
    assert rate(10) == pytest.approx(1e-3)


def test_cosine_is_pytorchs():
    rate = cosine(RunLength(51, 10), warmup=0, **RATES)
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=50, eta_min=1e-6)
    for step in range(51):
        assert rate(step) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        reference.step()


def test_every_cosine_begins_at_the_peak_and_ends_at_the_lowest():
    rate = restarts(RunLength(200, 1), warmup="5 epochs", first_cycle="65 epochs", cycle_factor=2, **RATES)
    assert [step for step in range(200) if rate(step) == RATES["peak"]] == [5, 70]
    assert rate(69) == rate(199) == pytest.approx(RATES["lowest"])


def test_the_documents_restarts_are_refused_with_the_arithmetic():
    with pytest.raises(ConfigError) as caught:
        restarts(RunLength(20000, 100), warmup="5 epochs", first_cycle="50 epochs", cycle_factor=2, **RATES)
    message = str(caught.value)
    assert "500 + 5000 + 10000 + 20000 steps end at 5500, 15500, 35500, not at 20000" in message
    # the document's own figure: 45 epochs into a cosine of 200
    assert f"{(1 + math.cos(math.pi * 45 / 200)) / 2:.0%} of the peak" in message
    assert "With 3 cycles, first_cycle must be 2785.714286 steps (27.8571 epochs)" in message


@given(
    steps=st.integers(30, 5000), per_epoch=st.floats(1, 300), warmup=st.integers(0, 20),
    cycles=st.integers(1, 3), factor=st.sampled_from([1, 1.5, 2]),
)  # fmt: skip
def test_the_first_cycle_that_the_arithmetic_names_ends_with_the_run(steps, per_epoch, warmup, cycles, factor):
    first = (steps - warmup) / sum(factor**index for index in range(cycles))
    rate = restarts(
        RunLength(steps, per_epoch), warmup=warmup, first_cycle=f"{first} steps", cycle_factor=factor, **RATES
    )
    assert rate(steps - 1) == pytest.approx(RATES["lowest"], abs=0.01 * RATES["peak"])
    assert all(RATES["lowest"] <= rate(step) <= RATES["peak"] for step in range(warmup, steps))


def test_constant_stays_at_the_peak():
    rate = constant(RunLength(100, 10), warmup=10, **RATES)
    assert {rate(step) for step in (10, 50, 99)} == {1e-3}


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(ConfigError, match="leave none of the run's 100 steps"):
        cosine(RunLength(100, 10), warmup="10 epochs", **RATES)


@given(steps=st.integers(3, 10_000), cuts=st.tuples(st.integers(1, 98), st.integers(1, 98)))
def test_every_step_belongs_to_one_stage_in_order(steps, cuts):
    first, second = sorted(cuts)
    lengths = [f"{first} %", f"{second - first} %", f"{100 - second} %"]
    stage = stages(RunLength(steps, 7.0), lengths)
    found = [stage(step) for step in range(steps)]
    assert found == sorted(found) and set(found) <= {0, 1, 2}
    assert found.count(0) == pytest.approx(steps * first / 100, abs=1)


def test_stages_that_do_not_fill_the_run_are_refused_with_the_arithmetic():
    with pytest.raises(ConfigError, match=r"8000 \+ 7000 = 15000 steps, but the run has 20000 \(200 epochs\)"):
        stages(RunLength(20000, 100), ["80 epochs", "70 epochs"])
