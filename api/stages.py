"""The three stages as functions for notebooks and scripts, like the commands of the same names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.scoring.evaluation import ScoringOptions
from championship_sr.evaluate.session import Results, evaluate_sets, write_results
from championship_sr.extract.config import ExtractConfig
from championship_sr.extract.run import extraction
from championship_sr.store.config import build, load_section
from championship_sr.store.errors import ConfigError
from championship_sr.store.remote.bucket import store_place
from championship_sr.train.commands import read_settings
from championship_sr.train.config import TrainConfig
from championship_sr.train.run import loop

Values = Mapping[str, Any] | str | Path | None


def extract(config: Values, experts: Sequence[str] = (), **options: Any) -> extraction.Summary:
    """Runs the frozen experts once over all images and fills the feature store; finished shards are kept.

    config   the values of the section `extract` (docs/experts.md), or a YAML file that has it
    experts  only these experts of the configuration; () for all
    options  `rebuild`, `part`, `limit`: see extract.run.extraction.extract
    returns  what was made: images, shards, and for each expert its shards and seconds
    raises   ConfigError, StoreError, WeightsError
    """
    return extraction.extract(_section(ExtractConfig, config, "extract"), experts, **options)


def train(
    store: str | Path,
    out: str | Path,
    config: Values = None,
    *,
    resume: bool = True,
    init: str | Path | None = None,
) -> Path:
    """Trains a fusion from a store and returns the run's folder, `out`.

    config  the values of the section `train` (docs/training.md), or a YAML file that has it; None: the profile `swift`
    resume  continue the run in `out`; it ends like one that was never interrupted
    init    a run or an export with whose weights a new run begins; the new run may have other experts
    raises  ConfigError, StoreError, WeightsError; KeyboardInterrupt once a checkpoint has been written
    """
    begin = Path(init) if init else None
    settings = read_settings(None, (), init=begin) if config is None else _section(TrainConfig, config, "train")
    return loop.train(settings, store, Path(out), resume=resume, init=begin)


def evaluate(
    run: str | Path | None = None,
    *,
    store: str | Path | None = None,
    hr: Sequence[str | Path] | str | Path = (),
    lr: Sequence[str | Path] | str | Path = (),
    benchmarks: str | Path | None = None,
    experts: Sequence[str] = (),
    scale: int | None = None,
    self_ensemble: bool | None = None,
    report: str | Path | None = None,
    config: Values = None,
) -> Results:
    """The scores of a run beside every expert, their mean, fitted weights and oracles, on the same images.

    run            a run's folder or an export; None: only the experts
    store          a feature store whose images are scored, a folder or a URL; or
    hr, lr         folders of image files; without lr, LR images are made by MATLAB's bicubic; or
    benchmarks     a folder of benchmarks (Set5, Set14, ...)
    experts        for image files without a run: names or YAML files of the experts
    scale          of image files; None: that of the run or the experts, otherwise 4
    self_ensemble  True: also the x8 self-ensemble of the fusion; None: only that of the best expert
    report         a folder for the report, CSV, JSON and Markdown
    returns        `.sets`: name of the set -> its scores; `.table()`: the printed table
    raises         ConfigError, StoreError, WeightsError
    """
    results = evaluate_sets(
        run=Path(run) if run else None,
        store=store_place(store) if store else None,
        images=(),
        hr=_paths(hr),
        lr=_paths(lr),
        benchmarks=Path(benchmarks) if benchmarks else None,
        experts=experts,
        scale=scale,
        options=ScoringOptions(self_ensemble),
        config=_section(EvaluateConfig, config, "evaluate"),
        with_gallery=report is not None,
    )
    if report is not None:
        write_results(Path(report), results)
    return results


def _section(cls: type, values: Values, section: str) -> Any:
    if values is None or isinstance(values, (str, Path)):
        return load_section(cls, None if values is None else Path(values), section)
    if not isinstance(values, Mapping):
        raise ConfigError(f"config: expected a mapping or the path of a YAML file, found {type(values).__name__}")
    return build(cls, values, "config", section)


def _paths(given: Sequence[str | Path] | str | Path) -> tuple[Path, ...]:
    return (Path(given),) if isinstance(given, (str, Path)) else tuple(map(Path, given))
