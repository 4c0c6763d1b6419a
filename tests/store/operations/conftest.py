"""Whole stores, copied for each test that damages one."""

import shutil

import pytest


@pytest.fixture(scope="module")
def originals():
    return {}


@pytest.fixture
def copied_store(originals, tmp_path_factory, samples):
    """A store as conftest's `make_store` makes it: written once for each set of options, and copied."""

    def copied(root, experts=None, **options):
        key = repr((experts, sorted(options.items())))
        if key not in originals:
            originals[key] = samples.build(tmp_path_factory.mktemp("original") / "s", experts, **options)
        shutil.copytree(originals[key], root)
        return root

    return copied
