import hashlib

import numpy as np
from PIL import Image

from evaluate.photographs import HELD_OUT, TRAINING, VALIDATION, photograph, write_photographs
from extract.bicubic import downscale


def test_the_photographs_lr_is_the_one_that_every_figure_was_made_with():
    digest = hashlib.sha256()
    for name in TRAINING + VALIDATION + HELD_OUT:
        digest.update(downscale(photograph(name), 4).tobytes())
    assert digest.hexdigest()[:16] == "2fade23f188b99a3"


def test_no_photograph_is_on_two_sides_of_the_split():
    names = TRAINING + VALIDATION + HELD_OUT
    assert len(set(names)) == len(names) == 9


def test_photographs_are_written_whole_and_kept(tmp_path):
    splits = write_photographs(tmp_path)
    kept = tmp_path / "chelsea.png"
    before = kept.stat().st_mtime_ns
    assert write_photographs(tmp_path) == splits
    assert kept.stat().st_mtime_ns == before
    assert np.array_equal(np.asarray(Image.open(kept)), photograph("chelsea"))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".png"] * 9
