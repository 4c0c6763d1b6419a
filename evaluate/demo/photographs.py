"""The demo's photographs: those that packages carry in their wheels, so that nothing is downloaded."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pywt.data
import skimage.data
from PIL import Image

from championship_sr.store.errors import ConfigError

# Each photograph shows a scene of its own, but for the two halves of the stereo pair, which stay on one side of the
# split. Grey photographs are trained on too: three equal channels.
# licences: docs/evaluation.md#the-demos-photographs
TRAINING = (
    "ascent",
    "astronaut",
    "brick",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "motorcycle_left",
    "motorcycle_right",
    "retina",
    "text",
)
VALIDATION = ("camera",)
HELD_OUT = ("chelsea", "china", "coffee", "flower", "rocket")

MADE_WITH = {"scikit-image": "0.26.0", "scikit-learn": "1.9.1", "PyWavelets": "1.9.0"}
STEREO = ("motorcycle_left", "motorcycle_right")
MISSING = (AttributeError, ImportError, OSError, ValueError)  # what the packages raise if they lack a photograph


def photograph(name: str) -> np.ndarray:
    """The photograph as (H, W, 3) uint8, cut at the bottom and right to multiples of 4.

    raises  ConfigError if the package that carries it does not have it
    """
    package, read = _source(name)
    try:
        image = np.asarray(read(), dtype=np.uint8)
    except MISSING as error:
        raise ConfigError(
            f"demo: the installed {package} does not contain the photograph {name} ({type(error).__name__}: {error}). "
            f"Install the version the demo was made with: pip install '{package}=={MADE_WITH[package]}'"
        ) from error
    height, width = (n - n % 4 for n in image.shape[:2])
    colour = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    return np.ascontiguousarray(colour[:height, :width])


def _source(name: str) -> tuple[str, Callable[[], np.ndarray]]:
    """The package that carries the photograph, and the function of its public interface that reads it."""
    if name in ("china", "flower"):
        return "scikit-learn", lambda: _sample_image(name)
    if name == "ascent":
        return "PyWavelets", lambda: pywt.data.ascent()
    if name in STEREO:
        return "scikit-image", lambda: skimage.data.stereo_motorcycle()[STEREO.index(name)]
    return "scikit-image", lambda: getattr(skimage.data, name)()


def _sample_image(name: str) -> np.ndarray:
    from sklearn.datasets import load_sample_image  # takes a second to import, and only the demo needs it

    return load_sample_image(f"{name}.jpg")


def write_photographs(folder: Path) -> dict[str, Path]:
    """Writes the HR photographs as PNG; existing ones stay, and any others are removed.

    returns  "training" (with the photograph that checkpoints are chosen by) and "held_out" -> folder
    """
    names = {"training": TRAINING + VALIDATION, "held_out": HELD_OUT}
    for split, members in names.items():
        _fill(folder / split, {name: folder / split / f"{name}.png" for name in members})
    return {split: folder / split for split in names}


def _fill(folder: Path, paths: Mapping[str, Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # an earlier version of the demo may have trained on what is held out now
    for path in set(folder.glob("*.png")) - set(paths.values()):
        path.unlink()
    for name, path in paths.items():
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            Image.fromarray(photograph(name)).save(temporary, format="PNG")
            temporary.replace(path)
