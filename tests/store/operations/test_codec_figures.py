import numpy as np
import pytest

from championship_sr.store.errors import StoreError
from championship_sr.store.operations.codec_figures import measure_codecs


def test_figures_of_codecs_are_those_of_their_arithmetic(tmp_path, make_store):
    codecs = {"sr": "float32", "features": "float32"}
    root = make_store(tmp_path / "s", {"a": 8, "b": 24}, 4, [(64, 128)], codecs=codecs)
    names = ["float32", "float16", "int8", "pca8-int8"]
    found = {each.codec: each for each in measure_codecs(root, names, ["uint8"], sample=2)}
    features = {name: found[name] for name in names}
    index = 20 * (1 + 64 / 8) / (64 * 128) * 2  # of two Zarr arrays, at most
    for name, n_bytes in {"float32": 128, "float16": 64, "int8": 32, "pca8-int8": 16}.items():
        assert 0 <= features[name].bytes_per_lr_px - n_bytes < index * 2
    assert features["float32"].snr_db == {"a": np.inf, "b": np.inf}
    assert features["float32"].max_error == 0
    # white noise: uniform steps of largest / 127 and their variance of step^2 / 12
    step = 4.2 / 127
    assert features["int8"].snr_db["a"] == pytest.approx(-10 * np.log10(step**2 / 12), abs=1)
    assert features["pca8-int8"].snr_db["b"] == pytest.approx(-10 * np.log10(16 / 24), abs=0.3)
    assert features["pca8-int8"].snr_db["a"] > 35  # all of its components are kept
    assert found["uint8"].max_error == pytest.approx(0.5 / 255 * np.sqrt(12), rel=0.01)
    assert not list(tmp_path.glob("codecs-*"))


def test_a_sample_that_leaves_nothing_to_measure_is_refused(tmp_path, make_store):
    with pytest.raises(StoreError, match="3 images; a sample of 3 leaves none"):
        next(measure_codecs(make_store(tmp_path / "s"), sample=3))
