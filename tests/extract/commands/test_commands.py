import json

import pytest
import yaml
from click.testing import CliRunner

from championship_sr.extract.commands.bench import bench_extract
from championship_sr.extract.commands.experts import experts
from championship_sr.extract.commands.extract import extract
from championship_sr.extract.commands.options import size_text
from championship_sr.extract.commands.plan import plan
from championship_sr.store.config import to_plain
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.shards.reader import Store


@pytest.fixture
def run():
    """Runs a command; its result, and its last line as JSON where there is one."""

    def invoke(command, *args, code: int = 0):
        result = CliRunner().invoke(command, [str(arg) for arg in args])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def config_file(make_config, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"extract": to_plain(make_config())}))
    return path


def test_extract_fills_a_store_and_says_so(run, config_file, tmp_path):
    result = run(extract, "--config", config_file)
    lines = result.stdout.splitlines()
    assert lines[-2].startswith("tiny: 3 shards written, ") and lines[-1] == f"{tmp_path / 'store'}: 3 images, 3 shards"
    again = json.loads(run(extract, "--config", config_file, "--json").stdout.splitlines()[-1])
    assert again["experts"]["tiny"]["shards_written"] == 0 and again["images"] == 3
    Store(tmp_path / "store", ["tiny"])


def test_options_stand_over_the_file_and_alone(run, save_edsr, save_photos, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(save_edsr()))
    photos = save_photos()
    args = ("--hr", photos, "--store", tmp_path / "other", "--set", f"extract.experts=[{tmp_path / 'tiny.yaml'}]")
    run(extract, *args, "--variants", "identity,mirror", "--part", "1/2", "--limit", 2)
    store = Store(tmp_path / "other", whole=False)
    assert len(store.images) == 2 and store.experts["tiny"].variants == ("identity", "mirror")


def test_experts_are_chosen_by_name_by_file_and_among_those_of_the_package(run, config_file, save_edsr, tmp_path):
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(save_edsr("other", seed=1)))
    chosen = ("--expert", tmp_path / "other.yaml", "--expert", "tiny", "--expert", "edsr-xs")
    made = json.loads(run(plan, "--config", config_file, *chosen, "--json").stdout)
    assert [expert["name"] for expert in made["experts"]] == ["other", "tiny", "edsr-xs"]
    run(extract, "--config", config_file, *chosen[:4], "--without-features", "--limit", 1)
    store = Store(tmp_path / "store")
    assert [len(expert.arrays) for expert in store.experts.values()] == [1, 1]
    assert list(store.experts) == ["other", "tiny"]


def test_wrong_options_are_refused_with_the_key(run, config_file):
    with pytest.raises(ConfigError, match=r"extract.tile: no such key"):
        run(extract, "--config", config_file, "--set", "extract.tile=3")
    with pytest.raises(ConfigError, match=r"--part 3/2: expected I/N"):
        run(extract, "--config", config_file, "--part", "3/2")
    with pytest.raises(ConfigError, match=r"give --store, or a --config with an `extract` section"):
        run(extract)
    with pytest.raises(ConfigError, match=r"give --root, --hr or --lr, or a --config with an `extract` section"):
        run(plan)


def test_a_plan_is_a_table_or_json(run, config_file):
    lr_px = sum(rows * cols for rows, cols in ((16, 12), (12, 20), (10, 10)))  # of HR in conftest.py, over 4
    text = run(plan, "--config", config_file).stdout
    assert (
        f"3 images, {lr_px:,} LR pixels, 3 shards" in text and "float16 + uint8" in text and "free on its disk" in text
    )
    assert "start without features (extract --without-features)" in text
    bare = run(plan, "--config", config_file, "--without-features").stdout
    assert "start without features" not in bare
    made = json.loads(run(plan, "--config", config_file, "--images", 3450, "--json").stdout.splitlines()[-1])
    assert made["lr_px"] == 3450 * 339 * 510 and made["experts"][0]["name"] == "tiny"
    assert "TFLOP/s on this device; there is no bus to cross" in text
    assert made["peak_tflops"] > 0 and made["bus_gbytes_per_second"] is None
    given = run(plan, "--config", config_file, "--px-per-second", "tiny=100").stdout
    assert "TFLOP/s" not in given  # nothing was measured


def test_experts_are_listed_and_checked(run, config_file):
    heading, line = run(experts, "list", "--config", config_file).stdout.splitlines()
    assert heading.split() == ["expert", "parameters", "tap", "channels", "licence", "weights"]
    assert line.split()[:7] == ["tiny", "0.01", "M", "conv_after_body", "8", "?", "on"]
    result = run(experts, "check", "--config", config_file, "--equivariance", "--json")
    (checked,) = json.loads(result.stdout.splitlines()[-1])
    assert checked["deterministic"] and len(checked["equivariance"]) == 7
    text = run(experts, "check", "--config", config_file, "--equivariance").stdout
    assert "tiny: x4" in text and "mirror_rot270" in text


def test_the_bench_ends_with_its_figures(run, save_edsr, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(save_edsr()))
    result = run(bench_extract, tmp_path / "tiny.yaml", "--tile-px", 16, "--rounds", 1, "--device", "cpu", "--json")
    figures = json.loads(result.stdout.splitlines()[-1])
    keys = {"overhead", "cpu_overhead", "peak_gib", "px_per_second", "share_of_peak", "pairs_seconds", "experts"}
    assert figures.keys() == keys
    assert figures["experts"]["tiny"]["overhead"] > 0 and figures["share_of_peak"] > 0


def test_a_stores_experts_are_run_again(run, config_file, save_edsr, tmp_path):
    run(extract, "--config", config_file)
    assert "tiny: 4 arrays compared, largest difference 0.00" in run(experts, "live", tmp_path / "store").stdout
    save_edsr(seed=5)
    with pytest.raises(StoreError, match=r"weights_sha256 is .* in the store, .* now; tiny: image photo0"):
        run(experts, "live", tmp_path / "store")


def test_a_tiling_table_has_a_row_for_each_halo(run, save_edsr, save_photos, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(save_edsr()))
    args = (tmp_path / "tiny.yaml", "--images", save_photos(), "--tile-px", 40, "--halo", "0,8", "--limit", 2)
    rows = [line.split(" | ") for line in run(experts, "tiling", *args).stdout.splitlines()[2:]]
    assert [(row[0], row[1]) for row in rows] == [("| tiny", "0"), ("| tiny", "8")]
    assert float(rows[0][2]) < 60 < float(rows[1][2])  # EDSR with two blocks sees 7 pixels far


def test_sizes_are_written_for_people():
    assert [size_text(n) for n in (12, 1234, 1.02e12, 5.5e15)] == ["12 B", "1.23 kB", "1.02 TB", "5.5e+03 TB"]
