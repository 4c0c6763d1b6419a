"""The log of a run: metrics.jsonl first, TensorBoard second."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from championship_sr.store.disk import files
from championship_sr.store.disk.small_files import parse_json, read_small
from championship_sr.store.errors import StoreError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
JOURNAL_MIB = 1024  # a validation of 100 images is a line of 5 KB


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The run's events in order; an incomplete last line is left out."""
    path = run / METRICS_FILE
    lines = read_small(path, JOURNAL_MIB).split(b"\n") if path.exists() else []
    # anything after the last newline is incomplete
    return [_event(line, f"{path}: line {number}") for number, line in enumerate(lines[:-1], 1)]


def _event(line: bytes, where: str) -> dict[str, Any]:
    try:
        event = parse_json(line)
        return event | {"event": event["event"], "step": int(event["step"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{where}: damaged ({type(error).__name__}: {error}); remove the line") from None


class Journal:
    """Appends to a run's log from this step on; entries about later steps, from before a kill, are removed.

    unscored  this step will be validated again, so its own validation entry is removed too

    Each event is a line {"event": ..., "step": ..., "time": ...} with
      reference   psnr, ssim: method -> mean over the validation images; weights: expert -> its fitted weight
      layouts     seconds: block -> layout -> of its depthwise convolutions, on a GPU; the faster one is used
      train       loss, losses, learning_rate, gradient_norm, stage, epoch, steps_per_second, waiting: means
                  over the steps since the last such line; `waiting` is the share of the time spent on the loader
      validation  psnr, ssim, seconds, images: id -> [psnr, ssim]
      end         reason
    """

    def __init__(self, run: Path, step: int, tensorboard: bool, unscored: bool = False) -> None:
        events = read_metrics(run) if step else []
        kept = [event for event in events if event["step"] <= step and event["event"] != "end"]
        if unscored:
            kept = [event for event in kept if (event["event"], event["step"]) != ("validation", step)]
        files.write_atomic(run / METRICS_FILE, "".join(map(_line, kept)).encode())
        self._file = open(run / METRICS_FILE, "a", encoding="utf-8")  # noqa: SIM115, closed by close
        self._writer = _summary_writer(run, step) if tensorboard else None
        self._reference = next((event for event in kept if event["event"] == "reference"), {})

    def write(self, event: str, step: int, **values: Any) -> None:
        """Adds an event; its numbers become scalars `event/name` in TensorBoard."""
        line = _line({"event": event, "step": step, "time": round(time.time(), 3), **values})
        with files.written(Path(self._file.name)):
            self._file.write(line)
            self._file.flush()
        if event == "reference":
            self._reference = values
        if self._writer:
            _add_scalars(self._writer, event, step, values)
            if event == "validation":  # a point at each makes a line beside the fusion's
                beside = {key: self._reference.get(key, {}) for key in ("psnr", "ssim")}
                _add_scalars(self._writer, "reference", step, beside)

    def pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Shows images (3, H, W) in 0..1 in TensorBoard."""
        if self._writer:
            for name, picture in pictures.items():
                self._writer.add_image(f"validation/{name}", picture, step)
            self._writer.flush()

    def close(self) -> None:
        with files.written(Path(self._file.name)):
            self._file.close()
        if self._writer:
            self._writer.close()


def _line(event: Mapping[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False) + "\n"


def _add_scalars(writer: "SummaryWriter", event: str, step: int, values: Mapping[str, Any]) -> None:
    for name, value in _scalars(values):
        writer.add_scalar(f"{event}/{name}", value, step)


def _scalars(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    scalars: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and name != "images":
            scalars += _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            scalars.append((f"{prefix}{name}", value))
    return scalars


def _summary_writer(run: Path, step: int) -> "SummaryWriter":
    # takes a second to import, and not everyone needs it
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run / "tensorboard", purge_step=step + 1)
