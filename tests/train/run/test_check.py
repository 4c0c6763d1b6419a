"""A store that was damaged after it was written is not trained on, if the run is told to look."""

import pytest
import torch

from championship_sr.store.errors import StoreError
from championship_sr.train.processes import World
from championship_sr.train.run.sources import make_loader, open_source


def flip_a_bit(root) -> str:
    """In the first expert's features of every image: where it falls, no shape or range tells of it."""
    for path in root.glob("experts/one/*/*/features/c.0.0.0"):
        content = bytearray(path.read_bytes())
        content[50] ^= 1
        path.write_bytes(content)


def batch(root, config):
    world = World(torch.device("cpu"))
    return make_loader(open_source(root, config, world), [0, 1, 2], config, world).batch(0)


def test_a_flipped_bit_is_found_before_the_first_window(make_learnable, make_config, tmp_path):
    root = make_learnable(tmp_path / "store")
    assert batch(root, make_config(data={"check": True})) is not None
    flip_a_bit(root)
    with pytest.raises(StoreError, match=r"one: photo\d+/features is damaged.*sha256.*store verify --repair"):
        batch(root, make_config(data={"check": True}))
