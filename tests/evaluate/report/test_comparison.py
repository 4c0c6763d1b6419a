"""The comparison view in a real browser: true to the metric, and usable by keys, touch and screen readers."""

import base64
import io
import math
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from championship_sr.evaluate.methods import BICUBIC, EXPERT, FITTED, FUSION, MEAN
from championship_sr.evaluate.metrics import to_tensor
from championship_sr.evaluate.model import load
from championship_sr.evaluate.report.gallery import Gallery
from championship_sr.evaluate.report.report import write_report
from championship_sr.evaluate.scoring.evaluation import ScoringOptions, evaluate_store
from championship_sr.train.metrics import psnr, rgb_to_y

SCALE = 4
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
    "--hide-scrollbars",
)
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}

selenium = pytest.importorskip("selenium", reason="no selenium: the report is not tried in a browser")
if not (CHROMIUM and DRIVER):
    pytest.skip("no chromium with chromedriver: the report is not tried in a browser", allow_module_level=True)

from selenium.webdriver import ActionChains, Chrome, ChromeOptions  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402


class Windows(Gallery):
    """Keeps no image whole, as if all were too large."""

    def _share(self, total: int) -> int:
        return 0


@pytest.fixture(scope="module")
def report(tmp_path_factory, run_root, store_root, config):
    """(the page, the scores, image -> method -> pixels); beside it windows.html, in which no image is kept whole."""
    gallery, seen = Gallery(SCALE, config.border(SCALE)), {}
    narrow = Windows(SCALE, config.border(SCALE))

    def observe(pictures):
        gallery(pictures)
        narrow(pictures)
        seen[pictures.case.name] = pictures.images | {"HR": pictures.hr}

    model = load(run_root, config=config)
    options = ScoringOptions(self_ensemble=False, observe=observe)
    scores = evaluate_store(model, store_root, options=options, config=config)
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path.with_name("windows.html"), scores, narrow, model, "photographs")
    return write_report(path, scores, gallery, model, "photographs"), scores, seen


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in [*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The report as its reader has it."""

    def __init__(self, browser, path) -> None:
        self.browser = browser
        browser.get(path.as_uri())
        self.settle()

    def settle(self) -> None:
        """Waits until the figures are those of what is in view."""
        deadline = time.monotonic() + 20
        script = "return !document.getElementById('stage').hasAttribute('aria-busy')"
        while not (self.browser.execute_script(script) and self.text("where")):
            assert time.monotonic() < deadline, "the comparison does not settle"
            time.sleep(0.02)

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, identifier: str) -> str:
        return self.find(f"#{identifier}").text

    def choose(self, side: str, choice: str) -> None:
        Select(self.find(f"#{side}")).select_by_value(choice)
        self.settle()

    def click(self, selector: str) -> None:
        self.browser.execute_script("arguments[0].click()", self.find(selector))
        self.settle()

    def keys(self, *keys: str, to: str = "#stage") -> None:
        self.find(to).send_keys(*keys)
        time.sleep(0.05)
        self.settle()

    def psnr(self, side: str) -> float:
        return float(re.search(r"([\d.]+|∞) dB", self.text(f"{side}-chip"))[1])

    def box(self) -> tuple[slice, slice]:
        """Rows and columns in view."""
        first, last, left, right = re.search(
            r"rows (\d+) to (\d+), columns (\d+) to (\d+)$", self.text("where")
        ).groups()
        return slice(int(first), int(last) + 1), slice(int(left), int(right) + 1)

    def canvas(self) -> np.ndarray:
        """What is painted, (H, W, 3)."""
        script = "return document.querySelector('#stage canvas').toDataURL('image/png')"
        data = self.browser.execute_script(script).partition(",")[2]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


@pytest.fixture
def page(browser, report):
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page = Page(browser, report[0])
    page.click("input[name=list][value=images]")
    page.click("#list-images button")
    return page


def area(box: tuple[slice, slice]) -> int:
    return math.prod(side.stop - side.start for side in box)


def counted(box: tuple[slice, slice], image: np.ndarray) -> tuple[slice, slice]:
    """The part of a box that the scores of the image count."""
    return tuple(
        slice(max(side.start, SCALE), min(side.stop, length - SCALE))
        for side, length in zip(box, image.shape, strict=False)
    )


def luma_psnr(sr: np.ndarray, hr: np.ndarray) -> float:
    return psnr(rgb_to_y(to_tensor(sr)), rgb_to_y(to_tensor(hr)), border=0).item()


def test_psnr_of_whole_images_is_that_of_the_table(page, report):
    _, scores, _ = report
    buttons = page.browser.find_elements(By.CSS_SELECTOR, "#list-images button")
    assert len(buttons) == len(scores.images)
    for number, button in enumerate(buttons):
        page.browser.execute_script("arguments[0].click()", button)
        page.settle()
        for method in (BICUBIC, EXPERT + "one", EXPERT + "two", MEAN, FUSION, *({FITTED} & set(scores.methods))):
            page.choose("left", f"picture:{method}")
            assert page.psnr("left") == pytest.approx(scores.values["psnr_y"][method][number], abs=6e-4), method


def test_psnr_of_a_part_is_the_metric_of_its_pixels(page, report):
    _, scores, seen = report
    page.choose("left", f"picture:{EXPERT}one")
    page.keys("+", "+", "+", "+", "+", Keys.ARROW_RIGHT, Keys.ARROW_UP)
    images = seen[scores.images[0]]
    assert area(page.box()) < images["HR"][..., 0].size / 2
    place = counted(page.box(), images["HR"])
    for side, method in (("left", EXPERT + "one"), ("right", FUSION)):
        assert page.psnr(side) == pytest.approx(luma_psnr(images[method][place], images["HR"][place]), abs=6e-4)
    difference = float(re.match(r"[+−][\d.]+", page.text("difference"))[0].replace("−", "-"))
    assert difference == pytest.approx(page.psnr("right") - page.psnr("left"), abs=1.1e-3)


def test_windows_of_images_that_are_not_there_whole_are_scored_as_parts_of_them(browser, report):
    path, _, seen = report
    page = Page(browser, path.with_name("windows.html"))
    windows = page.browser.find_elements(By.CSS_SELECTOR, ".thumbnails button")
    assert len(windows) >= 2 and not page.browser.find_elements(By.ID, "list-images")
    for window in windows:
        page.browser.execute_script("arguments[0].click()", window)
        page.settle()
        images = seen[page.text("where").partition(":")[0]]
        place = counted(page.box(), images["HR"])
        for side in ("left", "right"):
            method = page.find(f"#{side}").get_attribute("value").removeprefix("picture:")
            assert page.psnr(side) == pytest.approx(luma_psnr(images[method][place], images["HR"][place]), abs=6e-4)


def test_the_next_window_is_one_key_away(page):
    names = [
        button.text.split("\n")[0] for button in page.browser.find_elements(By.CSS_SELECTOR, "#list-images button")
    ]
    page.keys("n")
    assert page.text("where").startswith(names[1])
    page.keys("p", "p")
    assert page.text("where").startswith(names[-1])


def test_single_pixels_are_squares_of_one_colour(page, report):
    _, scores, seen = report
    page.choose("right", "picture:HR")
    page.keys(*["+"] * 20)
    assert page.text("percent") == "4800 %"
    rows, cols = page.box()
    shown = {tuple(colour) for colour in seen[scores.images[0]]["HR"][rows, cols].reshape(-1, 3)}
    right_half = page.canvas()[::7, 720::7].reshape(-1, 3)
    assert {tuple(colour) for colour in right_half} <= shown


def test_both_sides_move_in_step(page):
    page.choose("left", f"picture:{FUSION}")
    page.click("input[value=beside]")
    page.keys("+", "+", "+", Keys.ARROW_LEFT)
    canvas = page.canvas()[:300]  # above the overview
    half = canvas.shape[1] // 2
    assert np.array_equal(canvas[:, 2 : half - 2], canvas[:, half + 2 : 2 * half - 2])
    assert canvas[:, 10:200].std() > 1


def test_the_divider_parts_two_pictures_and_moves_by_keys_and_by_dragging(page):
    divider = page.find("#divider")
    assert divider.get_attribute("role") == "slider" and divider.get_attribute("aria-valuenow") == "50"
    page.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, to="#divider")
    assert divider.get_attribute("aria-valuenow") == "54"
    ActionChains(page.browser).drag_and_drop_by_offset(divider, -200, 0).perform()
    page.settle()
    share = 100 * (0.54 - 200 / page.find("#stage").size["width"])
    assert float(divider.get_attribute("aria-valuenow")) == pytest.approx(share, abs=1.5)


def test_space_blinks_and_a_tap_too(page):
    left, right = page.find("#left-chip"), page.find("#right-chip")
    page.keys(" ")
    assert left.is_displayed() and not right.is_displayed()
    page.keys(" ")
    assert right.is_displayed() and not left.is_displayed()
    before = page.canvas()
    page.find("#stage canvas").click()
    time.sleep(0.05)
    page.settle()
    assert left.is_displayed() and not np.array_equal(page.canvas(), before)


def test_errors_and_maps_are_shown_with_their_range(page, report):
    page.choose("left", f"error:{FUSION}")
    page.choose("right", "map:gates: one")
    legends = page.text("legends")
    assert "Luma error without sign: 0" in legends and "of 255" in legends and "gates: one" in legends
    assert re.search(r"\d\.\d\d to \d\.\d\d", page.text("right-chip"))
    page.choose("right", "map:nearest expert")
    assert "one" in page.text("legends") and "two" in page.text("legends")


def test_fingers_zoom_and_move(page):
    stage = page.find("#stage")
    page.browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    page.browser.execute_script("arguments[0].scrollIntoView()", stage)
    box = page.browser.execute_script("return document.getElementById('stage').getBoundingClientRect().toJSON()")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def touch(kind: str, *points: tuple[float, float]) -> None:
        content = {"type": kind, "touchPoints": [{"x": px, "y": py, "id": i} for i, (px, py) in enumerate(points)]}
        page.browser.execute_cdp_cmd("Input.dispatchTouchEvent", content)

    before = page.box()
    touch("touchStart", (x - 40, y), (x + 40, y))
    for spread in (60, 80, 100, 120):
        touch("touchMove", (x - spread, y), (x + spread, y))
    touch("touchEnd")
    page.settle()
    pinched = page.box()
    assert area(pinched) < area(before) / 3
    touch("touchStart", (x + 100, y))
    for way in (30, 60, 90):
        touch("touchMove", (x + 100 - way, y))
    touch("touchEnd")
    page.settle()
    assert page.box()[1].start > pinched[1].start
    page.browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_what_is_in_view_is_said_to_screen_readers(page):
    page.keys("+")
    deadline = time.monotonic() + 5
    live = page.find("#live")
    while "zoom" not in live.get_attribute("textContent") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert re.search(r"dB in view.*difference.*rows.*zoom", live.get_attribute("textContent"))
    unnamed = page.browser.execute_script(
        "return [...document.querySelectorAll('button, select, input, [role=slider], [role=application]')].filter("
        "(e) => !(e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent).trim()).length"
    )
    assert unnamed == 0
    assert page.find("#stage").get_attribute("aria-label").endswith("photo0")


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_the_page_fits_a_phone_and_follows_the_scheme(page, scheme, dark):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    page.settle()
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= PHONE["width"]
    background = page.browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 128) == dark
    for button in page.browser.find_elements(By.CSS_SELECTOR, ".controls button"):
        assert not button.is_displayed() or button.size["height"] >= 34


def test_nothing_is_loaded_and_nothing_fails(page):
    loaded = page.browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith("data:") for name in loaded)
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert math.isfinite(page.psnr("left"))
