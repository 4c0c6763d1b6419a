"""What experts are worth together, against NumPy on the pixels themselves."""

from itertools import combinations

import numpy as np
import pytest
import torch

from championship_sr.evaluate.methods import EXPERT, PER_IMAGE, PER_PIXEL
from championship_sr.evaluate.scoring.baselines import products_of
from championship_sr.evaluate.scoring.complementarity import Evidence, ExpertCost, complementarity
from championship_sr.evaluate.scoring.complementarity_table import signed, text
from championship_sr.evaluate.scoring.evaluation import ScoringOptions, evaluate_store
from championship_sr.store.format.variants import VARIANTS
from championship_sr.train.combination import PULL
from championship_sr.train.gains import Gain

LUMA = np.array([65.481, 128.553, 24.966]) / 255
NAMES = ("hat", "drct", "span", "edsr")


def photographs(
    count: int, experts: int, seed: int = 0, growing: float = 1
) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """HR (40, 36, 3) in uint8 and the experts' images (40, 36, 3) in 0..1; they err together and each by itself."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        hr = rng.integers(30, 220, (40, 36, 3)).astype(np.uint8)
        together = 0.02 * rng.standard_normal(hr.shape)
        own = [0.004 * (1 + growing * i) * rng.standard_normal(hr.shape) for i in range(experts)]
        made.append((hr, [(hr / 255 + together + each).astype(np.float32) for each in own]))
    return made


def products(made) -> np.ndarray:
    def one(hr, images):
        return products_of(hr, {str(i): torch.from_numpy(x).permute(2, 0, 1) for i, x in enumerate(images)}, 4)

    return np.stack([one(hr, images) for hr, images in made])


def errors(made, index: int) -> np.ndarray:
    """(pixels, E): luma errors of one image, its border cut."""
    hr, images = made[index]
    inside = np.s_[4:-4, 4:-4]
    return np.stack([((x.astype(float) - hr / 255)[inside] @ LUMA).ravel() for x in images], axis=1)


def least_squares(made, images: list[int], subset: tuple[int, ...]) -> np.ndarray:
    """The weights of sum 1 on these images, as equal ones and a departure that PULL makes dear."""
    rows = [errors(made, i)[:, subset] / np.sqrt(len(errors(made, i)) * len(images)) for i in images]
    x = np.concatenate(rows)
    mean = x.mean(1)
    ridge = np.sqrt(PULL) * np.linalg.norm(mean) * np.eye(len(subset))
    target = np.append(-mean, np.zeros(len(subset)))
    return 1 / len(subset) + np.linalg.lstsq(np.concatenate([x - mean[:, None], ridge]), target, rcond=None)[0]


def psnr(made, index: int, subset: tuple[int, ...], weights: np.ndarray) -> float:
    return float(-10 * np.log10(((errors(made, index)[:, subset] @ weights) ** 2).mean()))


@pytest.fixture(scope="module")
def made():
    return photographs(6, 4)


@pytest.fixture(scope="module")
def found(made):
    return complementarity(NAMES, Evidence(products(made)), resamples=500)


def test_every_subset_is_the_psnr_of_images_combined_by_weights_fitted_to_the_other_images(made, found):
    subsets = [c for size in range(4) for c in combinations(range(4), size + 1)]
    assert [subset.experts for subset in found.subsets] == [tuple(NAMES[i] for i in c) for c in subsets]
    for subset, indices in zip(found.subsets, subsets, strict=True):
        others = [[j for j in range(6) if j != i] for i in range(6)]
        expected = [psnr(made, i, indices, least_squares(made, others[i], indices)) for i in range(6)]
        assert subset.psnr_y == pytest.approx(np.mean(expected), abs=1e-6)
        best = [psnr(made, i, (0,), np.ones(1)) for i in range(6)]
        assert subset.gain.mean == pytest.approx(np.mean(expected) - np.mean(best), abs=1e-6)
        assert subset.gain.low <= subset.gain.mean <= subset.gain.high
        stated = least_squares(made, list(range(6)), indices)
        assert list(subset.weights.values()) == pytest.approx(stated, abs=1e-6)
    assert any("cross-validated" in note for note in found.notes)


def test_weights_of_other_images_are_used_where_there_are_some(made):
    more = photographs(3, 4, seed=5)
    found = complementarity(NAMES, Evidence(products(made), products(more)), resamples=200)
    everyone = (0, 1, 2, 3)
    weights = least_squares(more, [0, 1, 2], everyone)
    assert list(found.subsets[-1].weights.values()) == pytest.approx(weights, abs=1e-6)
    expected = np.mean([psnr(made, i, everyone, weights) for i in range(6)])
    assert found.subsets[-1].psnr_y == pytest.approx(expected, abs=1e-6)
    assert "weights fitted to 3 images that are not scored" in found.notes
    assert any("3 images are few for 4 weights" in note for note in found.notes)


def test_correlation_is_that_of_the_errors_and_own_error_what_the_others_do_not_explain(made, found):
    x = np.concatenate([errors(made, i) for i in range(6)])
    for i, a in enumerate(NAMES):
        for j, b in enumerate(NAMES):
            assert found.correlation[a][b] == pytest.approx(np.corrcoef(x.T)[i, j], abs=2e-3)
        others = [j for j in range(4) if j != i]
        left = x[:, i] - x[:, others] @ np.linalg.lstsq(x[:, others], x[:, i], rcond=None)[0]
        assert found.own_error[a] == pytest.approx((left**2).sum() / (x[:, i] ** 2).sum(), abs=1e-9)


def test_what_an_expert_adds_is_what_is_lost_without_it(found):
    scored = {subset.experts: subset.psnr_y for subset in found.subsets}
    for name in NAMES:
        without = tuple(other for other in NAMES if other != name)
        assert found.adds[name].mean == pytest.approx(scored[NAMES] - scored[without], abs=1e-9)
    assert found.best == "hat"


def test_an_expert_that_adds_nothing_is_to_be_left_out_and_its_price_is_told(made):
    doubled = products(made)[:, [0, 1, 1]][:, :, [0, 1, 1]]
    costs = {"hat": ExpertCost(10, 3.0), "drct": ExpertCost(10, 1.0), "copy": ExpertCost(30, 2.0)}
    found = complementarity(("hat", "drct", "copy"), Evidence(doubled), costs=costs, resamples=200)
    assert "drct and copy have equal images" in found.notes
    assert found.own_error["copy"] == pytest.approx(0, abs=1e-9)
    assert abs(found.adds["copy"].mean) < 1e-3
    name, more = ("copy", 50) if "Adding copy" in found.sentence else ("drct", 20)
    assert found.sentence.startswith(f"Adding {name} to the other two brings ")
    assert found.sentence.endswith(f" for {more} % more time; leave it out.")
    untimed = {name: ExpertCost(cost.parameters) for name, cost in costs.items()}
    found = complementarity(("hat", "drct", "copy"), Evidence(doubled), costs=untimed, resamples=200)
    assert "% more parameters; leave it out." in found.sentence
    assert "more" not in complementarity(("hat", "drct", "copy"), Evidence(doubled), resamples=200).sentence


def test_one_image_decides_nothing_and_a_gain_of_nothing_has_no_sign(made):
    found = complementarity(NAMES, Evidence(products(made)[:1]), resamples=20)
    assert found.sentence.endswith(" on one image, which is too few to decide.")
    assert signed(Gain(-1e-5, -1e-5, 1e-5, 0, 1, 0)) == "+0.000"
    alone = complementarity(NAMES[:1], Evidence(products(made)[:, :1, :1]), resamples=20)
    assert "own error" not in text(alone)


def test_experts_that_all_add_are_to_be_kept():
    found = complementarity(NAMES, Evidence(products(photographs(6, 4, growing=0))), resamples=200)
    least = min(found.adds, key=lambda name: found.adds[name].mean)
    assert found.sentence.startswith(f"Adding {least}, which adds least, to the other three brings ")
    assert found.sentence.endswith("; keep all four.")


def test_of_two_experts_the_other_is_named(made):
    found = complementarity(("hat", "drct"), Evidence(products(made)[:, :2, :2]), resamples=200)
    assert found.sentence.startswith("Adding drct to hat brings ") and found.sentence.endswith("; keep both.")


def test_one_expert_has_no_correlation_and_it_is_said(made):
    found = complementarity(("hat",), Evidence(products(made)[:, :1, :1]), resamples=200)
    assert found.correlation == {} and found.adds == {} and found.own_error == {"hat": 1.0}
    assert [subset.weights for subset in found.subsets] == [{"hat": 1.0}]
    assert "hat is the only expert" in found.sentence and "no correlation" in found.sentence
    assert "correlation of" not in text(found)


def test_one_image_has_equal_weights_and_it_is_said(made):
    found = complementarity(NAMES, Evidence(products(made)[:1]), resamples=200)
    assert list(found.subsets[-1].weights.values()) == pytest.approx([0.25] * 4)
    assert any("one image and no other to fit weights to" in note for note in found.notes)


def test_beyond_eight_experts_the_best_are_added_one_by_one():
    made = photographs(3, 10)
    names = tuple(f"e{i}" for i in range(10))
    found = complementarity(names, Evidence(products(made)), resamples=100)
    assert [len(subset.experts) for subset in found.subsets] == [1] * 10 + list(range(2, 11))
    larger = [set(subset.experts) for subset in found.subsets[10:]]
    assert all(a < b for a, b in zip([{found.best}, *larger], larger, strict=False))
    whole = products(made)
    pairs = [complementarity(("e0", n), Evidence(whole[:, [0, i]][:, :, [0, i]]), resamples=100).subsets[-1].psnr_y
             for i, n in enumerate(names) if i]  # fmt: skip
    assert found.best == "e0" and found.subsets[10].psnr_y == pytest.approx(max(pairs), abs=1e-9)


def test_perfect_experts_are_infinitely_good_and_stay(made):
    hr = made[0][0]
    perfect = [(hr, [(hr / 255).astype(np.float32)] * 2)] * 2
    exact = np.zeros_like(products(perfect))
    found = complementarity(("a", "b"), Evidence(exact), resamples=100)
    assert found.subsets[-1].psnr_y == np.inf and found.adds["a"].mean == 0
    assert found.correlation["a"]["b"] == 0 and found.own_error["a"] == 0


def test_plain_values_have_the_documented_form(found):
    plain = found.to_plain()
    assert set(plain["correlation"]) == set(NAMES) and plain["correlation"]["hat"]["hat"] == pytest.approx(1)
    assert set(plain["own_error"]) == set(NAMES) and len(plain["subsets"]) == 15
    assert set(plain["subsets"][-1]) == {"experts", "weights", "psnr_y", "gain"}
    assert len(plain["subsets"][-1]["gain"]) == 3 and plain["subsets"][-1]["experts"] == list(NAMES)


def test_the_text_has_a_row_for_every_subset_of_four_and_the_best_of_each_size_beyond(found):
    assert text(found).count(" + ") == 6 + 2 * 4 + 3
    five = complementarity(tuple("abcde"), Evidence(products(photographs(3, 5))), resamples=100)
    rows = [line for line in text(five).splitlines() if line.startswith(("a ", "b ", "c ", "d ", "e ")) and "+" in line]
    assert "26 more in the JSON" in text(five) and rows


def test_a_store_without_a_run_says_what_its_experts_are_worth(store_root, config):
    scores = evaluate_store(None, store_root, options=ScoringOptions(self_ensemble=False), config=config)
    together = scores.complementarity
    assert together.experts == ("one", "two") and together.images == 4
    for name in together.experts:
        alone = next(subset for subset in together.subsets if subset.experts == (name,))
        # rounding to 8 bits apart
        assert alone.psnr_y == pytest.approx(scores.mean("psnr_y", EXPERT + name), abs=0.02)
    assert set(together.oracles) == {PER_IMAGE, PER_PIXEL} and together.oracles[PER_IMAGE].mean >= 0
    assert all(cost.parameters and cost.stored_bytes for cost in together.costs.values())
    assert scores.described()["complementarity"]["sentence"] == together.sentence
    assert "complementarity" in scores.to_plain()


def test_stored_variants_give_what_x8_adds_to_every_expert(tmp_path, hr_folder, expert_entries, make_store_of, config):
    eight = make_store_of(tmp_path / "eight.store", hr_folder, expert_entries, variants=list(VARIANTS))
    scores = evaluate_store(None, eight, config=config)
    gains = scores.complementarity.self_ensemble
    assert set(gains) == {"one", "two"}
    best = scores.best_expert
    x8 = scores.gain("psnr_y", "best_expert_x8", best).mean
    assert gains[best.removeprefix(EXPERT)].mean == pytest.approx(x8, abs=0.02)
    assert all(cost.seconds for cost in scores.complementarity.costs.values())


def test_without_a_run_no_features_are_read(store_root, config, monkeypatch):
    from championship_sr.store.shards.reader import Store

    read, array = set(), Store.array

    def counted(self, image, source, name, *others):
        read.add(name)
        return array(self, image, source, name, *others)

    monkeypatch.setattr(Store, "array", counted)
    evaluate_store(None, store_root, options=ScoringOptions(self_ensemble=False), config=config)
    assert read == {"lr", "hr", "sr"}
