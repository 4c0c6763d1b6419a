from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers, lists, sampled_from, tuples

from championship_sr.store.errors import ConfigError
from championship_sr.train.data.sampler import Sampler, node_share, permute

SIZES = [(40, 70), (64, 30), (33, 33), (90, 50)]


def sampler(sizes=SIZES, **options):
    return Sampler(sizes, **{"batch_size": 6, "crop_px": 16, "seed": 5, "repeat_factor": 7} | options)


def whole_epoch(sizes=SIZES, epoch=0, **options):
    slots = sampler(sizes, **options).samples_per_epoch
    return sampler(sizes, **options | {"batch_size": slots}).places(epoch)


@given(n=integers(1, 3000), key=integers(0, 2**64 - 1))
def test_a_permutation_reaches_every_number_once(n, key):
    index = np.arange(n)
    placed = permute(index, np.full(n, n), np.full(n, key, dtype=np.uint64))
    assert sorted(placed.tolist()) == index.tolist()


def test_permutations_send_an_index_everywhere_alike():
    n, trials = 7, 7000
    keys = np.arange(trials, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for index in (0, 3, 6):
        counts = np.bincount(permute(np.full(trials, index), np.full(trials, n), keys), minlength=n)
        chi_square = ((counts - trials / n) ** 2 / (trials / n)).sum()
        assert chi_square < 22.5  # 6 degrees of freedom: exceeded once in 1000 by chance


@settings(max_examples=50)
@given(
    sizes=lists(tuples(integers(16, 80), integers(16, 80)), min_size=1, max_size=9),
    seed=integers(-(2**70), 2**70),
    step=integers(0, 10**9),
    visit=integers(1, 5),
    pool=integers(1, 9),
    weighting=sampled_from(["crops", "images"]),
)
def test_every_window_lies_inside_its_image(sizes, seed, step, visit, pool, weighting):
    made = sampler(sizes, seed=seed, crops_per_visit=visit, pool_visits=pool, weighting=weighting)
    for place in made.places(step):
        rows, cols = sizes[place.image]
        assert 0 <= place.y <= rows - 16 and 0 <= place.x <= cols - 16


@settings(max_examples=30)
@given(
    step=integers(0, 10**6),
    steps=integers(1, 9),
    visit=integers(1, 5),
    batch=integers(1, 40),
    at_once=sampled_from([0, 1, 2]),
)
def test_steps_drawn_together_are_the_steps_drawn_one_by_one(step, steps, visit, batch, at_once):
    """Batches of up to 40 windows over epochs of 28: most begin in one epoch and end in another."""
    shards = {"shards": [0, 0, 1, 2], "shards_at_once": at_once}
    made = sampler(batch_size=batch, crops_per_visit=visit, pool_visits=3, **shards)
    apart = [place for each in range(step, step + steps) for place in made.places(each)]
    assert made.places(step, steps) == apart


@settings(max_examples=30)
@given(visit=integers(1, 5), pool=integers(1, 9), epoch=integers(0, 50), repeat=integers(1, 9))
def test_an_epoch_shows_each_image_repeat_factor_times(visit, pool, epoch, repeat):
    options = {"crops_per_visit": visit, "pool_visits": pool, "repeat_factor": repeat, "weighting": "images"}
    seen = Counter(place.image for place in whole_epoch(epoch=epoch, **options))
    visits = -(-len(SIZES) * repeat // visit)
    for image in range(len(SIZES)):
        assert visits // len(SIZES) * visit <= seen[image] <= -(-visits // len(SIZES)) * visit


def test_crops_weighting_makes_every_window_as_likely():
    sizes = [(16, 16), (16, 18), (17, 19)]  # 1, 3 and 8 windows of 16 x 16
    seen = Counter(place[:3] for place in whole_epoch(sizes, repeat_factor=4000))
    assert len(seen) == 12
    assert all(abs(count - 1000) < 4 * np.sqrt(1000) for count in seen.values())


@settings(max_examples=30)
@given(step=integers(0, 300), visit=integers(1, 4), pool=integers(1, 9))
def test_the_batch_size_cuts_one_and_the_same_row_of_places(step, visit, pool):
    options = {"crops_per_visit": visit, "pool_visits": pool}
    whole = sampler(batch_size=6, **options).places(step)
    thirds = [place for part in range(3) for place in sampler(batch_size=2, **options).places(3 * step + part)]
    assert whole == thirds


def test_places_depend_on_seed_epoch_and_nothing_else():
    made = sampler()
    made.places(17)
    assert made.places(3) == sampler().places(3)
    assert made.places(3) != sampler(seed=6).places(3)
    assert whole_epoch(epoch=0) != whole_epoch(epoch=1)


@pytest.mark.parametrize("visit", [1, 3])
def test_positions_are_uniform_also_within_visits(visit):
    places = whole_epoch([(23, 31)], repeat_factor=9600, crops_per_visit=visit)
    for axis, positions in (("y", 8), ("x", 16)):
        counts = np.bincount([getattr(place, axis) for place in places], minlength=positions)
        expected = len(places) / positions
        # windows of a visit share y, which scales the variance of the counts by their number
        assert ((counts - expected) ** 2 / expected).sum() < 40 * visit


def test_the_windows_of_a_visit_lie_side_by_side_in_one_band():
    places = whole_epoch([(40, 200)] * 5, crops_per_visit=4, pool_visits=1, repeat_factor=4, weighting="images")
    for start in range(0, len(places), 4):
        visit = places[start : start + 4]
        assert len({(place.image, place.y) for place in visit}) == 1
        lefts = sorted(place.x for place in visit)
        assert all(after - before >= 16 for before, after in pairwise(lefts))


def test_a_pool_holds_so_many_visits_and_mixes_them():
    places = whole_epoch([(40, 200)] * 50, crops_per_visit=4, pool_visits=8, repeat_factor=4, weighting="images")
    pool = [place.image for place in places[:32]]
    assert set(Counter(pool).values()) == {4}
    assert pool != sorted(pool, key=pool.index)


def test_variants_are_drawn_alike_often():
    names = ("identity", "mirror", "rot90")
    seen = Counter(place.variant for place in whole_epoch(repeat_factor=3000, variants=names))
    assert set(seen) == set(names)
    assert all(abs(count - 4000) < 4 * np.sqrt(4000) for count in seen.values())


def test_epochs_are_counted_in_samples():
    made = sampler(repeat_factor=3, batch_size=5)
    assert made.samples_per_epoch == 12
    assert made.epoch(12) == 5.0


def test_an_image_smaller_than_the_crop_is_named():
    with pytest.raises(ConfigError, match="crop_px=16: 1 of 2 images are smaller, such as number 1 with 15 x 80"):
        sampler([(20, 20), (15, 80)])


@pytest.mark.parametrize("name", ["batch_size", "repeat_factor", "crops_per_visit", "pool_visits", "crop_px"])
def test_a_count_of_zero_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name}=0"):
        sampler(**{name: 0})


def test_no_images_are_refused():
    with pytest.raises(ConfigError, match="images=0"):
        sampler([])


@settings(max_examples=40)
@given(
    sizes=lists(tuples(integers(16, 60), integers(16, 60)), min_size=2, max_size=24),
    per_shard=integers(1, 4),
    at_once=integers(1, 6),
    visit=integers(1, 3),
    epoch=integers(0, 9),
    weighting=sampled_from(["crops", "images"]),
)
def test_groups_of_shards_show_the_same_windows_in_another_order(sizes, per_shard, at_once, visit, epoch, weighting):
    options = {"crops_per_visit": visit, "weighting": weighting, "epoch": epoch}
    shards = [image // per_shard for image in range(len(sizes))]
    grouped = whole_epoch(sizes, shards=shards, shards_at_once=at_once, **options)
    assert Counter(grouped) == Counter(whole_epoch(sizes, **options))


def test_so_many_shards_are_visited_before_the_next_ones():
    sizes, shards = [(20, 20)] * 24, [image // 2 for image in range(24)]
    order = [shards[p.image] for p in whole_epoch(sizes, shards=shards, shards_at_once=3, pool_visits=1)]
    groups = [order[first : first + 3 * 2 * 7] for first in range(0, len(order), 3 * 2 * 7)]
    assert len(groups) == 4 and all(len(set(group)) == 3 for group in groups)
    assert all(len(set(pair)) > 1 for pair in zip(*[iter(groups[0])] * 14, strict=True))  # mixed within
    second = [shards[p.image] for p in whole_epoch(sizes, epoch=1, shards=shards, shards_at_once=3, pool_visits=1)]
    assert {*groups[0]} != {*second[:42]}  # other shards come together in another epoch


@settings(max_examples=50)
@given(
    weights=lists(integers(1, 9), min_size=12, max_size=40),
    per_shard=integers(1, 3),
    nodes=lists(integers(1, 4), min_size=1, max_size=4),
)
def test_nodes_share_whole_shards_without_rest_in_proportion_to_their_ranks(weights, per_shard, nodes):
    shards = np.arange(len(weights)) // per_shard
    shares = [node_share(np.array(weights, float), shards, nodes, node).tolist() for node in range(len(nodes))]
    assert sorted(image for share in shares for image in share) == list(range(len(weights)))
    owners = [{int(shards[image]) for image in share} for share in shares]
    assert sum(map(len, owners)) == len(set().union(*owners))
    heaviest = max(sum(weights[first : first + per_shard]) for first in range(0, len(weights), per_shard))
    for share, ranks in zip(shares, nodes, strict=True):
        # the heaviest first to the lightest: no node is further above its due than by one shard
        assert sum(weights[image] for image in share) <= sum(weights) * ranks / sum(nodes) + heaviest


def test_more_nodes_than_shards_are_refused():
    with pytest.raises(ConfigError, match="2 nodes, but only 1 shards"):
        node_share(np.ones(3), np.zeros(3), (1, 1), 0)
