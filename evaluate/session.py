"""One call of the command `evaluate`: which images, which runs, and the files it writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.model import Model, images_entry, load
from championship_sr.evaluate.report.gallery import Gallery
from championship_sr.evaluate.report.report import REPORT, write_report, write_scores
from championship_sr.evaluate.scoring.benchmarks import find_benchmarks
from championship_sr.evaluate.scoring.complementarity_table import text
from championship_sr.evaluate.scoring.evaluation import ScoringOptions, evaluate_pairs, evaluate_store
from championship_sr.evaluate.scoring.scores import Scores, benchmarks_table
from championship_sr.evaluate.stores import name_of, opened_store
from championship_sr.extract.config import ExpertConfig, ImagesConfig, expert_configs
from championship_sr.extract.device import pick_device
from championship_sr.extract.experts.expert import LoadedExpert, load_expert
from championship_sr.extract.images.pairs import Pair, find_pairs, joined
from championship_sr.extract.images.results import Asked, ResultImages, asked_of, result_images
from championship_sr.store.disk.files import write_atomic
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.shards.reader import Store

SCALE = 4  # of files, if neither a run nor an expert states it


@dataclass(frozen=True)
class Scored:
    """The scores of one set of images, and what its report shows."""

    scores: Scores
    gallery: Gallery | None


@dataclass(frozen=True)
class Results:
    """Everything that one call scored: the name of a set -> its scores; and what could not be read."""

    sets: dict[str, Scored]
    model: Model | None
    left_out: tuple[str, ...]

    def table(self) -> str:
        """The table of the one set, or one over all sets; without a run, what the experts are worth together too."""
        scores = {name: scored.scores for name, scored in self.sets.items()}
        table = next(iter(scores.values())).table() if len(scores) == 1 else benchmarks_table(scores)
        if self.model:
            return table
        named = {f"{name}: " if len(scores) > 1 else "": one.together for name, one in scores.items()}
        sentences = "\n".join(name + one.sentence for name, one in named.items())
        return "\n\n".join([sentences, table, *(name + text(one) for name, one in named.items())])

    def check(self) -> None:
        """raises  StoreError naming the images that could not be read, once the others are done"""
        if self.left_out:
            raise StoreError(f"scored, but skipped what does not fit: {joined(self.left_out)}")


def evaluate_sets(
    *,
    run: Path | None = None,
    store: Path | str | None = None,
    images: Sequence[str] = (),
    hr: Sequence[Path] = (),
    lr: Sequence[Path] = (),
    benchmarks: Path | None = None,
    experts: Sequence[str] = (),
    expert_images: Mapping[str, Path] | None = None,
    options: ScoringOptions,
    config: EvaluateConfig,
    with_gallery: bool,
    scale: int | None = None,
    trusted: Sequence[str] = (),
) -> Results:
    """Scores a store, folders of image files, or every benchmark in a folder.

    store         its folder, or the URL of one in object storage
    experts       without a run: names of a store's experts, all if none is given; for files, names or YAML files.
                  With a run: entries of networks that only see LR, scored beside its fusion
    expert_images expert -> the folder of its images, for experts that are not run on files
    with_gallery  collect the pictures of a report
    scale         of image files; None: that of the run, or what the experts say
    trusted       modules that the run and the store may name as their experts' networks
    """
    if sum(map(bool, (store, hr, benchmarks))) != 1:
        raise ConfigError("evaluate: give one of --store, --hr and --benchmarks")
    if store and expert_images:
        raise ConfigError("evaluate: --expert-images is for image files; a store has its experts' images")
    if store and scale:
        raise ConfigError("evaluate: --scale is for image files; a store has its own scale")
    model = load(run, config=config, images=expert_images, trusted=trusted) if run else None
    if model and experts:
        entries = expert_configs(tuple(experts))
        options = replace(options, singles=tuple(_loaded(entries, model.scale, config)))
    if store:
        names = model.expert_names if model else tuple(experts) or None
        with opened_store(store, names, config) as opened:
            return _of_store(opened, model, images, options, config, with_gallery, trusted)
    entries = [] if model else _named_entries(experts, expert_images or {})
    run_here = model.experts if model else _loaded(entries, scale, config)
    scale = _scale_of(model, run_here, scale)
    left_out: list[str] = []
    sets = {}
    for name, pairs in _file_sets(hr, lr, benchmarks, scale, left_out).items():
        if not pairs:
            other = "" if model else "; --scale chooses another"
            raise StoreError(f"{name}: no image can be scored at x{scale}: {joined(left_out)}{other}")
        gallery, seen = _gallery(scale, options, config, with_gallery)
        asked = asked_of(pairs)
        given = model.results(asked, name) if model else _results_of(entries, asked, scale, name)
        answering = {expert.name: expert for expert in (*run_here, *given)}
        ordered = [answering[expert] for expert in (model.expert_names if model else [e.name for e in entries])]
        scores = evaluate_pairs(model, pairs, experts=ordered, options=seen, config=config)
        left_out += scores.left_out
        sets[name] = Scored(scores, gallery)
    return Results(sets, model, tuple(left_out))


def _of_store(
    store: Store,
    model: Model | None,
    images: Sequence[str],
    options: ScoringOptions,
    config: EvaluateConfig,
    with_gallery: bool,
    trusted: Sequence[str],
) -> Results:
    gallery, seen = _gallery(store.scale, options, config, with_gallery)
    scores = evaluate_store(model, store, images or None, options=seen, config=config, trusted=trusted)
    return Results({name_of(store).removesuffix(".store"): Scored(scores, gallery)}, model, ())


def _gallery(
    scale: int, options: ScoringOptions, config: EvaluateConfig, with_gallery: bool
) -> tuple[Gallery | None, ScoringOptions]:
    gallery = Gallery(scale, config.border(scale)) if with_gallery else None
    return gallery, replace(options, observe=gallery)


def _file_sets(
    hr: Sequence[Path], lr: Sequence[Path], benchmarks: Path | None, scale: int, left_out: list[str]
) -> dict[str, list[Pair]]:
    if benchmarks:
        return find_benchmarks(benchmarks, scale, left_out)
    data = ImagesConfig(hr=tuple(map(str, hr)), lr=tuple(map(str, lr)))
    return {hr[0].resolve().name: find_pairs(data, scale, left_out)}


def _named_entries(names: Sequence[str], images: Mapping[str, Path]) -> list[ExpertConfig]:
    if not names and not images:
        raise ConfigError(
            "evaluate: image files need --run, or the experts to score as --expert NAME or --expert-images NAME=DIR"
        )
    return expert_configs((*names, *({"name": name, "images": str(folder)} for name, folder in images.items())))


def _scale_of(model: Model | None, experts: Sequence[LoadedExpert], asked: int | None) -> int:
    """The scale of the files: that of the run, or of the experts that are run, or the one that is asked for.

    raises  ConfigError if these are several
    """
    said = {"the run": model.scale} if model else {expert.name: expert.scale for expert in experts}
    asked_for = {"--scale": asked} if asked else {}
    several = asked_for | said
    if len(set(several.values())) > 1:
        listed = ", ".join(f"{name} is for x{scale}" for name, scale in several.items())
        raise ConfigError(f"evaluate: one call scores images of one scale: {listed}")
    return next(iter(several.values()), SCALE)


def _loaded(entries: Sequence[ExpertConfig], scale: int | None, config: EvaluateConfig) -> list[LoadedExpert]:
    device = pick_device(config.device)
    return [load_expert(entry, device, scale) for entry in entries if not entry.images]


def _results_of(
    entries: Sequence[ExpertConfig], asked: Sequence[Asked], scale: int, subfolder: str
) -> list[ResultImages]:
    folders = {entry.name: Path(entry.images) for entry in entries if entry.images}
    return [result_images(images_entry(name, folder, subfolder), asked, scale) for name, folder in folders.items()]


def write_results(folder: Path, results: Results) -> list[Path]:
    """Writes report, CSV, JSON and Markdown of each set, and one Markdown table over all; returns their paths."""
    paths: list[Path] = []
    several = len(results.sets) > 1
    for name, scored in results.sets.items():
        paths += write_scores(folder, name if several else "scores", scored.scores)
        if scored.gallery:
            report = folder / (f"{name}.html" if several else REPORT)
            paths.append(write_report(report, scored.scores, scored.gallery, results.model, name))
    if several:
        table = benchmarks_table({name: scored.scores for name, scored in results.sets.items()}, "markdown")
        write_atomic(folder / "benchmarks.md", (table + "\n").encode())
        paths.append(folder / "benchmarks.md")
    return paths
