import numpy as np
import pytest

from store.layout import PAIRS, transform
from store.manifest import ArraySpec, Expert, Image, Manifest
from store.writer import write_shard

SIZES = ((20, 33), (41, 24), (19, 19))
CHANNELS = {"alpha": 20, "beta": 3, "gamma": 17}
SCALE = 2


@pytest.fixture
def make_store(tmp_path):
    """Writes a store of three random images and experts, and returns its root."""

    def make(container="zarr", codec="float16", sr_codec="uint8", variants=("identity",), hr_dtypes=(np.uint8,) * 3):
        rng = np.random.default_rng(3)
        images = [
            Image(f"im{i}", f"im{i}.png", size, f"{i:064x}", f"{i:064x}", i // 2, "file")
            for i, size in enumerate(SIZES)
        ]
        manifest = Manifest.create(tmp_path / "made.store", scale=SCALE, container=container, images=images)
        for shard in range(manifest.n_shards):
            with write_shard(manifest, PAIRS, shard) as out:
                for image in manifest.images_of(shard):
                    hr = rng.integers(0, np.iinfo(hr_dtypes[int(image.id[2:])]).max, (*_hr(image), 3))
                    lr = rng.integers(0, 256, (*image.lr_size, 3), dtype=np.uint8)
                    out.add(image.id, {"lr": lr, "hr": hr.astype(hr_dtypes[int(image.id[2:])])})
        for name, channels in CHANNELS.items():
            arrays = (ArraySpec("sr", 3, SCALE, sr_codec), ArraySpec("features", channels, 1, codec))
            manifest.add_expert(Expert(name, arrays, {"variants": list(variants)}))
            _write_expert(manifest, name, channels, variants, rng)
        return manifest.root

    return make


def _hr(image):
    return image.lr_size[0] * SCALE, image.lr_size[1] * SCALE


def _write_expert(manifest, name, channels, variants, rng):
    for shard in range(manifest.n_shards):
        with write_shard(manifest, name, shard) as out:
            for image in manifest.images_of(shard):
                for variant in variants:  # every variant's numbers are its own, as a real expert's are
                    sr = transform(rng.random((*_hr(image), 3), np.float32), variant)
                    features = transform(rng.standard_normal((*image.lr_size, channels), np.float32), variant)
                    out.add(image.id, {"sr": sr, "features": features}, variant)
