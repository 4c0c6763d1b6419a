import numpy as np
import pytest
import torch

from championship_sr.store.codecs import fit_pca, get_codec
from championship_sr.store.errors import ConfigError, StoreError

RNG = np.random.default_rng(0)
FEATURES = (RNG.standard_normal((9, 11, 12)) * RNG.uniform(0.1, 40, 12)).astype(np.float32)
IMAGE = RNG.random((9, 11, 3), np.float32)
NAMES = ["float32", "float16", "bfloat16", "uint8", "uint16", "int8", "pca12-int8"]


def round_trip(name, values):
    codec = get_codec(name)
    basis = fit_pca([values], codec.components) if codec.components else None
    params = codec.params(values, basis)
    return codec, params, codec.encode(values, params)


@pytest.mark.parametrize("name", NAMES)
def test_a_round_trip_errs_by_half_a_quantum_at_most(name):
    values = IMAGE if name.startswith("uint") else FEATURES
    codec, params, raw = round_trip(name, values)
    assert raw.dtype == codec.raw_dtype
    error = np.abs(codec.decode(raw, params) - values)
    assert (error <= codec.quantum(values, params) * 0.5001 + 1e-5 * np.abs(values).max() * (name[:3] == "pca")).all()
    assert error.max() > 0 or name == "float32"


@pytest.mark.parametrize("name", NAMES)
def test_decoding_on_torch_equals_numpy(name):
    values = IMAGE if name.startswith("uint") else FEATURES
    codec, params, raw = round_trip(name, values)
    expected = codec.decode(raw, params)
    found = codec.decode(torch.from_numpy(raw), params)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", [*NAMES, "pca10-int4"])
def test_encoding_on_torch_equals_numpy_bit_for_bit_but_for_products_of_matrices(name):
    values = IMAGE * 1.2 - 0.1 if name.startswith("uint") else FEATURES * (np.arange(12) != 5)  # one channel is 0
    codec, params, raw = round_trip(name, values)
    by_channel = torch.from_numpy(values).permute(2, 0, 1).contiguous().permute(1, 2, 0)  # as a network leaves it
    basis = {key: value for key, value in params.items() if key != "scale"}
    found = codec.params(by_channel, basis)
    tensor = codec.encode(by_channel, found)
    slack = 1e-5 if name.startswith("pca") else 0
    assert tensor.contiguous().numpy().dtype == raw.dtype
    assert np.abs(tensor.numpy().astype(np.float64) - raw).max() <= bool(
        slack
    )  # one step, where a product fell between
    for key, value in params.items():
        np.testing.assert_allclose(np.asarray(found[key]), value, rtol=slack, atol=0)


@pytest.mark.parametrize("name", ["int8", "pca4-int8", "pca10-int4"])
def test_parameters_of_a_batch_broadcast(name):
    codec, params, raw = round_trip(name, FEATURES)
    other = {**params, "scale": params["scale"] * 2}
    scale = torch.from_numpy(np.stack([params["scale"], other["scale"]]))[:, None, None]
    batch = codec.decode(torch.from_numpy(np.stack([raw, raw])), {**params, "scale": scale})
    np.testing.assert_allclose(batch[1].numpy(), codec.decode(raw, other), rtol=1e-5, atol=1e-4)


def test_bfloat16_is_torchs():
    raw = get_codec("bfloat16").encode(FEATURES, {})
    assert (raw == torch.from_numpy(FEATURES).bfloat16().view(torch.uint16).numpy()).all()


def test_float16_rounds_as_numpy_does_down_to_its_smallest_numbers():
    values = np.concatenate([FEATURES.ravel(), FEATURES.ravel() * 1e-6, np.float32([6e-8, 2.9e-8, 65504, -65504])])
    assert (get_codec("float16").encode(values, {}).view(np.uint16) == values.astype(np.float16).view(np.uint16)).all()


def test_uint8_is_the_image_that_a_png_would_hold():
    values = np.array([[[-0.2, 0.5, 1.7]]], np.float32)
    assert get_codec("uint8").encode(values, {}).ravel().tolist() == [0, 128, 255]


def test_a_channel_of_zeros_stays_zero():
    values = FEATURES.copy()
    values[..., 3] = 0
    codec, params, raw = round_trip("int8", values)
    assert (codec.decode(raw, params)[..., 3] == 0).all()


def test_principal_components_keep_what_a_plain_svd_keeps():
    mixed = FEATURES @ RNG.standard_normal((12, 20)).astype(np.float32)
    basis = fit_pca([mixed[:4], mixed[4:]], 5)
    centred = (mixed - mixed.mean((0, 1))).reshape(-1, 20)
    _, _, rows = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(basis["basis"] @ rows[:5].T), np.eye(5), atol=1e-3)
    kept = centred @ basis["basis"].T @ basis["basis"]
    assert np.linalg.norm(kept - centred) == pytest.approx(
        np.linalg.norm(centred - centred @ rows[:5].T @ rows[:5]), rel=1e-3
    )


def test_the_basis_does_not_depend_on_how_the_sample_is_cut():
    whole, halves = fit_pca([FEATURES], 4), fit_pca([FEATURES[:5], FEATURES[5:]], 4)
    np.testing.assert_allclose(whole["basis"], halves["basis"], atol=1e-6)


def test_a_sample_too_small_for_its_basis_is_refused():
    with pytest.raises(StoreError, match=r"^pca13: 12 channels at 99 pixels do not span 13"):
        fit_pca([FEATURES], 13)
    with pytest.raises(StoreError, match="0 pixels"):
        fit_pca([], 2)


def test_encoding_without_a_basis_says_how_to_get_one():
    with pytest.raises(StoreError, match="fit_pca"):
        get_codec("pca4-int8").params(FEATURES)


def test_four_bits_keep_what_fits_into_them():
    values = FEATURES @ RNG.standard_normal((12, 40)).astype(np.float32)
    basis = fit_pca([values], 12)
    codec = get_codec("pca12-int4")
    params = codec.params(values, basis)
    raw = codec.encode(values, params)
    assert raw.shape == (9, 11, codec.raw_channels(40)) == (9, 11, 8 + 2)
    numbers = np.rint((values - basis["mean"]) @ basis["basis"].T / params["scale"])
    expected = np.clip(numbers, -127, 127)
    expected[..., 8:] = np.clip(numbers[..., 8:], -7, 7)
    decoded = expected * params["scale"] @ basis["basis"] + basis["mean"]
    np.testing.assert_allclose(codec.decode(raw, params), decoded, atol=1e-3)
    np.testing.assert_allclose(codec.decode(torch.from_numpy(raw), params).numpy(), decoded, atol=1e-3)


def test_clipping_outliers_beats_reaching_to_them():
    values = (RNG.standard_normal((64, 64, 16)) * np.linspace(9, 1, 16)).astype(np.float32)
    values[3, 3] *= 20
    basis = fit_pca([values], 16)
    codec = get_codec("pca16-int4")
    params = codec.params(values, basis)
    late = ((values - basis["mean"]) @ basis["basis"].T)[..., 8:]
    reaching = np.abs(late).max((0, 1)) / 7
    error = {}
    for name, scale in (("chosen", params["scale"][8:]), ("reaching", reaching)):
        error[name] = np.square(np.clip(np.rint(late / scale), -7, 7) * scale - late).mean()
    assert error["chosen"] < 0.5 * error["reaching"]


@pytest.mark.parametrize("name", ["pca9-int4", "pca8-int4", "float8", "pca-int8", "pca0-int8", "int8+lz4", "+zstd", ""])
def test_an_unknown_codec_is_named(name):
    with pytest.raises(ConfigError, match="codec"):
        get_codec(name)


def test_a_missing_compression_library_is_named(monkeypatch):
    import numcodecs

    get_codec.cache_clear()
    from championship_sr.store.containers.compression import get_compression

    get_compression.cache_clear()
    monkeypatch.delattr(numcodecs, "Blosc")
    with pytest.raises(StoreError, match=r"float16\+blosc needs numcodecs with blosc, which is not installed"):
        get_codec("float16+blosc")
