"""The fusion that is installed with the package, where there is one."""

from pathlib import Path

from championship_sr import evaluate
from championship_sr.train.run.folder import CONFIG_FILE

FOLDER = Path(evaluate.__path__[0], "weights")
TRAINED_ON = (
    "bundled fusion: trained on the photographs that the bundled experts were trained on (docs/bundled-experts.md); "
    "fusion: on those of the demo alone. None of them is scored here"
)


def bundled_run() -> Path | None:
    """The folder of the bundled fusion, as `load` takes it; None where none is installed."""
    return FOLDER if (FOLDER / CONFIG_FILE).exists() else None
