from functools import cache

import pytest

SIZES = ((20, 33), (41, 24), (19, 19))


@pytest.fixture(scope="session")
def written(samples, tmp_path_factory):
    """The root of a store of scale 2 that windows of 12 x 12 LR pixels fit into; tests that damage it copy it first."""
    experts = {"alpha": 20, "beta": 3, "gamma": 17}

    @cache
    def write(sr="uint8", features="float16", container="zarr", variants=("identity",)):
        codecs = {"sr": sr, "features": features}
        root = tmp_path_factory.mktemp("made") / "store"
        options = {"container": container, "variants": variants, "scale": 2, "codecs": codecs}
        return samples.build(root, experts, len(SIZES), SIZES, **options)

    return write
