"""One HTML file that shows what a run is worth; it opens without a network and without any other file."""

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import resources
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from championship_sr.evaluate.methods import FUSION, held_up, row
from championship_sr.evaluate.metrics import METRICS
from championship_sr.evaluate.model import Model
from championship_sr.evaluate.report import charts, headline, together
from championship_sr.evaluate.report.colours import CATEGORIES, INFERNO, VIRIDIS
from championship_sr.evaluate.report.gallery import Gallery, Window
from championship_sr.evaluate.report.headline import counted
from championship_sr.evaluate.report.regions import HR, Region
from championship_sr.evaluate.scoring.scores import SEEN, Scores
from championship_sr.store.config import dump_yaml, to_plain
from championship_sr.store.disk.files import write_atomic
from championship_sr.train.records.journal import read_metrics

log = logging.getLogger(__name__)

REPORT = "report.html"
PAGE = "page"  # the folder of the page's templates, style sheets and scripts
STYLES = ("page.css", "compare/compare.css")
SCRIPTS = ("compare/pixels.js", "compare/view.js", "compare/stage.js", "compare/compare.js")
LEAST_BINNED = 8  # images; a histogram of fewer is meaningless
MANY_EXPERTS = 5  # more are counted in a title, not named


def write_scores(folder: Path, stem: str, scores: Scores) -> list[Path]:
    """Writes the scores as CSV, JSON and Markdown, and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"csv": scores.csv(), "json": json.dumps(scores.to_plain(), indent=1), "md": scores.markdown() + "\n"}
    for ending, text in texts.items():
        write_atomic(folder / f"{stem}.{ending}", text.encode())
    return [folder / f"{stem}.{ending}" for ending in texts]


def write_report(path: Path, scores: Scores, gallery: Gallery, model: Model | None, data: str) -> Path:
    """Writes the report of a run, or of experts alone, and returns its path.

    gallery  the pictures that were collected while `scores` were made
    model    the run; None: there are only the experts
    data     what the scored images are called
    """
    environment = Environment(
        loader=PackageLoader("championship_sr.evaluate.report", PAGE), autoescape=True, undefined=StrictUndefined
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    page = environment.get_template("page.html.j2").render(**_content(scores, gallery, model, data))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page.encode())
    log.info("%s: %.1f MB", path, path.stat().st_size / 1e6)
    return path


def _content(scores: Scores, gallery: Gallery, model: Model | None, data: str) -> dict[str, Any]:
    """What the templates show; each template reads the entries of its own name or heading."""
    return {
        "styles": [_part(name) for name in STYLES],
        "scripts": [_part(name) for name in SCRIPTS],
        "comparison": _comparison(gallery, scores),
        "table": _table(scores),
        "together": together.section(scores.together),
        "wins": _wins(gallery),
        "costs": _costs(scores),
        **(_of_run(scores, model, data) if model else _of_experts(scores, data)),
    }


def _of_run(scores: Scores, model: Model, data: str) -> dict[str, Any]:
    return {
        **_heading(scores, model, data),
        "sentence": headline.sentence(scores),
        "facts": headline.facts(scores),
        "images": _images(scores),
        "curves": _curves(model.root),
        "experts": _experts(model),
        "config": dump_yaml({"train": to_plain(model.fusion.config)}),
    }


def _of_experts(scores: Scores, data: str) -> dict[str, Any]:
    """The same without a run, leaving out everything that is only known of a run."""
    names, number = scores.together.experts, counted(len(scores.images), "image")
    return {
        "title": f"{_named(names)} on {data}",
        "subtitle": f"Experts alone, before any training, on {number} of {data}. Report of {date.today().isoformat()}.",
        "sentence": scores.together.sentence,
        "facts": together.facts(scores.together),
        **{"images": {}, "curves": [], "experts": [], "config": ""},
    }


def _part(name: str) -> str:
    return resources.files("championship_sr.evaluate.report").joinpath(PAGE, name).read_text(encoding="utf-8")


def _heading(scores: Scores, model: Model, data: str) -> dict[str, str]:
    run, step = model.root.resolve().name, model.fusion.checkpoint.step
    return {
        "title": f"Fusion of {_named(model.expert_names)} on {data}",
        "subtitle": f"Run {run}, checkpoint of step {step}, on {counted(len(scores.images), 'image')} "
        f"of {data}. Report of {date.today().isoformat()}.",
    }


def _named(experts: Sequence[str]) -> str:
    return _listed(experts) if len(experts) <= MANY_EXPERTS else f"{len(experts)} experts"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _comparison(gallery: Gallery, scores: Scores) -> dict[str, Any]:
    """What the comparison view starts from: everything but the regions' pictures is in `data`."""
    numbers = {region: number for number, region in enumerate(gallery.regions)}
    right = held_up(scores.methods)
    ours = row(right).title
    lists = {
        "gains": [_window(window, numbers, ours) for window in gallery.gains],
        "losses": [_window(window, numbers, ours) for window in gallery.losses],
        "images": [_whole_image(region, numbers) for region in gallery.images],
    }
    return {
        "lists": lists,
        "regions": [_region(region) for region in numbers],
        "total": gallery.seen,
        "border": gallery.border,
        "ours": ours,
        "data": {
            "left": scores.best_expert,
            "right": right,
            "reference": HR,
            "inferno": INFERNO,
            "viridis": VIRIDIS,
            "experts": [[name, f"#{CATEGORIES[i % len(CATEGORIES)]}"] for i, name in enumerate(gallery.wins)],
        },
    }


def _window(window: Window, numbers: Mapping[Region, int], ours: str) -> dict[str, Any]:
    y, x = window.region.y + window.y, window.region.x + window.x
    return {
        "region": numbers[window.region],
        "place": [window.y, window.x, window.size, window.size],
        "thumbnail": window.thumbnail,
        "title": window.region.image,
        "text": f"{headline.signed(window.decibels, 2)} dB",
        "label": f"{window.region.image}, window at row {y}, column {x}: the {ours} has "
        f"{headline.signed(window.decibels, 2)} dB over {window.best}",
    }


def _whole_image(region: Region, numbers: Mapping[Region, int]) -> dict[str, Any]:
    return {
        "region": numbers[region],
        "place": [0, 0, region.height, region.width],
        "thumbnail": region.thumbnail,
        "title": region.image,
        "text": f"{region.width} \u00d7 {region.height}",
        "label": f"{region.image}, the whole image",
    }


def _region(region: Region) -> dict[str, Any]:
    return {
        "title": region.image,
        "y": region.y,
        "x": region.x,
        "height": region.height,
        "width": region.width,
        "uncounted": region.uncounted,
        "brightest": region.brightest,
        "layers": [vars(layer) for layer in region.layers],
    }


def _table(scores: Scores) -> dict[str, Any]:
    rows = zip(scores.methods, scores.rows(), strict=True)
    return {
        "header": scores.header(),
        "rows": [{"cells": cells, "kind": row(method).kind.replace(" ", "-")} for method, cells in rows],
        "protocol": scores.protocol,
        "gains": _gain_chart(scores) if FUSION in scores.methods else "",
        "notes": (*filter(None, [scores.seen]), *scores.notes),
        "weights": scores.weights,
    }


def _gain_chart(scores: Scores) -> str:
    """The fusion's gain over everything that is possible without it, with intervals."""
    metric = scores.metrics[0]
    others = [method for method in scores.methods if row(method).kind in ("expert", "baseline")]
    gains = {row(method).title: scores.gain(metric, FUSION, method) for method in others}
    intervals = {title: (gain.low, gain.mean, gain.high) for title, gain in gains.items()}
    return charts.intervals(intervals, x_title=f"fusion's gain, {METRICS[metric].title}")


def _images(scores: Scores) -> dict[str, str]:
    """The gain over the best expert, image by image."""
    metric, best = scores.metrics[0], scores.best_expert
    if best is None:
        return {}
    marks = [f" {SEEN}" if use else "" for use in scores.used or ("",) * len(scores.images)]
    names = [image + mark for image, mark in zip(scores.images, marks, strict=True)]
    differences = dict(zip(names, scores.differences(metric, FUSION, best).tolist(), strict=True))
    differences = {image: gain for image, gain in differences.items() if not isnan(gain)}
    unit = f"{METRICS[metric].title} over {row(best).title}"
    values = list(differences.values())
    histogram = charts.histogram(values, x_title=unit) if len(values) >= LEAST_BINNED else ""
    return {
        "best": row(best).title,
        "bars": charts.bars(differences, title=unit),
        "histogram": histogram,
    }


def _curves(run: Path) -> list[tuple[str, str]]:
    """(title, chart) of what the run's log holds."""
    events = read_metrics(run)
    reference: dict[str, Any] = next((event for event in events if event["event"] == "reference"), {"psnr": {}})
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


def _wins(gallery: Gallery) -> dict[str, Any]:
    means = {name: float(np.mean(values)) for name, values in gallery.wins.items()}
    colours = [CATEGORIES[index % len(CATEGORIES)] for index in range(len(means))]
    return {"shares": [(name, share, colour) for (name, share), colour in zip(means.items(), colours, strict=True)]}


def _costs(scores: Scores) -> list[tuple[str, str]]:
    names = {"inputs": "reading the store, or running the experts", FUSION: "fusion"}
    costs = [
        (f"{name}, seconds an image", f"{np.mean(scores.seconds[part]):.2f}")
        for part, name in names.items()
        if part in scores.seconds
    ]
    return [*costs, ("most memory held, MiB", f"{max(scores.peak_mib):.0f}")]


def _experts(model: Model) -> list[dict[str, str]]:
    rows = []
    for name, entry in model.fusion.expert_entries.items():
        identity = entry.identity
        rows.append(
            {
                "name": name,
                "architecture": str(identity.get("architecture", "")),
                "weights": (entry.made_from or "random")[:12],
                "channels": str(model.fusion.channels[name]),
                "precision": str(identity.get("precision", "")),
            }
        )
    return rows
