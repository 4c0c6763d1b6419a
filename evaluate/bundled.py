"""The bundled fusion: an exported run in the package's data, for users without a run of their own."""

from importlib import resources
from pathlib import Path

from championship_sr.store.disk.small_files import read_small
from championship_sr.store.errors import ConfigError
from championship_sr.train.records.checkpoint import LoadedFusion
from championship_sr.train.records.folder import CONFIG_FILE

CARD = "README.md"  # the model card of an export
TRAINED_ON = "Trained on: "  # the beginning of the card's line that says what it was trained on


def installed_run() -> Path | None:
    """The folder of the bundled fusion; None if the installation has none."""
    folder = Path(str(resources.files("championship_sr.evaluate.weights")))
    return folder if (folder / CONFIG_FILE).exists() else None


def bundled_run() -> Path:
    """The folder of the bundled fusion.

    raises  ConfigError if the installation has none
    """
    folder = installed_run()
    if folder is None:
        raise ConfigError(
            "evaluate/weights: this installation has no bundled fusion; give a run of your own: "
            "upscale --run DIR, load(DIR)"
        )
    return folder


def trained_on(folder: Path) -> str:
    """What its model card says about its training images; empty if it says nothing."""
    card = read_small(folder / CARD).decode() if (folder / CARD).exists() else ""
    told = next((line for line in card.splitlines() if line.startswith(TRAINED_ON)), "")
    return told.removeprefix(TRAINED_ON)


def sentence(fusion: LoadedFusion, folder: Path) -> str:
    """What the bundled fusion is, in one line."""
    parameters = sum(parameter.numel() for parameter in fusion.network.parameters())
    text = (
        f"the bundled fusion: profile {fusion.config.fusion.profile}, {parameters:,} parameters, x{fusion.scale}, "
        f"of {', '.join(fusion.experts)}"
    )
    return f"{text}; trained on {told}" if (told := trained_on(folder)) else text
