import numpy as np
import pytest
import torch

from championship_sr.store.codecs import fit_pca, get_codec
from championship_sr.store.format.entries import ArraySpec, Expert, Image
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.shards.encoding import Memory, encode, extremes
from championship_sr.store.shards.writer import write_shard

VALUES = np.random.default_rng(0).standard_normal((70, 90, 20)).astype(np.float32)  # large enough for torch's fast way


@pytest.mark.parametrize("layout", ["channels first", "channels last", "a tile's"])
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "uint8", "int8", "pca4-int8", "pca10-int4"])
def test_the_order_in_memory_decides_nothing(monkeypatch, name, layout):
    monkeypatch.setattr("championship_sr.store.shards.encoding.BAND_VALUES", 30 * VALUES[0].size)
    codec = get_codec(name)
    basis = fit_pca([VALUES], codec.components) if codec.components else {}
    tensor = torch.from_numpy(VALUES)
    if layout == "channels first":
        tensor = tensor.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    if layout == "a tile's":
        tensor = torch.nn.functional.pad(tensor.permute(2, 0, 1), (3, 3, 3, 3))[:, 3:-3, 3:-3].permute(1, 2, 0)
    found, expected = encode(tensor, codec, basis), codec.encode(VALUES, codec.params(VALUES, basis))
    assert found.raw.is_contiguous() if torch.is_tensor(found.raw) else found.raw.flags.c_contiguous
    assert np.array_equal(np.asarray(found.raw), expected)
    assert (float(found.smallest), float(found.largest)) == (VALUES.min(), VALUES.max())


@pytest.mark.parametrize("zeros", [[0.0, -0.0], [-0.0, 0.0]])
@pytest.mark.parametrize("kind", [np.float32, torch.tensor])
def test_a_zero_has_no_sign_in_the_record(zeros, kind):
    values = torch.tensor(zeros) if kind is torch.tensor else np.array(zeros, np.float32)
    assert [str(float(each)) for each in extremes(values)] == ["0.0", "0.0"]


def test_what_is_no_number_shows():
    for values in (VALUES.copy(), torch.from_numpy(VALUES.copy())):
        values[3, 4, 5] = float("nan")
        assert all(np.isnan(float(each)) for each in extremes(values))


def as_the_format_says(values: np.ndarray, name: str) -> np.ndarray:
    """docs/format.md, the table of codecs, in NumPy."""
    largest = np.abs(values).max((0, 1))
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    bits = values.view(np.uint32)
    return {
        "float32": lambda: values,
        "float16": lambda: values.astype(np.float16),
        "bfloat16": lambda: ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16),
        "uint8": lambda: np.rint(np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8),
        "int8": lambda: np.rint(values / scale).clip(-127, 127).astype(np.int8),
    }[name]()


EXTREMES = {
    "random": VALUES,
    "zeros of both signs": np.where(VALUES > 0, np.float32(0), np.float32(-0.0)),
    "the largest of float16": np.sign(VALUES) * np.float32(65504),
    "very small": VALUES * np.float32(1e-30),
    "one channel of zeros, one constant": VALUES * np.eye(1, 20, dtype=np.float32) + np.eye(1, 20, 1, np.float32) * 7,
    "halves": np.rint(VALUES * 4) / np.float32(2),
}


@pytest.mark.parametrize("values", EXTREMES.values(), ids=EXTREMES.keys())
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "uint8", "int8"])
def test_the_bytes_are_those_that_the_format_says_whatever_memory_they_lie_in(monkeypatch, name, values):
    monkeypatch.setattr("championship_sr.store.shards.encoding.BAND_VALUES", 9 * VALUES[0].size)
    codec, memory = get_codec(name), Memory()
    tensor = torch.from_numpy(values).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    before = tensor.clone()
    for part in (slice(None), slice(0, 50), slice(11, 70)):  # the second and third time in used memory
        made = encode(tensor[part], codec, {}, memory=memory)
        if name != "int8" or part == slice(None):  # a part has scales of its own
            assert made.raw.numpy().tobytes() == as_the_format_says(values, name)[part].tobytes()
        memory.give_back(made.piece)
    assert len(memory._free) == 1 and torch.equal(tensor, before)


def test_memory_that_is_in_use_is_not_given_to_another():
    memory = Memory()
    one, other = memory.take(100), memory.take(100)
    memory.give_back(one)
    assert memory.take(60) is one and memory.take(100) is not other
    memory.give_back(other)
    assert memory.take(49) is not other  # less than half of it would be used
    for _ in range(40):
        memory.give_back(np.empty(10, np.uint8))
    assert len(memory._free) == 16


def test_a_writer_encodes_into_what_it_has_written(tmp_path):
    images = [Image(f"i{i}", f"i{i}", (6, 5), f"l{i}", f"h{i}", 0, "file") for i in range(3)]
    manifest = Manifest.create(tmp_path / "s", scale=2, container="zarr", images=images)
    specs = ArraySpec("sr", 3, 2, "float16"), ArraySpec("features", 4, 1, "int8")
    manifest.add_expert(Expert("hat", specs, {"weights_sha256": "w"}))
    with write_shard(manifest, "hat", 0) as out:
        for image in images:
            out.add(image.id, {"sr": torch.rand(12, 10, 3), "features": torch.rand(6, 5, 4)})
            assert sorted(map(len, out.memory._free)) == [6 * 5 * 4, 12 * 10 * 3 * 2]
