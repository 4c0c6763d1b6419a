"""A teacher: made once, what it says it is, known to be stale, and learnt from by the fusion."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.variants import VARIANTS
from championship_sr.store.operations.convert import convert
from championship_sr.store.operations.verify import verify
from championship_sr.store.shards.reader import Store
from championship_sr.train.config import TeacherConfig
from championship_sr.train.data.loader import Loader, Sampling
from championship_sr.train.processes import World
from championship_sr.train.records.journal import read_metrics
from championship_sr.train.run.loop import train
from championship_sr.train.students import teacher
from championship_sr.train.students.teacher import made_teacher

pytestmark = pytest.mark.usefixtures("one_thread")

ALONE = World(torch.device("cpu"))
TAUGHT = {"losses": {"stages": [{"length": "100 %", "weights": {"l1": 0.5, "teacher": 0.5}}]}}


def make(root: Path, stopping: threading.Event | None = None, **config) -> str:
    return made_teacher(Manifest.load(root), TeacherConfig(**config), ALONE, stopping or threading.Event())


def image_of(root: Path, name: str, index: int = 0, variant: str = "identity") -> np.ndarray:
    return Store(root, [name]).array(index, name, "sr", variant).load()


def test_equal_weights_make_the_mean_of_the_experts_and_no_expert_of_it(shared_copy):
    name = make(shared_copy, of="mean")
    assert name == "teacher-mean"
    mean = (image_of(shared_copy, "one") + image_of(shared_copy, "two")) / 2
    assert np.allclose(image_of(shared_copy, name), mean.clip(0, 1), atol=1e-3)
    assert list(Store(shared_copy).experts) == ["one", "two"]  # who asks for all gets no teacher
    assert not verify(shared_copy).faults
    convert(shared_copy, shared_copy.with_name("converted"), container="hdf5")
    assert np.array_equal(image_of(shared_copy.with_name("converted"), name), image_of(shared_copy, name))


def test_fitted_weights_are_those_of_least_luma_error(shared_copy):
    name = make(shared_copy, of="fitted")
    weights = Manifest.load(shared_copy).experts[name].identity["weights"]
    luma = np.array([65.481, 128.553, 24.966]) / 255
    errors = []
    for expert in ("one", "two"):
        images = [image_of(shared_copy, expert, i) - _hr(shared_copy, i) for i in range(3)]
        errors.append([image @ luma for image in images])
    products = [[np.mean([(a * b).mean() for a, b in zip(x, y, strict=True)]) for y in errors] for x in errors]
    best = (products[1][1] - products[0][1]) / (products[0][0] + products[1][1] - 2 * products[0][1])
    assert weights["one"] == pytest.approx(best, abs=1e-3) and sum(weights.values()) == pytest.approx(1)


def _hr(root: Path, index: int) -> np.ndarray:
    return Store(root, ()).array(index, "pairs", "hr").load() / 255


def test_x8_is_the_mean_over_the_variants_turned_back(make_store, tmp_path):
    root = make_store(tmp_path / "store", variants=VARIANTS)
    name = make(root, of="mean", experts=("a",), x8=True)
    assert name == "teacher-mean-a-x8"
    answers = [image_of(root, "a", variant=variant) for variant in VARIANTS]
    turned = {"mirror": 0, "mirror_rot90": 1, "mirror_rot180": 2, "mirror_rot270": 3}
    order = ("identity", "rot90", "rot180", "rot270")
    back = [np.rot90(answers[VARIANTS.index(v)], -turns) for turns, v in enumerate(order)]
    back += [np.rot90(answers[VARIANTS.index(v)], -turns)[:, ::-1] for v, turns in turned.items()]
    assert np.allclose(image_of(root, name), np.mean(back, axis=0), atol=1e-3)


def test_a_teachers_images_are_made_in_full_float32(shared_copy, monkeypatch):
    flags, variants = set(), teacher._variants

    def seen(*given):
        flags.add((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return variants(*given)

    monkeypatch.setattr(teacher, "_variants", seen)
    before = torch.backends.cudnn.allow_tf32
    make(shared_copy, of="mean")
    assert flags == {(False, False)} and torch.backends.cudnn.allow_tf32 == before


def test_missing_variants_are_named_with_the_command_that_makes_them(shared_copy):
    with pytest.raises(
        StoreError, match=r"one lacks mirror, rot90, .*extract --rebuild one --variants identity,mirror"
    ):
        make(shared_copy, of="fitted", x8=True)


def test_a_teacher_that_was_interrupted_goes_on_with_the_next_shard(make_store, tmp_path):
    roots = [make_store(tmp_path / name, n_images=5, images_per_shard=2) for name in ("whole", "cut")]

    class SetAfter(threading.Event):
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 3

    make(roots[0], of="mean")
    with pytest.raises(KeyboardInterrupt):
        make(roots[1], SetAfter(), of="mean")
    assert Manifest.load(roots[1]).recorded_shards("teacher-mean") == [0]
    first = roots[1] / "experts/teacher-mean/shard-00000.json"
    before = first.stat().st_mtime_ns
    assert make(roots[1], of="mean") == make(roots[1], of="mean") == "teacher-mean"
    assert first.stat().st_mtime_ns == before
    for index in range(5):
        assert np.array_equal(*(image_of(root, "teacher-mean", index) for root in roots))


def test_a_teacher_is_stale_once_an_expert_was_rebuilt(make_store, samples, tmp_path):
    root = make_store(tmp_path / "store")
    make(root, of="mean")
    manifest = Manifest.load(root)
    samples.add_expert(manifest, "a", 5, 9, {}, ("identity",), rebuild=True)
    manifest.swap_rebuilt("a")
    with pytest.raises(
        StoreError, match=r"teacher-mean is out of date: experts.a is .*store rm .* --expert teacher-mean"
    ):
        make(root, of="mean")
    manifest.remove_expert("teacher-mean")
    make(root, of="mean")


@pytest.fixture(scope="module")
def run_of_shared(shared_store, make_config, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return train(make_config(steps=4), shared_store, tmp_path_factory.mktemp("teachers") / "fused")


@pytest.fixture
def shared_copy(make_learnable, tmp_path) -> Path:
    return make_learnable(tmp_path / "store")


def test_a_run_teaches_what_it_makes_of_each_image(run_of_shared, shared_copy):
    from championship_sr.train.data.whole import read_stored
    from championship_sr.train.records.checkpoint import load_fusion

    name = make(shared_copy, of=str(run_of_shared))
    assert name == "teacher-fused"
    loaded = load_fusion(run_of_shared)
    whole = read_stored(Store(shared_copy), 1, loaded.experts, torch.device("cpu"))
    with torch.no_grad():
        fused = loaded.network(whole.lr, whole.images, whole.features)[0].clamp(0, 1).permute(1, 2, 0)
    assert np.allclose(image_of(shared_copy, name, 1), fused.numpy(), atol=1e-3)


def test_a_run_of_other_experts_is_no_teacher(run_of_shared, make_store, make_learnable, tmp_path):
    with pytest.raises(StoreError, match=r"no expert one \(has: a, b\)"):
        make(make_store(tmp_path / "other"), of=str(run_of_shared))
    root = make_learnable(tmp_path / "swapped", channels={"two": 7, "one": 5})
    with pytest.raises(StoreError, match="another weights_sha256 than the one the run was trained with"):
        make(root, of=str(run_of_shared))
    with pytest.raises(ConfigError, match=r"teacher.of=nowhere: neither fitted nor mean nor the folder of a run"):
        make(root, of="nowhere")


def test_the_fusion_learns_from_a_teacher_and_is_measured_against_it(make_config, shared_copy, tmp_path):
    run = train(make_config(steps=4, teacher={"of": "mean"}, **TAUGHT), shared_copy, tmp_path / "run")
    events = read_metrics(run)
    assert set(events[0]["psnr"]) == {"one", "two", "teacher", "mean", "fitted"}
    assert events[0]["psnr"]["teacher"] == pytest.approx(events[0]["psnr"]["mean"], abs=0.05)
    losses = next(event for event in events if event["event"] == "train")["losses"]
    assert set(losses) == {"l1", "teacher"}
    Manifest.load(shared_copy).remove_expert("teacher-mean")
    make(shared_copy, of="mean", experts=("one",))
    other = make_config(steps=8, teacher={"of": "mean", "experts": ["one"]}, **TAUGHT)
    with pytest.raises(ConfigError, match=r"another configuration: teacher.experts is"):
        train(other, shared_copy, run, resume=True, changes=True)


def test_teacher_windows_are_turned_as_hr_is(make_store, tmp_path):
    root = make_store(tmp_path / "store", variants=VARIANTS, sizes=((16, 20),))
    name = make(root, of="mean")
    store = Store(root, ["a", name])
    loader = Loader(
        store, Sampling(8, 8, 0, augment="stored"), ["a"], features=False, teacher=name, images=[0]
    )  # fmt: skip
    batch = loader.batch(0)
    assert {place[3] for place in batch.places} - {"identity"}
    from championship_sr.store.format.variants import transform

    whole = torch.from_numpy(store.array(0, name, "sr").load())
    for row, (_, y, x, variant) in enumerate(batch.places):
        window = transform(whole[y * 4 : y * 4 + 32, x * 4 : x * 4 + 32], variant)
        assert torch.equal(batch.teacher[row], window.permute(2, 0, 1))


@pytest.mark.parametrize(
    "changes, message",
    [
        (TAUGHT, "losses: the loss teacher needs a teacher"),
        ({"teacher": {"of": "mean"}}, "teacher: no stage learns from it"),
        ({"teacher": {"x8": True}}, "teacher: of is missing"),
        ({"teacher": {"of": "mean"}, "live": {"enabled": True}, **TAUGHT}, "live training changes the images"),
        ({"teacher": {"of": "run", "experts": ["one"]}, **TAUGHT}, "experts: a run has its own"),
    ],
)
def test_teachers_and_losses_that_do_not_fit_are_refused(make_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(**changes)


def test_weights_change_evenly_to_those_at_the_end_of_a_stage(make_config):
    from championship_sr.train.config import loss_stages
    from championship_sr.train.schedule import RunLength

    stage = {"length": "100 %", "weights": {"teacher": 1.0}, "to": {"teacher": 0.0, "l1": 1.0}}
    config = make_config(teacher={"of": "mean"}, losses={"stages": [stage]})
    place = loss_stages(config, RunLength(5, 5))
    weights = [config.losses.stages[0].weights_at(place.done(step)) for step in range(5)]
    assert [w["teacher"] for w in weights] == [1, 0.75, 0.5, 0.25, 0]
    assert [w["l1"] for w in weights] == [0, 0.25, 0.5, 0.75, 1]
    assert config.losses.used == ("l1", "teacher")


def test_without_hr_the_teacher_alone_is_learnt_from(make_learnable, make_config, tmp_path):
    root = without_hr(make_learnable(tmp_path / "with"), tmp_path / "store")
    only = {"losses": {"stages": [{"length": "100 %", "weights": {"teacher": 1.0}}]}}
    with pytest.raises(StoreError, match="made from LR images alone, but weights are fitted to HR"):
        make(root, of="fitted")
    with pytest.raises(StoreError, match="made from LR images alone, but training needs HR images"):
        train(make_config(teacher={"of": "mean"}, **TAUGHT), root, tmp_path / "run")
    run = train(make_config(steps=4, teacher={"of": "mean"}, **only), root, tmp_path / "run")
    assert "teacher" not in read_metrics(run)[0]["psnr"]  # it is what is measured against


def without_hr(root: Path, out: Path) -> Path:
    """The same store of the LR images alone."""
    from championship_sr.store.format.layout import PAIRS
    from championship_sr.store.shards.writer import write_shard

    store = Store(root)
    images = [replace(image, hr_sha256=None) for image in store.images]
    manifest = Manifest.create(out, scale=4, container="zarr", images=images)
    for expert in store.experts.values():
        manifest.add_expert(expert)
    for source in manifest.sources:
        with write_shard(manifest, source, 0) as writer:
            for index, image in enumerate(images):
                names = [spec.name for spec in manifest.specs(source)]
                writer.add(image.id, {name: store.array(index, source, name).load() for name in names})
    assert PAIRS in manifest.sources
    return out
