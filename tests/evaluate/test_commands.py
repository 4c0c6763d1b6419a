"""The commands as a user types them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from championship_sr.evaluate.commands import evaluate, upscale
from championship_sr.pipeline import cli
from championship_sr.store.errors import ConfigError, StoreError

FAST = ("--set", "evaluate.bootstrap=200", "--set", "evaluate.device=cpu")


def call(command, *arguments) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


def test_a_store_is_scored_and_reported(run_root, store_root, tmp_path):
    text = call(
        evaluate, "--run", run_root, "--store", store_root, "--no-self-ensemble", "--report", tmp_path / "out", *FAST
    )
    assert "fusion" in text and "best expert per pixel (upper bound)" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "scores.csv",
        "scores.json",
        "scores.md",
    ]
    stored = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert f"{stored['means']['psnr_y']['fusion']:.3f}" in text


def test_json_is_one_object_with_the_summary_and_every_value(run_root, store_root):
    text = call(evaluate, "--run", run_root, "--store", store_root, "--no-self-ensemble", "--json", *FAST)
    [scored] = json.loads(text.splitlines()[-1])["sets"].values()
    assert set(scored["psnr_y"]["experts"]) == {"one", "two"}
    assert scored["psnr_y"]["fusion"] == pytest.approx(np.mean(scored["scores"]["values"]["psnr_y"]["fusion"]))


def test_benchmarks_share_one_table_and_a_damaged_image_is_named_at_the_end(run_root, hr_folder, tmp_path):
    for name in ("Set5", "Set14"):
        shutil.copytree(hr_folder, tmp_path / name / "HR")
    whole = (hr_folder / "photo0.png").read_bytes()
    (tmp_path / "Set5" / "HR" / "torn.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "Set5" / "HR" / "text.png").write_bytes(b"text")
    result = CliRunner().invoke(
        evaluate, ["--run", str(run_root), "--benchmarks", str(tmp_path), "--no-self-ensemble", *FAST]
    )
    assert "Set14 PSNR-Y  Set14 SSIM-Y  Set5 PSNR-Y  Set5 SSIM-Y" in result.stdout
    assert "Set5: 4 images" in result.stdout
    assert isinstance(result.exception, StoreError)
    assert "torn.png" in str(result.exception) and "text.png" in str(result.exception)


def test_an_image_too_small_for_ssim_loses_that_score_alone(run_root, hr_folder, tmp_path):
    folder = tmp_path / "hr"
    folder.mkdir()
    for name, side in (("large", 40), ("small", 16), ("speck", 8)):
        Image.open(hr_folder / "photo0.png").crop((0, 0, side, side)).save(folder / f"{name}.png")
    given = [
        "--run",
        str(run_root),
        "--hr",
        str(folder),
        "--no-self-ensemble",
        "--report",
        str(tmp_path / "out"),
        *FAST,
    ]
    result = CliRunner().invoke(evaluate, [*given, "--json"])
    assert isinstance(result.exception, StoreError)
    assert "speck: of 8 x 8 pixels, nothing is left after cropping 4" in str(result.exception)
    [scored] = json.loads(result.stdout.splitlines()[-1])["sets"].values()
    values = scored["scores"]["values"]
    assert scored["scores"]["images"] == ["large", "small"]
    assert all(value[1] == "nan" and 0 < value[0] <= 1 for value in values["ssim_y"].values())
    assert all(len(value) == 2 and "nan" not in value for value in values["psnr_y"].values())
    assert scored["ssim_y"]["fusion"] == values["ssim_y"]["fusion"][0]
    assert "no SSIM-Y of images smaller than its window: small" in scored["scores"]["notes"]
    first = CliRunner().invoke(evaluate, [*given, "--set", "evaluate.metrics=[ssim_y]"])
    assert "1-0" in first.stdout or "0-1" in first.stdout


def test_experts_are_scored_without_a_run(hr_folder, expert_entries, tmp_path):
    import yaml

    (tmp_path / "one.yaml").write_text(yaml.safe_dump(expert_entries[0]))
    text = call(evaluate, "--hr", hr_folder, "--expert", tmp_path / "one.yaml", "--no-self-ensemble", *FAST)
    assert "one" in text and "fusion" not in text and "made by MATLAB's bicubic" in text


def test_experts_alone_say_first_what_they_are_worth_together(store_root, tmp_path):
    arguments = ("--store", store_root, "--no-self-ensemble", "--report", tmp_path / "out", *FAST)
    text = call(evaluate, *arguments)
    together = json.loads((tmp_path / "out" / "scores.json").read_text())["complementarity"]
    assert together["sentence"].startswith("Adding ") and together["sentence"] in text
    assert text.index(together["sentence"]) < text.index("PSNR-Y") < text.index("correlation of their luma errors")
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) > 4 * 4
    [scored] = json.loads(call(evaluate, *arguments, "--json").splitlines()[-1])["sets"].values()
    assert scored["complementarity"] == together and len(together["subsets"]) == 3
    alone = call(evaluate, "--store", store_root, "--expert", "two", "--no-self-ensemble", *FAST)
    assert alone.startswith("two is the only expert") and "one  " not in alone
    with pytest.raises(StoreError, match=r"no features for three \(has: one, two\)"):
        call(evaluate, "--store", store_root, "--expert", "three", *FAST)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "give one of --store, --hr and --benchmarks"),
        (("--ablation",), "needs a --run"),
        (("--hr", "HR"), "--expert NAME"),
        (("--hr", "HR", "--set", "evaluate.tile=3"), "tile: no such key"),
        (("--hr", "HR", "--set", "evaluate.metrics=[psnr]"), "no such metric: psnr"),
        (("--hr", "HR", "--set", "evaluate.blend_px=100"), "must be in 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(hr_folder, arguments, message):
    with pytest.raises(Exception, match=message) as raised:
        call(evaluate, *(hr_folder if argument == "HR" else argument for argument in arguments))
    assert isinstance(raised.value, ConfigError) or type(raised.value).__name__ == "UsageError"


def test_folders_without_common_names_are_told_which(run_root, hr_folder, tmp_path):
    Image.new("RGB", (5, 5)).save(tmp_path / "other.png")
    with pytest.raises(StoreError, match=r"photo0\.png: has no LR image.*other\.png: has no HR image"):
        call(evaluate, "--run", run_root, "--hr", hr_folder, "--lr", tmp_path, "--no-self-ensemble", *FAST)


def test_a_report_folder_that_cannot_be_written_is_found_before_any_work(run_root, hr_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "os.access", lambda path, _mode: Path(path).name != "report"
    )  # tests may run as root, to whom all is open
    monkeypatch.setattr("championship_sr.evaluate.session.evaluate_sets", lambda **_given: pytest.fail("scored first"))
    with pytest.raises(StoreError, match="report: cannot be written to"):
        call(evaluate, "--run", run_root, "--hr", hr_folder, "--report", tmp_path / "report", *FAST)


def test_upscale_prints_what_it_wrote(run_root, hr_folder, tmp_path):
    text = call(upscale, "--run", run_root, hr_folder / "photo2.png", tmp_path / "big.webp", "--quality", 100, *FAST)
    assert text.splitlines() == [str(tmp_path / "big.webp")]
    assert Image.open(tmp_path / "big.webp").size == (208, 208)


@pytest.mark.parametrize("before", [(), ("evaluate",)])
def test_submit_and_export_are_commands_of_their_own_and_of_evaluate(run_root, tmp_path, before):
    (tmp_path / "LR").mkdir()
    Image.new("RGB", (12, 9)).save(tmp_path / "LR" / "0901x4.png")
    text = call(cli, *before, "submit", "--run", run_root, "--lr", tmp_path / "LR", tmp_path / "out", *FAST)
    assert text.startswith(f"{tmp_path / 'out' / 'submission.zip'}: 1 images, ")
    call(cli, *before, "export", "--run", run_root, "--with-experts", tmp_path / "shared")
    assert (tmp_path / "shared" / "weights" / "one.safetensors").exists()
