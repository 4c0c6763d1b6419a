import hashlib

import numpy as np
from PIL import Image

from championship_sr.evaluate.demo.photographs import HELD_OUT, TRAINING, VALIDATION, photograph, write_photographs
from championship_sr.extract.images.bicubic import downscale


def test_the_photographs_lr_is_the_one_that_every_figure_was_made_with():
    digest = hashlib.sha256()
    for name in TRAINING + VALIDATION + HELD_OUT:
        digest.update(downscale(photograph(name), 4).tobytes())
    assert digest.hexdigest()[:16] == "445afc5a918c9901"


def test_no_photograph_is_on_two_sides_of_the_split():
    names = TRAINING + VALIDATION + HELD_OUT
    assert len(set(names)) == len(names) == 9


def test_photographs_are_written_whole_and_kept(tmp_path):
    folders = write_photographs(tmp_path)
    kept = folders["held_out"] / "chelsea.png"
    before = kept.stat().st_mtime_ns
    assert write_photographs(tmp_path) == folders
    assert kept.stat().st_mtime_ns == before
    assert np.array_equal(np.asarray(Image.open(kept)), photograph("chelsea"))
    files = {split: {path.name for path in folder.iterdir()} for split, folder in folders.items()}
    assert files["training"] == {f"{name}.png" for name in TRAINING + VALIDATION}
    assert files["held_out"] == {f"{name}.png" for name in HELD_OUT}
