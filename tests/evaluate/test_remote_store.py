"""A store in object storage is scored and fused as the same store in a folder is, through a cache of bounded size."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from championship_sr import evaluate as evaluate_function
from championship_sr.evaluate.commands import evaluate, upscale
from championship_sr.store.errors import StoreError
from championship_sr.store.remote.cache import ShardCache
from championship_sr.store.remote.transfer import push, tree_bytes

FAST = ("--set", "evaluate.bootstrap=200", "--set", "evaluate.device=cpu", "--no-self-ensemble")


@pytest.fixture(scope="module")
def local(tmp_path_factory, hr_folder, expert_entries, make_store_of) -> Path:
    """A store of four shards of one image each."""
    root = tmp_path_factory.mktemp("stores") / "photos.store"
    return make_store_of(root, hr_folder, expert_entries, container="hdf5", images_per_shard=1)


@pytest.fixture
def url(local, bucket) -> str:
    push(local, f"{bucket}/photos.store")
    return f"{bucket}/photos.store"


def call(command, *arguments) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


def scored(*arguments) -> dict:
    """What `evaluate --json` says, without times and sizes, which no two calls have in common."""
    (content,) = json.loads(call(evaluate, *arguments, *FAST, "--json"))["sets"].values()
    assert all(cost["stored_bytes"] for cost in content["complementarity"].pop("costs").values())
    kept = ("images", "values", "fitted_weights", "notes", "used_for")
    return {"together": content["complementarity"], **{key: content["scores"][key] for key in kept}}


def test_scores_and_what_experts_are_worth_together_are_those_of_the_folder(local, url, run_root, tmp_path):
    remote = scored("--store", url, "--cache", tmp_path / "cache", "--report", tmp_path / "report")
    assert remote == scored("--store", local) and len(remote["images"]) == 4
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
    with_run = ("--run", run_root, "--images", "photo1", "--images", "photo2")
    here = scored(*with_run, "--store", local, "--fit-store", local)
    assert scored(*with_run, "--store", url, "--fit-store", url) == here
    assert evaluate_function(store=url, self_ensemble=False, config={"bootstrap": 200}).sets["photos"]


def test_the_cache_takes_no_more_than_its_limit(local, url, run_root, tmp_path, monkeypatch):
    shards = [local / "pairs", *sorted((local / "experts").iterdir())]
    largest = max(sum(tree_bytes(folder / f"shard-0000{n}.h5") for folder in shards) for n in range(4))
    cache, most = tmp_path / "cache", []
    fetch = ShardCache._fetch

    def fetched(*arguments):
        fetch(*arguments)
        most.append(sum(path.stat().st_size for path in cache.rglob("*.h5")))

    monkeypatch.setattr(ShardCache, "_fetch", fetched)
    limited = ("--cache", cache, "--cache-gb", f"{1.5 * largest / 1e9:.9f}")
    assert scored("--run", run_root, "--store", url, *limited) == scored("--run", run_root, "--store", local)
    assert len(most) >= 4 and max(most) <= 1.5 * largest
    with pytest.raises(StoreError, match=r"GB are too small for a shard of .* GB: raise --cache-gb"):
        scored("--store", url, "--cache", tmp_path / "small", "--cache-gb", "1e-6")


def test_what_experts_said_is_fused_from_a_bucket(local, url, run_root, tmp_path):
    here, there = (call(upscale, "--run", run_root, place, tmp_path / name).split() for name, place in
                   (("here", local), ("there", url)))  # fmt: skip
    assert len(there) == 4
    assert [Path(path).read_bytes() for path in here] == [Path(path).read_bytes() for path in there]


def test_a_url_without_a_store_is_one_line(bucket):
    with pytest.raises(StoreError, match=r"s3://.*/nothing: not a feature store \(it has no store.yaml\)"):
        scored("--store", f"{bucket}/nothing")
