"""The fusion that comes with the package: an exported run among its data, for those who have none of their own."""

from importlib import resources
from pathlib import Path

from championship_sr.store.disk.small_files import read_small
from championship_sr.store.errors import ConfigError
from championship_sr.train.run.checkpoint import LoadedFusion
from championship_sr.train.run.folder import CONFIG_FILE

CARD = "README.md"  # the model card of an export
TRAINED_ON = "Trained on: "  # how the card's line begins that says so


def bundled_run() -> Path:
    """The folder of the bundled fusion.

    raises  ConfigError where the installation has none
    """
    folder = Path(str(resources.files("championship_sr.evaluate.weights")))
    if not (folder / CONFIG_FILE).exists():
        raise ConfigError(
            f"{folder}: this installation has no bundled fusion; give a run of your own: upscale --run DIR, load(DIR)"
        )
    return folder


def sentence(fusion: LoadedFusion, folder: Path) -> str:
    """What the bundled fusion is, in one line."""
    parameters = sum(parameter.numel() for parameter in fusion.network.parameters())
    card = read_small(folder / CARD).decode() if (folder / CARD).exists() else ""
    told = next((line for line in card.splitlines() if line.startswith(TRAINED_ON)), "")
    text = (
        f"the bundled fusion: profile {fusion.config.fusion.profile}, {parameters:,} parameters, x{fusion.scale}, "
        f"of {', '.join(fusion.experts)}"
    )
    return f"{text}; trained on {told.removeprefix(TRAINED_ON)}" if told else text
