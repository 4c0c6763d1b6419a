"""From raw windows to a batch, and to single windows."""

from functools import partial

import numpy as np
import pytest
import torch

from championship_sr.evaluate.inference.inputs import StoredInputs
from championship_sr.store.codecs import get_codec
from championship_sr.store.shards.reader import Store
from championship_sr.train.bench.dispatch import META, Dispatched
from championship_sr.train.data.batch import half_of
from championship_sr.train.data.whole import read_stored

EXPERTS = ("alpha", "gamma")
CODECS = ["pca2-int8", "int8", "float16", "bfloat16"]


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float16+zstd"])
def test_features_in_half_precision_are_the_decoded_ones(name):
    codec = get_codec(name)
    values = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    raw = torch.from_numpy(codec.encode(values, {}))
    assert torch.equal(raw.view(half_of(codec)).float(), codec.decode(raw, {}))


@pytest.mark.parametrize("name", ["float32", "int8", "uint8"])
def test_other_codecs_are_decoded(name):
    assert half_of(get_codec(name)) is None


def uploads_of(read) -> tuple[int, int]:
    """Copies to the device, which are from pinned memory where it is a GPU; nothing else may make the host wait."""
    with Dispatched() as counts:
        read()
    made = counts.synchronisations.pop("aten.lift_fresh.default", 0)  # a tensor for each parameter
    copied = counts.synchronisations.pop("aten._to_copy.default")
    assert not counts.synchronisations
    return made, copied


@pytest.mark.parametrize("features", CODECS)
def test_only_raw_numbers_are_uploaded_for_a_second_window(written, features):
    inputs = StoredInputs(Store(written(features=features), EXPERTS), 0, EXPERTS, device=META)
    first, second = (uploads_of(partial(inputs.window, y, 0, 12, 12)) for y in (0, 6))
    codec = get_codec(features)
    parameters = len(codec.own) + 2 * bool(codec.components)  # scales; mean and basis
    images_and_features = 2 * len(EXPERTS)
    assert second == (0, images_and_features)
    assert first == (parameters * len(EXPERTS), images_and_features + parameters * len(EXPERTS))


@pytest.mark.parametrize("features", CODECS)
def test_a_second_image_uploads_what_is_its_own(written, features):
    store = Store(written(features=features), EXPERTS)
    read_stored(store, 0, EXPERTS, META)
    again, other = (uploads_of(partial(read_stored, store, image, EXPERTS, META)) for image in (0, 1))
    raw, own = 2 + 2 * len(EXPERTS), len(get_codec(features).own) * len(EXPERTS)  # LR, HR, images and features; scales
    assert again == (0, raw) and other == (own, raw + own)
