"""The report: one file, whole, and true to the scores."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from championship_sr.evaluate.methods import EXPERT, FITTED, FUSION, MEAN
from championship_sr.evaluate.report import charts
from championship_sr.evaluate.report.colours import INFERNO, categories, coloured, data_uri
from championship_sr.evaluate.report.gallery import Gallery
from championship_sr.evaluate.report.headline import sentence
from championship_sr.evaluate.report.regions import HR, WINDOW_LR_PX, nearest_expert
from championship_sr.evaluate.scoring.cases import Case
from championship_sr.evaluate.scoring.comparison import Pictures
from championship_sr.evaluate.scoring.evaluation import ScoringOptions
from championship_sr.evaluate.scoring.scores import Scores
from championship_sr.evaluate.session import evaluate_sets, write_results
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.shards.reader import Store
from championship_sr.train.records.journal import METRICS_FILE

LOG = """{"event": "reference", "step": 0, "time": 1.0, "psnr": {"one": 20.0, "mean": 20.5}, "ssim": {"one": 0.5}}
{"event": "train", "step": 10, "time": 2.0, "loss": 0.05, "learning_rate": 0.001}
{"event": "train", "step": 20, "time": 3.0, "loss": 0.03, "learning_rate": 0.0005}
{"event": "validation", "step": 20, "time": 4.0, "psnr": 21.0, "ssim": 0.6, "seconds": 1, "images": {"a": [21.0, 0.6]}}
"""


class Page(HTMLParser):
    """What a page asks for, and whether its tags are closed."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.sources, self.images = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in self.VOID and tag not in ("line", "rect", "polyline"):
            self.open.append(tag)
        if tag == "img" and "src" in attributes:
            self.images.append(attributes)
        self.sources += [attributes[key] for key in ("src", "href") if key in attributes]

    def handle_startendtag(self, tag, attributes):
        self.sources += [value for key, value in attributes if key in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag, tag


@pytest.fixture(scope="module")
def written(tmp_path_factory, run_root, store_root, config):
    (run_root / METRICS_FILE).write_text(LOG)
    options = ScoringOptions(self_ensemble=False)
    results = evaluate_sets(run=run_root, store=store_root, options=options, config=config, with_gallery=True)
    folder = tmp_path_factory.mktemp("report")
    write_results(folder, results)
    return results.sets["plain"].scores, folder / "report.html"


def test_the_page_needs_no_other_file(written):
    page = Page(written[1].read_text())
    assert page.open == []
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert not re.search(r"https?://|@import|url\(", re.sub(r"data:[^\"]*", "", written[1].read_text()))


def regions(path) -> list[dict]:
    """What the page's scripts read."""
    found = re.findall(r'<script type="application/json" class="region">(.*?)</script>', path.read_text(), re.S)
    return [json.loads(text) for text in found]


def test_its_pictures_are_lossless(written, store_root):
    store = Store(store_root)
    for region, index in zip(regions(written[1]), range(len(store.images)), strict=True):
        layers = {layer["key"]: layer for layer in region["layers"]}
        assert np.array_equal(opened(layers[HR]["source"]), store.array(index, PAIRS, "hr").load())
        assert {FUSION, MEAN, EXPERT + "one", "gates: two", "difficulty", "nearest expert"} <= set(layers)
        assert all(
            opened(layer["source"]).shape[:2] == (region["height"], region["width"]) for layer in layers.values()
        )


def test_it_shows_every_row_and_the_protocol(written):
    scores, path = written
    text = path.read_text()
    for cells in scores.rows():
        assert all(cell in text for cell in cells)
    assert scores.protocol.replace("'", "&#39;") in text


def test_it_shows_curves_maps_and_who_wins(written):
    text = written[1].read_text()
    assert "PSNR-Y on the validation images" in text and "Training loss" in text
    assert "difficulty" in text and "gates: two" in text and "modulation: one" in text
    assert text.count('<i style="flex:') == 2


def test_the_scores_lie_beside_it(written):
    scores, path = written
    assert (path.parent / "scores.csv").read_text() == scores.csv()
    assert scores.markdown() in (path.parent / "scores.md").read_text()


def opened(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def pictures(gain_at: tuple[int, int], name: str = "image", *, wrong: int = 20, total: int = 1) -> Pictures:
    """An image of 200 x 240 LR pixels: the fusion is right but in one place, where it is the expert that is right."""
    hr = np.random.default_rng(0).integers(90, 110, (400, 480, 3), dtype=np.uint8)
    expert, fusion = hr.copy(), hr.copy()
    y, x = gain_at
    expert[2 * y : 2 * y + 20, 2 * x : 2 * x + 20] += wrong
    fusion[320:340, 400:420] += 20
    case = Case(name, lambda: None, lambda *_: None)
    images = {EXPERT + "one": expert, MEAN: expert, FUSION: fusion}
    return Pictures(case, np.zeros((200, 240, 3), np.uint8), hr, images, {}, total=total)


def test_windows_lie_where_the_fusion_gains_and_loses():
    gallery = Gallery(scale=2)
    gallery(pictures((20, 30)))
    gain, loss = gallery.gains[0], gallery.losses[0]
    assert gain.y <= 40 and gain.y + gain.size >= 60 and gain.x <= 60 and gain.x + gain.size >= 80
    assert loss.y <= 320 and loss.y + loss.size >= 340 and loss.x <= 400 and loss.x + loss.size >= 420
    assert gain.gain > 0 > loss.gain and gain.gain == pytest.approx(-loss.gain)
    assert gain.size == 2 * WINDOW_LR_PX and gain.region is loss.region and gallery.images == [gain.region]


def test_windows_of_one_image_do_not_overlap():
    gallery = Gallery(scale=2)
    gallery(pictures((20, 30)))
    for windows in (gallery.gains, gallery.losses):
        places = [(window.y, window.x) for window in windows]
        assert all(
            abs(a[0] - b[0]) >= 2 * WINDOW_LR_PX or abs(a[1] - b[1]) >= 2 * WINDOW_LR_PX
            for i, a in enumerate(places)
            for b in places[:i]
        )


def test_an_image_too_large_for_its_share_is_kept_as_windows():
    gallery = Gallery(scale=2, border=2, page_bytes=600_000)
    gallery(pictures((20, 30)))
    assert not gallery.images and gallery.gains and gallery.losses
    for window in (*gallery.gains, *gallery.losses):
        region = window.region
        assert (region.height, region.width) == (window.size, window.size)
        inside = slice(region.y, region.y + region.height), slice(region.x, region.x + region.width)
        [hr] = [layer for layer in region.layers if layer.key == HR]
        assert np.array_equal(opened(hr.source), pictures((20, 30)).hr[inside])
        edges = region.y, region.x, 400 - region.y - region.height, 480 - region.x - region.width
        assert region.uncounted == tuple(max(0, 2 - edge) for edge in edges)


def test_of_many_images_those_windows_stay_where_most_is_gained_and_lost():
    gallery, most, total = Gallery(scale=2, page_bytes=1_500_000), 1_500_000, 12
    gains = [25, 60, 30, 50, 10, 45, 20, 55, 15, 40, 35, 5]
    for number, wrong in enumerate(gains):
        gallery(pictures((20, 30), f"image{number}", wrong=wrong, total=total))
        assert sum(region.bytes for region in gallery.regions) <= most
    kept = [window.region.image for window in gallery.gains]
    ranked = [f"image{number}" for number in sorted(range(total), key=lambda number: -gains[number])]
    assert kept == ranked[: len(kept)] and len(kept) >= 2
    assert abs(len(gallery.gains) - len(gallery.losses)) <= 1 and gallery.seen == total


def test_windows_that_cover_all_of_a_small_image_go_too():
    gallery, total = Gallery(scale=2, page_bytes=400_000), 12
    for number in range(total):
        large = pictures((20, 30), f"image{number}", wrong=20 + number, total=total)
        square = slice(0, 2 * WINDOW_LR_PX), slice(0, 2 * WINDOW_LR_PX)
        cut = {method: image[square] for method, image in large.images.items()}
        gallery(replace(large, lr=large.lr[:WINDOW_LR_PX, :WINDOW_LR_PX], hr=large.hr[square], images=cut))
        assert sum(region.bytes for region in gallery.regions) <= 400_000
    assert gallery.gains[0].region.image == "image11" and 0 < len(gallery.gains) < total


def test_what_an_image_leaves_of_its_share_goes_to_those_after_it():
    small = pictures((20, 30), "small", total=2)
    flat = np.zeros((40, 40, 3), np.uint8)
    small = replace(small, lr=flat[::2, ::2], hr=flat, images=dict.fromkeys(small.images, flat))
    alone = Gallery(scale=2)
    alone(pictures((20, 30)))
    gallery = Gallery(scale=2, page_bytes=int(1.2 * alone.regions[0].bytes))
    gallery(small)
    gallery(pictures((20, 30), "large", total=2))
    assert [region.image for region in gallery.images] == ["small", "large"]


@pytest.mark.parametrize(
    ("expert", "fitted", "words"),
    [
        (0.3, 0.2, "is 0.300 dB better than the best expert (one) and 0.200 dB better than fitted weights."),
        (-0.3, 0.2, "is 0.300 dB worse than the best expert (one) and 0.200 dB better than fitted weights."),
        (0.3, 0.0, "is 0.300 dB better than the best expert (one), but cannot be told apart from fitted weights: "),
        (0.0, 0.0, "cannot be told apart from the best expert (one) or from fitted weights: both intervals contain 0."),
        (0.3, None, "is 0.300 dB better than the best expert (one)."),
    ],
)
def test_the_headline_says_what_is_shown_and_what_is_not(expert, fitted, words):
    base = np.array([30.0, 31.0, 33.0])
    values = {EXPERT + "one": base - expert, FUSION: base}
    values |= {} if fitted is None else {FITTED: base - fitted}
    plain = {method: tuple(numbers.tolist()) for method, numbers in values.items()}
    text = sentence(Scores("protocol", ("a", "b", "c"), {"psnr_y": plain}))
    assert text.startswith("By PSNR-Y on 3 images, the fusion ") and words in text


def test_the_title_says_what_was_fused_and_on_what(written):
    text = written[1].read_text()
    assert "<title>Fusion of one and two on plain</title>" in text
    assert "Run run, checkpoint of step 1, on 4 images of plain." in text


def test_nearest_expert_is_the_one_with_the_least_error_around():
    hr = np.full((40, 40, 3), 100, np.uint8)
    left, right = hr.copy(), hr.copy()
    left[:, 20:] += 9
    right[:, :20] += 9
    winner = nearest_expert([left, right], hr)
    assert (winner[:, :15] == 0).all() and (winner[:, 25:] == 1).all()


def test_colours_run_from_the_first_anchor_to_the_last():
    image = coloured(np.array([[0.0, 1.0, 2.0]]), 0, 1, INFERNO)
    assert [bytes(pixel).hex() for pixel in image[0]] == [INFERNO[0], INFERNO[-1], INFERNO[-1]]
    assert len({tuple(pixel) for pixel in categories(np.arange(8)[None])[0]}) == 8


def test_pictures_are_kept_to_the_bit_and_reduced_when_asked():
    image = torch.randint(0, 256, (30, 50, 3), dtype=torch.uint8).numpy()
    read = Image.open(io.BytesIO(base64.b64decode(data_uri(image).partition(",")[2])))
    assert np.array_equal(np.asarray(read), image)
    small = Image.open(io.BytesIO(base64.b64decode(data_uri(image, longest=25).partition(",")[2])))
    assert small.size == (25, 15)


def test_histogram_counts_every_finite_value_once():
    values = [-0.31, -0.3, 0.0, 0.05, 0.05, 0.4, float("inf")]
    counts = [
        int(count) for count in re.findall(r"<title>[^<]*: (\d+)</title>", charts.histogram(values, x_title="dB"))
    ]
    assert sum(counts) == 6
    negative = re.findall(r'class="bad"[^>]*><title>[^<]*: (\d+)', charts.histogram(values, x_title="dB"))
    assert sum(map(int, negative)) == 2


@pytest.mark.parametrize("values", [[0.0], [0.1, 0.1], [-1e-9, 1e-9], [-5.0], [float("inf")], []])
def test_charts_take_whatever_there_is(values):
    for chart in (
        charts.histogram(values, x_title="x"),
        charts.bars({str(i): v for i, v in enumerate(values)}, title="y"),
        charts.bars({str(i): v for i, v in enumerate(values * 30)}, title="y"),
        charts.intervals({str(i): (v, v, v) for i, v in enumerate(values)}, x_title="x"),
        charts.line_chart({"a": list(enumerate(values))}, {"level": 1.0}, x_title="x", y_title="y"),
        charts.line_chart({"a": list(enumerate(values))}, x_title="x", y_title="y", log_y=True),
    ):
        assert "nan" not in chart and "inf" not in chart.replace("infinit", "")


def test_the_experts_together_are_a_heat_map_and_tables(written):
    scores, path = written
    page, found = path.read_text(), scores.complementarity
    assert found.sentence in page and 'id="together"' in page
    for row in found.correlation.values():
        for value in row.values():
            assert f">{value:.3f}</td>" in page
    for subset in found.subsets:
        assert " + ".join(subset.experts) in page and f"{subset.psnr_y:.3f}" in page


def test_experts_alone_have_a_report_that_says_first_what_they_are_worth(store_root, config, tmp_path):
    options = ScoringOptions(self_ensemble=False)
    results = evaluate_sets(store=store_root, options=options, config=config, with_gallery=True)
    paths = write_results(tmp_path, results)
    assert {path.name for path in paths} == {"report.html", "scores.csv", "scores.json", "scores.md"}
    text = (tmp_path / "report.html").read_text()
    page, found = Page(text), results.sets["plain"].scores.complementarity
    assert page.open == [] and all(source.startswith(("data:", "#")) for source in page.sources)
    assert "<title>one and two on plain</title>" in text and f'<p class="lead">{found.sentence}' in text
    shown = re.sub(r"<(style|script)\b.*?</\1>", "", text, flags=re.S)
    assert "fusion" not in re.sub(r"data:[^\"]*", "", shown).lower()
    assert {key["key"] for region in regions(tmp_path / "report.html") for key in region["layers"]} >= {MEAN, HR}
