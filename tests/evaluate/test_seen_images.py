"""Scores on images that a run was trained on are marked as such, wherever the images come from."""

import csv
import io
import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from championship_sr import load
from championship_sr.evaluate.deliver.export import export_run
from championship_sr.evaluate.scoring.evaluation import ScoringOptions, evaluate_pairs, evaluate_store
from championship_sr.evaluate.scoring.scores import benchmarks_table
from championship_sr.evaluate.session import evaluate_sets, write_results
from championship_sr.extract.config import ImagesConfig
from championship_sr.extract.images.pairs import find_pairs
from championship_sr.store.errors import StoreError
from championship_sr.store.shards.reader import Store
from championship_sr.train.records.seen import Seen, read_seen, write_seen

OPTIONS = ScoringOptions(self_ensemble=False)
SAID = "* 2 of the 4 scored images were trained on, 1 of the 4 chose the checkpoint: no measure of other images"


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_run, store_root):
    """A run that was trained on the first two photographs, and whose checkpoint the third chose."""
    root = make_run(tmp_path_factory.mktemp("seen") / "run", store_root)
    images = Store(store_root).images
    write_seen(root, {"training": images[:2], "validation": images[2:3]})
    return root


@pytest.fixture(scope="module")
def scores(run, store_root, config):
    return evaluate_store(run, store_root, options=OPTIONS, config=config)


def test_the_table_says_how_many_images_were_trained_on_and_marks_the_runs_rows(scores):
    assert scores.used == ("training", "training", "validation", None)
    table = scores.table().splitlines()
    assert table[0] == SAID
    marked = [line for line in table if " *  " in line]
    assert len(marked) == 1 and marked[0].startswith("fusion *")
    assert "| fusion * |" in scores.markdown() and SAID in scores.markdown()
    assert "photographs* PSNR-Y" in benchmarks_table({"photographs": scores, "others": replace(scores, used=None)})


def test_csv_and_json_say_it_of_each_image(scores):
    lines = list(csv.DictReader(io.StringIO(scores.csv())))
    assert [line["used_for"] for line in lines if line["method"] == "fusion"] == [
        "training",
        "training",
        "validation",
        "",
    ]
    plain = json.loads(json.dumps(scores.to_plain()))
    assert plain["used_for"] == {f"photo{i}": use for i, use in enumerate(["training", "training", "validation", None])}


def test_the_report_says_it_where_it_says_what_the_fusion_is_worth(run, store_root, config, tmp_path):
    results = evaluate_sets(run=run, store=store_root, options=OPTIONS, config=config, with_gallery=True)
    page = write_results(tmp_path, results)[-1].read_text()
    lead = page[page.index('class="lead"') :].partition("</p>")[0]
    assert SAID.removeprefix("* ") in lead
    assert ">fusion *<" in page and "photo2 *" in page and "photo3 *" not in page


def test_the_images_are_known_again_as_files_of_other_names(run, hr_folder, tmp_path, config):
    for number in range(4):
        Image.open(hr_folder / f"photo{number}.png").save(tmp_path / f"{9 - number}.tif")
    pairs = find_pairs(ImagesConfig(hr=(str(tmp_path),)), 4, [])
    scores = evaluate_pairs(run, pairs, options=OPTIONS, config=config)
    assert dict(zip(scores.images, scores.used, strict=True)) == {
        **{"9": "training", "8": "training"},
        **{"7": "validation", "6": None},
    }


def test_an_image_is_known_by_its_lr_alone_and_training_outweighs_validation():
    seen = Seen([("training", "hr1", "lr1"), ("validation", "hr2", "lr2"), ("training", None, "lr3")])
    assert [seen.use_of("hr1", "other"), seen.use_of("other", "lr2"), seen.use_of(None, "lr3")] == [
        "training",
        "validation",
        "training",
    ]
    assert (
        seen.use_of("hr2", "lr1") == "training" and seen.use_of("hr", "lr") is None and seen.use_of(None, "lr") is None
    )


def test_other_images_are_said_to_be_others(run, store_root, config):
    scores = evaluate_store(run, store_root, ["photo3"], options=OPTIONS, config=config)
    assert "none of these images was trained on, or chose the checkpoint (sha256 of HR and LR)" in scores.notes
    assert "*" not in scores.table()


def test_an_export_keeps_the_record(run, tmp_path):
    out = export_run(load(run, device="cpu"), tmp_path / "shared")
    assert (out / "images.jsonl").read_bytes() == (run / "images.jsonl").read_bytes()


def test_a_run_from_before_the_record_has_its_stores_images(run, make_run, store_root, config, tmp_path):
    old = make_run(tmp_path / "old", store_root)
    settings = (old / "config.yaml").read_text()
    (old / "config.yaml").write_text(settings.replace("hold_out: 4", "hold_out: 1"))
    assert evaluate_store(old, store_root, ["photo0"], options=OPTIONS, config=config).used == ("training",)
    (old / "run.yaml").write_text((old / "run.yaml").read_text().replace(str(store_root), str(tmp_path / "gone")))
    scores = evaluate_store(old, store_root, ["photo0"], options=OPTIONS, config=config)
    assert scores.used is None and any("not known" in note for note in scores.notes)


@pytest.mark.parametrize(
    "content", ["[", '{"use": "training"}', '{"use": 3, "hr_sha256": "a", "lr_sha256": "b"}', "[1]"]
)
def test_a_damaged_record_is_named(run, tmp_path, content):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "images.jsonl").write_text(content + "\n")
    with pytest.raises(StoreError, match=r"images\.jsonl: damaged"):
        read_seen(copy)
