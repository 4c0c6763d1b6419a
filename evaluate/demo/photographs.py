"""The demo's photographs: those in colour that scikit-image carries in its wheel."""

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

# the two halves of the stereo pair show one scene: they stay on one side of the split
TRAINING = ("astronaut", "coffee", "motorcycle_left", "motorcycle_right", "retina")
VALIDATION = ("immunohistochemistry",)
HELD_OUT = ("chelsea", "hubble_deep_field", "rocket")


def photograph(name: str) -> np.ndarray:
    """The photograph as (H, W, 3) uint8, cut at the bottom and right to multiples of 4."""
    if name.startswith("motorcycle"):
        image = skimage.data.stereo_motorcycle()[name == "motorcycle_right"]
    else:
        image = getattr(skimage.data, name)()
    height, width = (n - n % 4 for n in image.shape[:2])
    return np.ascontiguousarray(image[:height, :width])


def write_photographs(folder: Path) -> dict[str, Path]:
    """Writes the HR photographs as PNG; those that are there already stay.

    returns  "training" (with the photograph that checkpoints are chosen by) and "held_out" -> folder
    """
    names = {"training": TRAINING + VALIDATION, "held_out": HELD_OUT}
    for split, members in names.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for path in (folder / split / f"{name}.png" for name in members):
            if not path.exists():
                temporary = path.with_suffix(".tmp")
                Image.fromarray(photograph(path.stem)).save(temporary, format="PNG")
                temporary.replace(path)
    return {split: folder / split for split in names}
