import numpy as np
import pytest
import torch

from championship_sr.evaluate.inference.given import as_batch
from championship_sr.evaluate.model import load
from championship_sr.store.errors import ConfigError

RGB = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
GREY = RGB[..., 0]
FORMS = {
    "array": RGB,
    "big-endian array": (RGB * np.uint16(257)).astype(">u2"),
    "float array": RGB / np.float32(255),
    "double array": RGB / 255,
    "array, channels first": np.ascontiguousarray(RGB.transpose(2, 0, 1)),
    "tensor, channels last": torch.from_numpy(RGB / np.float32(255)),
    "tensor of bytes": torch.from_numpy(RGB),
    "batch of arrays": np.stack([RGB, RGB]),
}


@pytest.fixture(scope="module")
def model(run_root):
    return load(run_root, device="cpu")


@pytest.fixture(scope="module")
def expected(model):
    """The SR image (3, 36, 48) of RGB, float32."""
    return model(torch.from_numpy(RGB / np.float32(255)).permute(2, 0, 1))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_the_same_one_in_its_form(model, expected, form):
    given = FORMS[form]
    result = model(given)
    assert type(result) is type(given) and result.dtype == given.dtype and result.ndim == given.ndim
    values = np.asarray(result)
    top = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1
    values = values[0] if values.ndim == 4 else values
    values = values if form.endswith("first") else values.transpose(2, 0, 1)
    difference = np.abs(values.astype(float) / top - expected.double().clamp(0, 1).numpy())
    assert difference.max() <= 1e-5 + (0.5 / top if top > 1 else 0)


@pytest.mark.parametrize("given", [GREY, GREY[..., None], torch.from_numpy(GREY / np.float32(255))[None]])
def test_grey_stays_grey(model, given):
    result = model(given)
    colour = model(np.repeat(GREY[..., None], 3, axis=2) / np.float32(255))
    found = np.asarray(result).squeeze() / (255 if isinstance(given, np.ndarray) else 1)
    assert result.ndim == given.ndim
    assert np.abs(found - colour @ np.float32([0.299, 0.587, 0.114])).max() <= 0.5 / 255 + 1e-5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.rand(9, 12, 3) * 255, r"floating-point image with values from .* expected 0\.\.1"),
        (torch.rand(9, 12, 4), r"an image of shape \(9, 12, 4\)"),
        (torch.rand(9), r"an image of shape \(9,\)"),
        (torch.full((3, 9, 9), torch.nan), "not finite"),
        (torch.ones(3, 9, 9, dtype=torch.int64), r"an image of torch\.int64: expected uint8"),
    ],
)
def test_what_is_no_image_is_named(given, said):
    with pytest.raises(ConfigError, match=said):
        as_batch(given)
