"""The report: one file, whole, and true to the scores."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from championship_sr.evaluate.methods import EXPERT, FUSION, MEAN
from championship_sr.evaluate.report import charts
from championship_sr.evaluate.report.colours import INFERNO, categories, coloured, data_uri
from championship_sr.evaluate.report.gallery import WINDOW_LR_PX, Gallery, nearest_expert
from championship_sr.evaluate.report.report import evaluate_with_report
from championship_sr.evaluate.scoring.cases import Case
from championship_sr.evaluate.scoring.comparison import Pictures
from championship_sr.train.run.journal import METRICS_FILE

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
    scores, path = evaluate_with_report(run_root, store_root, tmp_path_factory.mktemp("report"), config=config)
    return scores, path


def test_the_page_needs_no_other_file(written):
    page = Page(written[1].read_text())
    assert page.open == []
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert all(image["loading"] == "lazy" and image["alt"] for image in page.images)
    assert "http" not in re.sub(r"data:[^\"]*", "", written[1].read_text())


def test_its_pictures_open(written):
    page = Page(written[1].read_text())
    assert len(page.images) > 10
    for image in page.images:
        Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).load()


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
    assert text.count('class="fill s') == 2


def test_the_scores_lie_beside_it(written):
    scores, path = written
    assert (path.parent / "scores.csv").read_text() == scores.csv()
    assert scores.markdown() in (path.parent / "scores.md").read_text()


def pictures(gain_at: tuple[int, int]) -> Pictures:
    """An image of 100 x 120 LR pixels: the fusion is right but in one place, where it is the expert that is right."""
    hr = np.full((200, 240, 3), 100, np.uint8)
    expert, fusion = hr.copy(), hr.copy()
    y, x = gain_at
    expert[2 * y : 2 * y + 20, 2 * x : 2 * x + 20] = 120
    fusion[160:180, 200:220] = 120
    case = Case("image", lambda: None, lambda *_: None)
    images = {EXPERT + "one": expert, MEAN: expert, FUSION: fusion}
    return Pictures(case, np.zeros((100, 120, 3), np.uint8), hr, images, {})


def test_windows_lie_where_the_fusion_gains_and_loses():
    gallery = Gallery(scale=2)
    gallery(pictures((20, 30)))
    gain, loss = gallery.gains[0], gallery.losses[0]
    assert gain.y <= 20 and gain.y + WINDOW_LR_PX >= 30 and gain.x <= 30 and gain.x + WINDOW_LR_PX >= 40
    assert loss.y <= 80 <= loss.y + WINDOW_LR_PX and loss.x <= 100 <= loss.x + WINDOW_LR_PX
    assert gain.gain > 0 > loss.gain and gain.gain == pytest.approx(-loss.gain)
    assert gain.errors()[FUSION].max() == 0 and gain.errors()[EXPERT + "one"].max() > 10


def test_windows_of_one_image_do_not_overlap():
    gallery = Gallery(scale=2)
    gallery(pictures((20, 30)))
    for cuts in (gallery.gains, gallery.losses):
        places = [(cut.y, cut.x) for cut in cuts]
        assert len(set(places)) == len(places)
        assert all(
            abs(a[0] - b[0]) >= WINDOW_LR_PX or abs(a[1] - b[1]) >= WINDOW_LR_PX
            for i, a in enumerate(places)
            for b in places[:i]
        )


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
        charts.bars({str(i): v for i, v in enumerate(values)}, y_title="y"),
        charts.line_chart({"a": list(enumerate(values))}, {"level": 1.0}, x_title="x", y_title="y"),
        charts.line_chart({"a": list(enumerate(values))}, x_title="x", y_title="y", log_y=True),
    ):
        assert "nan" not in chart and "inf" not in chart.replace("infinit", "")
