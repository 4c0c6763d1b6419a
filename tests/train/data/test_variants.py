import numpy as np
import pytest
import torch

from championship_sr.store.errors import ConfigError
from championship_sr.store.format.variants import VARIANTS
from championship_sr.train.data.batch import Batch
from championship_sr.train.data.mixing import cutblur, mixup
from championship_sr.train.data.sampler import step_rng
from championship_sr.train.data.variants import transformed, variants_for


@pytest.fixture
def batch():
    made = torch.Generator().manual_seed(1)
    lr, hr, images, features = (
        torch.rand(shape, generator=made) for shape in ((4, 3, 6, 6), (4, 3, 12, 12), (4, 2, 3, 12, 12), (4, 5, 6, 6))
    )
    return Batch(lr, hr, images, {"alpha": features}, [(f"im{i}", 0, 0, "identity") for i in range(4)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_samples_are_turned_as_numpy_turns_them(variant):
    raw = np.random.default_rng(0).random((2, 5, 5, 3), np.float32)
    expected = raw[1]
    if variant.startswith("mirror"):
        expected = expected[:, ::-1]
    expected = np.rot90(expected, int(variant.partition("rot")[2] or 0) // 90)
    result = transformed(torch.from_numpy(raw), ["identity", variant])
    np.testing.assert_array_equal(result[0], raw[0])
    np.testing.assert_array_equal(result[1], expected)


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ConfigError, match="augment=flips: expected none, stored or approximate"):
        variants_for("flips", None, ())


def test_mixup_blends_targets_and_inputs_by_one_weight(batch):
    mixed = mixup(batch, alpha=1.2, rng=step_rng(3, 5))
    rng = np.random.Generator(np.random.Philox(key=[3, 5]))
    weight, order = rng.beta(1.2, 1.2), rng.permutation(4)
    assert 0.01 < weight < 0.99
    for new, old in ((mixed.lr, batch.lr), (mixed.hr, batch.hr), (mixed.images, batch.images)):
        expected = weight * old.numpy() + (1 - weight) * old.numpy()[order]
        np.testing.assert_allclose(new.numpy(), expected, atol=1e-6)
    features = batch.features["alpha"].numpy()
    expected = weight * features + (1 - weight) * features[order]
    np.testing.assert_allclose(mixed.features["alpha"].numpy(), expected, atol=1e-6)


def test_cutblur_puts_one_box_of_the_target_into_every_expert_and_leaves_the_target(batch):
    before = batch.images.clone()
    cut = cutblur(batch, max_share=0.9, rng=step_rng(3, 6))
    changed = (cut.images != before).any(dim=(0, 1, 2))
    rows, cols = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    assert changed[box].all() and changed.sum() == changed[box].numel() < 144
    for expert in range(2):
        assert torch.equal(cut.images[:, expert, :, *box], batch.hr[:, :, *box])
    assert cut.hr is batch.hr and cut.lr is batch.lr and torch.equal(batch.images, before)


def test_boxes_differ_in_place_and_size(batch):
    sizes = set()
    for step in range(30):
        changed = (cutblur(batch, max_share=0.5, rng=step_rng(0, step)).images != batch.images).any(dim=(0, 1, 2))
        sizes.add((int(changed.any(1).sum()), int(changed.any(0).sum()), int(changed.flatten().int().argmax())))
        assert changed.any(1).sum() <= 6 and changed.any(0).sum() <= 6
    assert len(sizes) > 15
