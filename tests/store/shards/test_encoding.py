import numpy as np
import pytest
import torch

from championship_sr.store.codecs import fit_pca, get_codec
from championship_sr.store.shards.encoding import encode, extremes

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
