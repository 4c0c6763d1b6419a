import os
from dataclasses import replace

import numpy as np
import pytest

from championship_sr.store.codecs import fit_pca
from championship_sr.store.disk import files, leases
from championship_sr.store.errors import StoreError
from championship_sr.store.format.description import assign_shards
from championship_sr.store.format.entries import ArraySpec, Expert, Image
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.shards.reader import Store

IMAGES = assign_shards([Image(f"i{i}", f"n{i}", (4, 5 + i), f"l{i}", f"h{i}", 0, "file") for i in range(5)], 2)
HAT = Expert("hat", (ArraySpec("sr", 3, 4, "float16"),), {"weights_sha256": "1", "taps": {"features": "conv"}})


def create(root, images=IMAGES, **options):
    return Manifest.create(root, **{"scale": 4, "container": "zarr", "images": images, **options})


def test_a_manifest_is_read_back(tmp_path):
    create(tmp_path / "s").add_expert(HAT)
    found = Manifest.load(tmp_path / "s")
    assert (found.scale, found.container, found.images) == (4, "zarr", IMAGES)
    assert found.experts == {"hat": HAT}
    assert found.n_shards == 3
    assert [image.id for image in found.images_of(1)] == ["i2", "i3"]
    assert found.missing_shards("hat") == found.missing_shards(PAIRS) == [0, 1, 2]


def test_a_store_of_the_same_images_goes_on(tmp_path):
    create(tmp_path / "s").add_expert(HAT)
    assert create(tmp_path / "s").experts == {"hat": HAT}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scale": 2}, "scale is 4 there, 2 now"),
        ({"container": "hdf5"}, "container is zarr there, hdf5 now"),
        ({"images": IMAGES[:4]}, "with the extra i4"),
        ({"images": (*IMAGES, replace(IMAGES[0], id="new"))}, "without new"),
        (
            {"images": (replace(IMAGES[0], lr_sha256="other"), *IMAGES[1:])},
            "image i0: lr_sha256 is l0 there, other now",
        ),
        ({"images": assign_shards(IMAGES, 3)}, "shard is 1 there, 0 now"),
        ({"images": IMAGES[::-1]}, "the images are in another order"),
    ],
)
def test_a_store_of_something_else_is_named(tmp_path, change, message):
    create(tmp_path / "s")
    with pytest.raises(StoreError, match=f"holds a different store: .*{message}"):
        create(tmp_path / "s", **change)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(StoreError, match=r"not a feature store and not empty .it holds thesis.tex."):
        create(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(StoreError, match=r"not a feature store .it has no store.yaml"):
        Manifest.load(tmp_path)
    with pytest.raises(StoreError, match="not a feature store"):
        Manifest.load(tmp_path / "thesis.tex")


def test_an_unknown_format_version_is_named(tmp_path):
    create(tmp_path / "s")
    path = tmp_path / "s/store.yaml"
    path.write_text(path.read_text().replace("format_version: 2", "format_version: 7"))
    with pytest.raises(StoreError, match="format version 7, but this program only reads 1 and 2"):
        Store(tmp_path / "s")


@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda text: text.replace("l3", "l4"), lambda text: ""])
def test_damaged_images_are_named(tmp_path, damage):
    create(tmp_path / "s")
    path = tmp_path / "s/images.jsonl"
    path.write_text(damage(path.read_text()))
    with pytest.raises(StoreError, match=r"images.jsonl: missing, damaged or from another store"):
        Manifest.load(tmp_path / "s")


def test_a_creation_that_was_killed_goes_on(tmp_path):
    create(tmp_path / "s")
    (tmp_path / "s/store.yaml").unlink()
    (tmp_path / "s/images.jsonl.tmp").write_text("{")
    assert create(tmp_path / "s").images == IMAGES


def test_two_images_of_one_id_are_refused(tmp_path):
    with pytest.raises(StoreError, match="two images have the id i0"):
        create(tmp_path / "s", images=(IMAGES[0], IMAGES[0]))


def test_an_expert_made_differently_is_refused_key_by_key(tmp_path):
    manifest = create(tmp_path / "s")
    manifest.add_expert(HAT)
    other = replace(
        HAT,
        identity={"weights_sha256": "2", "taps": {"features": "body"}},
        arrays=(ArraySpec("sr", 3, 4, "uint8"),),
    )
    with pytest.raises(StoreError) as caught:
        manifest.add_expert(other)
    message = str(caught.value)
    for part in (
        "arrays.sr.codec is float16 there, uint8 now",
        "taps.features is conv there, body now",
        "weights_sha256 is 1 there, 2 now",
        "pipeline.py extract --rebuild hat",
    ):
        assert part in message


def test_notes_and_tuples_make_no_difference(tmp_path):
    manifest = create(tmp_path / "s")
    manifest.add_expert(replace(HAT, identity={**HAT.identity, "tile": (64, 8), "n": np.int64(3)}))
    manifest.add_expert(replace(HAT, identity={**HAT.identity, "tile": [64, 8], "n": 3}, notes={"host": "b"}))


def test_a_basis_is_asked_for_once(tmp_path):
    manifest = create(tmp_path / "s")
    wide = replace(HAT, arrays=(*HAT.arrays, ArraySpec("features", 6, 1, "pca2-int8")))
    assert [spec.name for spec in manifest.needs_basis(wide)] == ["features"]
    with pytest.raises(StoreError, match="codec of features needs a basis"):
        manifest.add_expert(wide)
    basis = fit_pca([np.random.default_rng(0).random((50, 6))], 2)
    manifest.add_expert(wide, basis={"features": basis})
    assert manifest.needs_basis(wide) == ()
    manifest.add_expert(wide)
    found = Manifest.load(tmp_path / "s").basis("hat")["features"]
    assert (found["basis"] == basis["basis"]).all()
    (tmp_path / "s/experts/hat/basis.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match=r"basis.safetensors: missing or damaged"):
        manifest.basis("hat")


def test_shards_without_their_entry_are_not_thrown_away(tmp_path, make_store):
    root = make_store(tmp_path / "s")
    manifest = Manifest.load(root)
    expert = manifest.experts["a"]
    (root / "experts/a/expert.yaml").unlink()
    with pytest.raises(StoreError, match=r"holds shard-00000.json but no expert.yaml"):
        Manifest.load(root).add_expert(expert)
    assert (root / "experts/a/shard-00001.zarr").exists()


def first_value(root):
    return Store(root).array(0, "a", "sr").read()[0, 0, 0]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_rebuild_stands_beside_the_old_shards_until_it_is_whole(tmp_path, make_store, samples, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "exchange", lambda one, other: False)
    root = make_store(tmp_path / "s")
    before, others = first_value(root), (root / "experts/b/shard-00000.json").read_bytes()
    manifest = Manifest.load(root)
    samples.add_expert(manifest, "a", 5, 9, {}, ("identity",), shards=[0], rebuild=True)
    assert first_value(root) == before
    with pytest.raises(StoreError, match="the rebuilt a still lacks 1 of 2 shards"):
        manifest.swap_rebuilt("a")
    samples.add_expert(manifest, "a", 5, 9, {}, ("identity",), rebuild=True)
    manifest.swap_rebuilt("a")
    assert first_value(root) != before
    assert manifest.experts["a"].identity["weights_sha256"] == "a9"
    assert sorted(os.listdir(root / "experts")) == ["a", "b"]
    assert (root / "experts/b/shard-00000.json").read_bytes() == others


def test_a_rebuild_with_other_settings_starts_anew(tmp_path, make_store, samples):
    root = make_store(tmp_path / "s")
    manifest = Manifest.load(root)
    samples.add_expert(manifest, "a", 5, 8, {}, ("identity",), shards=[0], rebuild=True)
    samples.add_expert(manifest, "a", 5, 9, {}, ("identity",), shards=[], rebuild=True)
    assert manifest.missing_shards("a", rebuild=True) == [0, 1]


def test_removing_an_expert_removes_its_rebuild(tmp_path, make_store, samples):
    manifest = Manifest.load(make_store(tmp_path / "s"))
    samples.add_expert(manifest, "a", 5, 8, {}, ("identity",), shards=[0], rebuild=True)
    manifest.remove_expert("a")
    assert os.listdir(manifest.root / "experts") == ["b"]
    samples.add_expert(manifest, "b", 5, 8, {}, ("identity",), shards=[0], rebuild=True)
    lock = manifest.root / "experts/b.rebuild/shard-00001.lock"
    with leases.held(lock), pytest.raises(StoreError, match="another process is rebuilding b"):
        manifest.remove_expert("b")
    assert sorted(os.listdir(manifest.root / "experts")) == ["b", "b.rebuild"]


def test_removing_an_expert_touches_no_other(tmp_path, make_store):
    root = make_store(tmp_path / "s")
    manifest = Manifest.load(root)
    manifest.remove_expert("a")
    assert list(manifest.experts) == list(Manifest.load(root).experts) == ["b"]
    assert os.listdir(root / "experts") == ["b"]
    Store(root)
    with pytest.raises(StoreError, match=r"no expert a .has: b"):
        manifest.remove_expert("a")
