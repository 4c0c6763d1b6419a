import pytest
import torch
from hypothesis import given
from hypothesis.strategies import integers
from torch import nn

from championship_sr.extract.config import load_expert_config
from championship_sr.extract.experts.expert import LoadedExpert
from championship_sr.extract.experts.networks import Network
from championship_sr.extract.experts.tiling import Tiling, run_tiled, spans


def expert(model: nn.Module, multiple_px: int = 1) -> LoadedExpert:
    config = load_expert_config({"name": "e", "weights": "none", "tap": "body"})
    network = Network(model.eval(), model, multiple_px, multiple_px, 1, "Test", {}, None)
    return LoadedExpert(config, network, torch.device("cpu"), 2)


class Convolutions(nn.Module):
    """Sees `reach` pixels in each direction."""

    def __init__(self, reach: int):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(reach)))
        self.up = nn.Sequential(nn.Conv2d(4, 12, 1), nn.PixelShuffle(2))

    def forward(self, x):
        return self.up(self.body(x))


class Windows(nn.Module):
    """Every pixel becomes its window's mean: the result depends on where the windows lie."""

    def __init__(self, size: int):
        super().__init__()
        self.body = nn.AvgPool2d(size)
        self.size = size

    def forward(self, x):
        return self.body(x).repeat_interleave(2 * self.size, 2).repeat_interleave(2 * self.size, 3)


@given(integers(1, 700), integers(8, 300), integers(0, 40), integers(1, 64))
def test_kept_parts_cover_every_pixel_once_and_lie_inside_the_halo(length, tile_px, halo_px, multiple_px):
    tiles = spans(length, tile_px, halo_px, multiple_px)
    assert [i for t in tiles for i in range(t.keep_from, t.keep_to)] == list(range(length))
    if len(tiles) == 1:
        return
    assert len({t.size for t in tiles[:-1]}) == 1 and 0 <= tiles[0].size - tiles[-1].size < multiple_px
    assert all(t.start % multiple_px == 0 and t.size % multiple_px == 0 for t in tiles[:-1])
    assert tiles[-1].start % multiple_px == 0 and tiles[-1].start + tiles[-1].size == length
    assert all(t.keep_from - t.start >= halo_px for t in tiles[1:])
    assert all(t.start + t.size - t.keep_to >= halo_px for t in tiles[:-1])


@given(integers(65, 700), integers(0, 16))
def test_tiles_are_no_larger_and_no_more_than_they_must_be(length, halo_px):
    tiles = spans(length, 64, halo_px)
    if len(tiles) > 1:
        assert tiles[0].size <= 64
        assert (len(tiles) - 1) * (64 - 2 * halo_px) + 2 * halo_px < length


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_tiles_of_a_convolutional_network_equal_the_whole_where_the_halo_covers_its_reach(batch):
    lr = torch.rand(1, 3, 50, 37)
    with expert(Convolutions(reach=4)) as loaded:
        whole_sr, whole = loaded(lr)
        sr, features = run_tiled(loaded, lr, 20, 4, batch)
    assert torch.allclose(sr, whole_sr, atol=1e-6)
    assert torch.allclose(features["features"], whole["features"], atol=1e-6)


def test_too_small_a_halo_is_seen_in_the_result():
    lr = torch.rand(1, 3, 50, 37)
    with expert(Convolutions(reach=4)) as loaded:
        assert not torch.allclose(run_tiled(loaded, lr, 20, 1)[0], loaded(lr)[0], atol=1e-4)


@pytest.mark.parametrize("batch", [1, 4])
def test_windows_lie_in_tiles_where_they_lie_in_the_whole(batch):
    lr = torch.rand(1, 3, 53, 37)
    with expert(Windows(8), multiple_px=8) as loaded:
        assert run_tiled(loaded, lr, 24, 3, batch)[0].equal(loaded(lr)[0])


def test_only_tiles_of_one_shape_are_put_into_a_batch():
    seen = []
    with expert(Windows(8), multiple_px=8) as loaded:
        loaded._forward = lambda x: seen.append(tuple(x.shape)) or loaded._network.model(x)
        run_tiled(loaded, torch.rand(1, 3, 24, 53), 24, 4, batch=2)
    assert seen == [(2, 3, 24, 24), (1, 3, 24, 24)]


def test_an_image_that_fits_runs_whole():
    lr = torch.rand(1, 3, 20, 12)
    with expert(Convolutions(reach=1)) as loaded:
        seen = []
        loaded._forward = lambda x: seen.append(x.shape) or loaded._network.model(x)
        run_tiled(loaded, lr, 20, 4)
    assert seen == [(1, 3, 20, 12)]


def test_halving_takes_the_batch_first_then_the_tile_and_ends():
    tiling, seen = Tiling(512, 32, 4), []
    while tiling is not None:
        seen.append((tiling.batch_size, tiling.tile_px))
        tiling = tiling.halved()
    assert seen == [(4, 512), (2, 512), (1, 512), (1, 256), (1, 128)]
