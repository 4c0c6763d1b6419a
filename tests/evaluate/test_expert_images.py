"""Results of networks that cannot be run here: fused, scored, upscaled and submitted from their image files alone."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from championship_sr.evaluate.commands import evaluate, upscale
from championship_sr.evaluate.deliver.export import export_run
from championship_sr.evaluate.model import load
from championship_sr.extract.commands.extract import extract
from championship_sr.extract.config import load_expert_config
from championship_sr.extract.experts.expert import load_expert
from championship_sr.extract.experts.tiling import as_input, run_tiled
from championship_sr.extract.images.bicubic import upscale as bicubic
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.shards.reader import Store
from championship_sr.train.commands import train

ENDINGS = {"plain": "_bicubic_x4", "edsr": "x4_SR", "hat": "_HAT-XS_SRx4_pretrained"}
NETWORKS = {"edsr": "edsr-xs", "hat": "hat-xs"}
TINY = ("bands=8", "band_heads=2", "band_expansion=1", "experts=8", "expert_heads=2", "expert_expansion=1",
        "hierarchy=8", "selection=8", "refinement=8", "refinement_layers=3", "edges=8")  # fmt: skip
FAST = ("--set", "evaluate.bootstrap=200", "--set", "evaluate.device=cpu")


def call(command, *arguments) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory, hr_folder) -> dict[str, Path]:
    """LR images and, by name, what bicubic and two bundled networks make of them, called as other programs would."""
    root = tmp_path_factory.mktemp("results")
    made = {name: root / name for name in ("LR", *ENDINGS)}
    for folder in made.values():
        folder.mkdir()
    networks = {name: load_expert(load_expert_config(of), torch.device("cpu"), 4) for name, of in NETWORKS.items()}
    for path in sorted(hr_folder.iterdir()):
        hr = Image.open(path)
        lr = np.asarray(hr.resize((hr.width // 4, hr.height // 4), Image.Resampling.BICUBIC))
        Image.fromarray(lr).save(made["LR"] / f"{path.stem}x4.png")
        images = {"plain": bicubic(lr, 4)}
        with torch.inference_mode():
            for name, network in networks.items():
                sr, _ = run_tiled(network, as_input(lr), 512, 32)
                images[name] = (sr[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        for name, image in images.items():
            Image.fromarray(image).save(made[name] / f"{path.stem}{ENDINGS[name]}.png")
    return made


@pytest.fixture(scope="module")
def fused(tmp_path_factory, hr_folder, folders) -> Path:
    """A run that was trained from the three folders, by the commands that a user types."""
    root = tmp_path_factory.mktemp("fused")
    chosen = []
    for name in ENDINGS:
        (root / f"{name}.yaml").write_text(f"name: {name}\nimages: {folders[name]}\n")
        chosen += ["--expert", root / f"{name}.yaml"]
    store = root / "fusion.store"
    call(extract, "--hr", hr_folder, "--lr", folders["LR"], "--store", store, "--device", "cpu", *chosen)
    assert list(Store(store).experts) == sorted(ENDINGS)
    settings = [f"train.fusion.{each}" for each in TINY]
    settings += ["train.steps=2", "train.data.crop_px=8", "train.data.batch_size=2", "train.validation.hold_out=1",
                 "train.device=cpu", "train.tensorboard=false", "train.data.threads=0"]  # fmt: skip
    call(train, "--store", store, "--out", root / "run", *(part for each in settings for part in ("--set", each)))
    return root / "run"


def given(folders: dict[str, Path]) -> list[str]:
    return [part for name in ENDINGS for part in ("--expert-images", f"{name}={folders[name]}")]


def test_three_folders_of_results_are_fused_without_any_weights_file(fused, folders, hr_folder, tmp_path):
    scored = call(evaluate, "--run", fused, "--hr", hr_folder, "--lr", folders["LR"], *given(folders), *FAST)
    stored = call(evaluate, "--run", fused, "--store", fused.parent / "fusion.store", *FAST)
    for text in (scored, stored):
        # * marks what was trained on
        rows = {line.split("  ")[0].strip(" *"): line for line in text.splitlines()}
        assert {"plain", "edsr", "hat", "fusion"} <= rows.keys() and "x8 self-ensemble left out" in text
    written = call(upscale, "--run", fused, folders["LR"], tmp_path / "SR", *given(folders)).split()
    assert [Path(path).name for path in written] == [f"photo{i}x4.png" for i in range(4)]
    call(evaluate, "submit", "--run", fused, "--lr", folders["LR"], *given(folders), tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive, archive.open("photo1x4.png") as file:
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(written[1])))


def test_a_store_of_lr_images_alone_is_fused_as_the_files_are(fused, folders, tmp_path):
    model = load(fused, device="cpu", images={name: folders[name] for name in ENDINGS})
    picture = np.asarray(model(folders["LR"] / "photo1x4.png")).astype(int)
    chosen = [part for name in ENDINGS for part in ("--expert", fused.parent / f"{name}.yaml")]
    args = ("--lr", folders["LR"], "--store", tmp_path / "lr.store", "--set", "extract.codecs.sr=uint8")
    call(extract, *args, "--device", "cpu", *chosen)
    written = call(upscale, "--run", fused, tmp_path / "lr.store", tmp_path / "SR").split()
    assert [Path(path).name for path in written] == [f"photo{i}x4.png" for i in range(4)]
    assert np.array_equal(np.asarray(Image.open(written[1])), picture)
    experts = call(upscale, "--run", fused, tmp_path / "lr.store", tmp_path / "each", "--experts-only").split()
    assert len(experts) == 12
    with pytest.raises(StoreError, match="lacks some of the 8 variants that --self-ensemble averages over"):
        call(upscale, "--run", fused, tmp_path / "lr.store", tmp_path / "x8", "--self-ensemble")
    with pytest.raises(ConfigError, match=r"expert \w+: is not run, and its image of this input was not given"):
        model(np.zeros((8, 8, 3), np.uint8))


def test_experts_alone_are_scored_from_their_images(folders, hr_folder):
    args = ("--hr", hr_folder, "--lr", folders["LR"], "--expert", "edsr-xs", *given(folders)[:4], *FAST)
    lines = call(evaluate, *args).partition("what each expert adds")[0].splitlines()
    psnr = {words[0]: words[1] for words in map(str.split, lines) if words[:1] in (["plain"], ["edsr"], ["edsr-xs"])}
    assert psnr["edsr"] == psnr["edsr-xs"] != psnr["plain"]


def test_one_expert_runs_while_the_images_of_another_are_given(run_root, hr_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"--expert-images two: the run was trained with this expert's features"):
        call(upscale, "--run", run_root, hr_folder, tmp_path / "out", "--expert-images", f"two={hr_folder}")
    with pytest.raises(ConfigError, match=r"--expert-images three: the run has no such expert \(has: one, two\)"):
        call(upscale, "--run", run_root, hr_folder, tmp_path / "out", "--expert-images", f"three={hr_folder}")


def test_what_is_missing_is_said_before_anything_is_written(fused, folders, tmp_path):
    broken = dict(folders) | {"hat": tmp_path / "hat"}
    shutil.copytree(folders["hat"], broken["hat"])
    (broken["hat"] / f"photo2{ENDINGS['hat']}.png").unlink()
    with pytest.raises(StoreError, match=r"expert hat: .*hat has no image for photo2x4"):
        call(upscale, "--run", fused, folders["LR"], tmp_path / "SR", *given(broken))
    assert not (tmp_path / "SR").exists()
    with pytest.raises(
        ConfigError, match=r"expert \w+: another program made its images; give its images of these inputs"
    ):
        call(upscale, "--run", fused, folders["LR"], tmp_path / "SR")
    with pytest.raises(
        ConfigError, match=r"expert \w+: its images are given, but not those of flipped or rotated inputs"
    ):
        call(upscale, "--run", fused, folders["LR"], tmp_path / "SR", "--self-ensemble", *given(folders))


def test_a_fusion_of_results_is_handed_on_with_a_model_card(fused, folders, tmp_path):
    model = load(fused, device="cpu", images={name: folders[name] for name in ENDINGS})
    out = export_run(model, tmp_path / "out", with_experts=True)
    assert str(folders["hat"]) not in (out / "experts.yaml").read_text()
    assert load(out, device="cpu").expert_names == model.expert_names
    assert Store(fused.parent / "fusion.store").experts["hat"].made_from in (out / "README.md").read_text()
