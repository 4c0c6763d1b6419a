"""Which images are held out: the same ones while a store grows, and those that a run began with."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis.strategies import integers, lists, text

from championship_sr.store.format.entries import Image
from championship_sr.train.config import ValidationConfig
from championship_sr.train.held_out import split_images, spread
from championship_sr.train.records.seen import held_before, write_seen


def images_of(ids: list[str]) -> list[Image]:
    return [Image(name, name, (8, 8), f"lr {name}", f"hr {name}", 0, "file") for name in ids]


def split(ids: list[str], **settings) -> tuple[set[str], set[str]]:
    store = SimpleNamespace(root="store", images=images_of(ids))
    return tuple({ids[number] for number in part} for part in split_images(store, ValidationConfig(**settings)))


@given(lists(text("abc01/_", min_size=1), min_size=3, max_size=40, unique=True), integers(1, 38), integers(1, 6))
def test_what_was_trained_on_is_never_held_out_once_the_store_has_grown(ids, before, hold_out):
    before = min(max(before, hold_out + 1), len(ids))
    hold_out = min(hold_out, before - 1)
    trained, held = split(ids[:before], hold_out=hold_out)
    later_trained, later_held = split(ids, hold_out=hold_out)
    assert not trained & later_held and len(held) == len(later_held) == hold_out
    assert trained | held == set(ids[:before]) and later_trained | later_held == set(ids)


def test_a_run_that_goes_on_holds_out_what_it_held_out_before(tmp_path):
    images, settings = images_of([f"photo{n}" for n in range(9)]), ValidationConfig(hold_out=2)
    assert held_before(tmp_path, images, settings) == settings  # it begins
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    # before there was a record, images were spread over the store
    assert held_before(tmp_path, images, settings).images == spread(images, 2) == ("photo2", "photo6")
    write_seen(tmp_path, {"training": images[:7], "validation": images[7:]})
    assert held_before(tmp_path, images, settings).images == ("photo7", "photo8")
    for other in (ValidationConfig(hold_out=3), ValidationConfig(images=("photo0",))):
        assert held_before(tmp_path, images, other) == other  # asked for anew
    assert held_before(tmp_path, images[:8], settings) == settings  # another store
