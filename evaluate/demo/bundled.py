"""The fusion that is installed with the package, where there is one."""

from importlib import resources
from pathlib import Path

from championship_sr.train.run.folder import CONFIG_FILE

FOLDER = Path(str(resources.files("championship_sr.evaluate").joinpath("weights")))
TRAINED_ON = (
    "bundled fusion: trained on the photographs that the bundled experts were trained on (docs/bundled-experts.md); "
    "fusion: on those of the demo alone. None of them is scored here"
)


def bundled_run() -> Path | None:
    """The folder of the bundled fusion, as `load` takes it; None where none is installed."""
    return FOLDER if (FOLDER / CONFIG_FILE).exists() else None
