"""From raw windows to a batch."""

import numpy as np
import pytest
import torch

from championship_sr.store.codecs import get_codec
from championship_sr.train.data.batch import half_of


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float16+zstd"])
def test_features_in_half_precision_are_the_decoded_ones(name):
    codec = get_codec(name)
    values = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    raw = torch.from_numpy(codec.encode(values, {}))
    assert torch.equal(raw.view(half_of(codec)).float(), codec.decode(raw, {}))


@pytest.mark.parametrize("name", ["float32", "int8", "uint8"])
def test_other_codecs_are_decoded(name):
    assert half_of(get_codec(name)) is None
