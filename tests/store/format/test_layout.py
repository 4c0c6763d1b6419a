import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.strategies import data, integers, sampled_from, tuples

from championship_sr.store.containers.chunks import chunks_of, default_chunk, grid, padded_bytes, parsed_chunk
from championship_sr.store.format.layout import array_key, checked_name, shard_number, shard_stem
from championship_sr.store.format.variants import VARIANTS, inverse, transform, variant_size, window_before

sizes = tuples(integers(1, 9), integers(1, 9))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_numpys_flip_and_rotation(variant):
    image = np.arange(3 * 5 * 2).reshape(3, 5, 2)
    expected = np.fliplr(image) if variant.startswith("mirror") else image
    turns = int(variant.partition("rot")[2] or 0) // 90
    assert (transform(image, variant) == np.rot90(expected, turns)).all()


@given(sizes, sampled_from(VARIANTS))
def test_the_inverse_undoes_a_variant(size, variant):
    image = np.arange(size[0] * size[1]).reshape(size)
    assert transform(image, variant).shape == variant_size(size, variant)
    assert (transform(transform(image, variant), inverse(variant)) == image).all()


@given(sizes, sampled_from(VARIANTS))
def test_torch_and_numpy_agree_on_any_axes(size, variant):
    image = np.arange(2 * size[0] * size[1]).reshape(2, *size)
    tensor = transform(torch.from_numpy(image), variant, axes=(1, 2))
    assert (tensor.numpy() == transform(image, variant, axes=(1, 2))).all()


@given(sizes, sampled_from(VARIANTS), data())
def test_a_window_of_a_variant_comes_from_one_window_of_the_image(size, variant, data):
    image = np.arange(size[0] * size[1]).reshape(size)
    turned = transform(image, variant)
    y, x = (data.draw(integers(0, side - 1)) for side in turned.shape)
    rows, cols = data.draw(integers(1, turned.shape[0] - y)), data.draw(integers(1, turned.shape[1] - x))
    a, b, height, width = window_before((y, x, rows, cols), variant, size)
    before = transform(image[a : a + height, b : b + width], variant)
    assert (before == turned[y : y + rows, x : x + cols]).all()


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="'rot45': expected one of identity"):
        transform(np.zeros((2, 2)), "rot45")


@given(sizes, integers(1, 4), integers(1, 4))
def test_chunks_hold_every_value_once_and_zeros_beside(size, rows, cols):
    array = np.arange(1, size[0] * size[1] * 2 + 1).reshape(*size, 2)
    chunk = (rows, cols, 2)
    pieces = list(chunks_of(array, chunk))
    counts = grid(array.shape, chunk)
    assert len(pieces) == counts[0] * counts[1]
    joined = np.block([[[pieces[i * counts[1] + j]] for j in range(counts[1])] for i in range(counts[0])])
    assert (joined[: size[0], : size[1]] == array).all()
    assert joined.sum() == array.sum()
    assert padded_bytes(array.shape, chunk, 8) == sum(piece.nbytes for piece in pieces)


def test_images_lie_in_whole_columns_and_features_in_whole_rows():
    assert default_chunk((500, 400, 3), False, "zarr") == (500, 32, 3)
    assert default_chunk((500, 400, 180), False, "zarr")[1:] == (400, 180)
    assert default_chunk((500, 400, 180), False, "hdf5") is None


def test_a_chunk_is_never_larger_than_its_array():
    assert parsed_chunk("tiles:64x64", (10, 100, 3), False, "zarr") == (10, 64, 3)
    with pytest.raises(ValueError, match="expected default, rows or tiles:ROWSxCOLUMNS"):
        parsed_chunk("tiles:0x4", (10, 100, 3), False, "zarr")


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".x", "a@b", "a b"])
def test_a_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(ValueError, match="image id"):
        checked_name(name, "image id")


@given(integers(0, 2_000_000))
def test_a_shards_number_is_read_back_from_its_name(shard):
    assert shard_number(shard_stem(shard) + ".json") == shard


def test_names_of_arrays():
    assert array_key("0001", "sr") == "0001/sr"
    assert array_key("0001", "sr", "mirror") == "0001/sr@mirror"
    assert shard_number("basis.safetensors") is None
