"""One HTML file that shows what a run is worth; it opens without a network and without any other file."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.inference.inputs import hwc
from championship_sr.evaluate.methods import BICUBIC, EXPERT, FUSION, MEAN, row
from championship_sr.evaluate.metrics import METRICS
from championship_sr.evaluate.model import Model, load
from championship_sr.evaluate.report import charts
from championship_sr.evaluate.report.colours import CATEGORIES, INFERNO, categories, coloured, data_uri
from championship_sr.evaluate.report.gallery import Cut, Gallery, nearest_expert
from championship_sr.evaluate.scoring.evaluation import Wanted, evaluate_store
from championship_sr.evaluate.scoring.scores import Scores, labelled
from championship_sr.store.config import dump_yaml, to_plain
from championship_sr.store.disk.files import write_atomic
from championship_sr.train.run.journal import read_metrics

log = logging.getLogger(__name__)

REPORT = "report.html"
TEMPLATE = "report.html.j2"
MAP_LR_PX = 96  # side of the windows whose maps are shown
MAPPED = 2  # windows of each kind whose maps are shown
ERROR_PERCENTILE = 99.5  # of all errors of a window is the brightest colour


@dataclass(frozen=True)
class Picture:
    """One picture of the page."""

    source: str
    title: str
    text: str = ""


def evaluate_with_report(
    run: Path, store: Path, folder: Path, *, wanted: Wanted | None = None, config: EvaluateConfig | None = None
) -> tuple[Scores, Path]:
    """The scores of a run on a store, and the report that is written with them into the folder.

    wanted  its `observe` is the report's; None: no self-ensemble and no ablation
    """
    config = config or EvaluateConfig()
    model = load(run, config=config)
    gallery = Gallery(model.scale)
    wanted = replace(wanted or Wanted(self_ensemble=False), observe=gallery)
    scores = evaluate_store(model, store, wanted=wanted, config=config)
    write_scores(folder, "scores", scores)
    return scores, write_report(folder / REPORT, scores, gallery, model)


def write_scores(folder: Path, stem: str, scores: Scores) -> list[Path]:
    """Writes the scores as CSV, JSON and Markdown, and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"csv": scores.csv(), "json": json.dumps(scores.to_plain(), indent=1), "md": scores.markdown() + "\n"}
    for ending, text in texts.items():
        write_atomic(folder / f"{stem}.{ending}", text.encode())
    return [folder / f"{stem}.{ending}" for ending in texts]


def write_report(path: Path, scores: Scores, gallery: Gallery, model: Model) -> Path:
    """Writes the report of a run and returns its path.

    gallery  what looked on while `scores` were made
    """
    environment = Environment(
        loader=PackageLoader("championship_sr.evaluate.report", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    page = environment.get_template(TEMPLATE).render(**_content(scores, gallery, model))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page.encode())
    log.info("%s: %.1f MB", path, path.stat().st_size / 1e6)
    return path


def _content(scores: Scores, gallery: Gallery, model: Model) -> dict[str, Any]:
    metric, best = scores.metrics[0], best_expert(scores)
    differences = scores.differences(metric, FUSION, best)
    unit = f"{METRICS[metric].title} over {row(best).title}"
    checkpoint = model.fusion.checkpoint
    return {
        "title": model.root.resolve().name,
        "subtitle": f"Checkpoint of step {checkpoint.step}, report of {date.today().isoformat()}",
        "facts": _facts(scores, best),
        "header": scores.header(),
        "rows": [_table_row(scores, method) for method in scores.methods],
        "protocol": scores.protocol,
        "notes": scores.notes,
        "weights": scores.weights,
        "bars": charts.bars(dict(zip(scores.images, differences.tolist(), strict=True)), y_title=unit),
        "histogram": charts.histogram(differences.tolist(), x_title=unit),
        "best": row(best).title,
        "curves": _curves(model.root),
        "gains": [_window(cut) for cut in gallery.gains],
        "losses": [_window(cut) for cut in gallery.losses],
        "maps": _all_maps([*gallery.gains[:MAPPED], *gallery.losses[:MAPPED]], model),
        "wins": _wins(gallery),
        "colours": CATEGORIES,
        "costs": _costs(scores),
        "experts": _experts(model),
        "config": dump_yaml({"train": to_plain(model.fusion.config)}),
    }


def best_expert(scores: Scores) -> str:
    """The expert (as a method) with the best mean by the first metric."""
    metric = scores.metrics[0]
    sign = 1 if METRICS[metric].higher_is_better else -1
    experts = [method for method in scores.methods if method.startswith(EXPERT)]
    return max(experts, key=lambda method: sign * scores.mean(metric, method))


def _facts(scores: Scores, best: str) -> list[tuple[str, str]]:
    """What is told at the top: figure and what it is."""
    metric = scores.metrics[0]
    digits, gain = METRICS[metric].digits - 1, scores.gain(metric, FUSION, best)
    number, interval = len(scores.images), f"95\u00a0%: {gain.low:+.{digits}f} to {gain.high:+.{digits}f}"
    return [
        (f"{scores.mean(metric, FUSION):.{digits}f}", f"{METRICS[metric].title} of the fusion"),
        (f"{gain.mean:+.{digits}f}", f"over {row(best).title}, the best expert; {interval}"),
        (f"{scores.gain(metric, FUSION, BICUBIC).mean:+.{digits}f}", "over bicubic"),
        (f"{gain.wins} of {number}", f"image{'s' if number != 1 else ''} better than {row(best).title}"),
    ]


def _table_row(scores: Scores, method: str) -> dict[str, Any]:
    cells = next(cells for cells in scores.rows() if cells[0] == labelled(method))
    return {"cells": cells, "kind": row(method).kind.replace(" ", "-")}


def _curves(run: Path) -> list[tuple[str, str]]:
    """(title, chart) of what the run's log holds."""
    events = read_metrics(run)
    reference = next((event for event in events if event["event"] == "reference"), {"psnr": {}})
    validation = [event for event in events if event["event"] == "validation"]
    training = [event for event in events if event["event"] == "train"]
    charted = [
        (
            "PSNR-Y on the validation images",
            charts.line_chart(
                {"fusion": [(event["step"], event["psnr"]) for event in validation]},
                reference["psnr"],
                x_title="step",
                y_title="PSNR-Y, dB",
            ),
        ),
        ("Training loss", _train_chart(training, "loss", log_y=True)),
        ("Learning rate", _train_chart(training, "learning_rate")),
    ]
    return [(title, chart) for title, chart in charted if chart]


def _train_chart(events: Sequence[Mapping[str, Any]], key: str, *, log_y: bool = False) -> str:
    line = [(event["step"], event[key]) for event in events if key in event]
    return charts.line_chart({key: line}, x_title="step", y_title=key.replace("_", " "), log_y=log_y)


def _window(cut: Cut) -> dict[str, Any]:
    """HR, best expert, mean and fusion, and under each its error."""
    errors, names = cut.errors(), {"HR": "HR", EXPERT + cut.best: cut.best, MEAN: "mean of experts", FUSION: "fusion"}
    brightest = max(1.0, float(np.percentile(np.stack(list(errors.values())), ERROR_PERCENTILE)))
    pictures = [Picture(data_uri(cut.images[key]), title, _error_text(errors.get(key))) for key, title in names.items()]
    maps = [Picture(data_uri(coloured(errors[key], 0, brightest, INFERNO)), f"error of {names[key]}") for key in errors]
    return {
        "title": f"{cut.case.name}, window at row {cut.y}, column {cut.x} of LR",
        "gain": f"{cut.gain:+.1f}",
        "brightest": f"{brightest:.0f}",
        "pictures": pictures,
        "errors": maps,
    }


def _error_text(error: np.ndarray | None) -> str:
    if error is None:
        return ""
    mean_square = float((error**2).mean())
    return f"{10 * np.log10(255**2 / mean_square):.2f} dB" if mean_square else "inf dB"


def _all_maps(cuts: Sequence[Cut], model: Model) -> list[dict[str, Any]]:
    """The maps around the windows; windows of a small image have the same surroundings, which are shown once."""
    return list({item["title"]: item for item in (_maps(cut, model) for cut in cuts)}.values())


@torch.no_grad()  # not inference_mode: tensors that the network caches would spoil a later training
def _maps(cut: Cut, model: Model) -> dict[str, Any]:
    """What the network decided around a window: every map that it has, and who of the experts is nearest."""
    inputs = cut.case.inputs("identity", model.expert_names)
    place = [_around(start, length) for start, length in zip((cut.y, cut.x), inputs.size, strict=True)]
    (y, rows), (x, cols) = place
    window = inputs.window(y, x, rows, cols)
    images = window[1]
    s = model.scale
    hr = cut.case.pair()[1][y * s : (y + rows) * s, x * s : (x + cols) * s]
    pictures = [Picture(data_uri(hwc(model.network(*window)[0].cpu()), lossless=False), "fusion")]
    winner = nearest_expert([hwc(image.cpu()) for image in images[0]], hr)
    pictures.append(Picture(data_uri(categories(winner)), "nearest expert", "colours as above"))
    for name, layers in model.network.maps(*window).items():
        titles = [name] if layers.shape[1] == 1 else [f"{name}: {expert}" for expert in model.expert_names]
        low, high = float(layers.min()), float(layers.max())
        for title, layer in zip(titles, layers[0].float().cpu().numpy(), strict=True):
            limits = f"{layer.min():.2f} to {layer.max():.2f}"
            pictures.append(Picture(data_uri(coloured(layer, low, high)), title, limits))
    return {"title": f"{cut.case.name}, rows {y} to {y + rows}, columns {x} to {x + cols} of LR", "pictures": pictures}


def _around(start: int, length: int) -> tuple[int, int]:
    size = min(MAP_LR_PX, length)
    return max(0, min(start - size // 4, length - size)), size


def _wins(gallery: Gallery) -> dict[str, Any]:
    means = {name: float(np.mean(values)) for name, values in gallery.wins.items()}
    return {"shares": means, "chart": charts.shares(means)}


def _costs(scores: Scores) -> list[tuple[str, str]]:
    names = {"inputs": "reading the store, or running the experts", FUSION: "fusion"}
    costs = [(f"{name}, seconds an image", f"{np.mean(scores.seconds[part]):.2f}") for part, name in names.items()]
    return [*costs, ("most memory held, MiB", f"{max(scores.peak_mib):.0f}")]


def _experts(model: Model) -> list[dict[str, str]]:
    rows = []
    for name, entry in model.fusion.expert_entries.items():
        identity = entry.identity
        rows.append(
            {
                "name": name,
                "architecture": str(identity.get("architecture", "")),
                "weights": str(identity.get("weights_sha256") or "random")[:12],
                "channels": str(model.fusion.channels[name]),
                "precision": str(identity.get("precision", "")),
            }
        )
    return rows
