"""metrics.jsonl and TensorBoard say the same, and a resumed run's log has no step twice."""

import pytest
import torch

from championship_sr.store.errors import StoreError
from championship_sr.train.records.journal import METRICS_FILE, Journal, read_metrics


def test_a_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path):
    first = Journal(tmp_path, 0, tensorboard=False)
    for step in (0, 1, 2, 3):
        first.write("train", step, loss=float(step))
    first.write("end", 3, reason="steps")
    first.close()
    second = Journal(tmp_path, 2, tensorboard=False)
    second.write("train", 3, loss=9.0)
    second.close()
    assert [(event["step"], event["loss"]) for event in read_metrics(tmp_path)] == [(0, 0), (1, 1), (2, 2), (3, 9)]


def test_a_torn_last_line_is_left_out(tmp_path):
    journal = Journal(tmp_path, 0, tensorboard=False)
    journal.write("train", 1, loss=1.0)
    journal.close()
    with open(tmp_path / METRICS_FILE, "a") as file:
        file.write('{"event": "tra')
    assert [event["step"] for event in read_metrics(tmp_path)] == [1]


@pytest.mark.parametrize("line", ["[" * 100_000, "{}", "3", "x"])
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / METRICS_FILE).write_text('{"event": "train", "step": 1}\n' + line + "\n")
    with pytest.raises(StoreError, match=r"metrics\.jsonl: line 2: damaged"):
        read_metrics(tmp_path)


def test_a_new_run_begins_with_an_empty_log(tmp_path):
    Journal(tmp_path, 0, tensorboard=False).write("reference", 0, psnr={})
    Journal(tmp_path, 0, tensorboard=False)
    assert read_metrics(tmp_path) == []


def test_tensorboard_opens_and_shows_every_number_and_picture(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    journal = Journal(tmp_path, 0, tensorboard=True)
    journal.write("reference", 0, psnr={"mean": 29.0}, ssim={})
    journal.write("train", 1, loss=0.5, losses={"l1": 0.25}, stage="pixels")
    journal.write("validation", 1, psnr=30.0, images={"a": (30.0, 0.9)})
    journal.pictures(1, {"a": torch.rand(3, 8, 8)})
    journal.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/losses/l1", "validation/psnr", "reference/psnr/mean"}
    assert [point.step for point in events.Scalars("reference/psnr/mean")] == [0, 1]
    assert events.Scalars("train/losses/l1")[0].value == 0.25 and events.Scalars("validation/psnr")[0].step == 1
    assert events.Tags()["images"] == ["validation/a"]
