"""Files of other scales than 4: the experts say their scale, --scale says it of images alone, and no two are mixed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from championship_sr.evaluate.commands import evaluate, upscale
from championship_sr.extract.edsr import EDSR
from championship_sr.extract.images.bicubic import downscale
from championship_sr.extract.images.bicubic import upscale as bicubic
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.train.metrics import rgb_to_y

FAST = ("--set", "evaluate.bootstrap=200", "--set", "evaluate.device=cpu", "--no-self-ensemble", "--json")


@pytest.fixture(scope="module", params=[2, 3])
def scale(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def folders(tmp_path_factory, hr_folder, scale) -> dict[str, Path]:
    """LR images of this scale, what bicubic makes of them, and an expert's entry."""
    root = tmp_path_factory.mktemp(f"x{scale}")
    made = {name: root / name for name in ("LR", "plain")}
    for folder in made.values():
        folder.mkdir()
    for path in sorted(hr_folder.iterdir()):
        hr = np.asarray(Image.open(path))
        lr = downscale(hr[: len(hr) // scale * scale, : hr.shape[1] // scale * scale], scale)
        Image.fromarray(lr).save(made["LR"] / f"{path.stem}x{scale}.png")
        Image.fromarray(bicubic(lr, scale)).save(made["plain"] / f"{path.stem}_SRx{scale}.png")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(EDSR(num_feat=6, num_block=1, upscale=scale).state_dict(), root / "edsr.safetensors")
    made["entry"] = root / "edsr.yaml"
    made["entry"].write_text(f"name: edsr\nweights: {root}/edsr.safetensors\ntap: none\n")
    return made


def call(command, *arguments) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


def psnr_y(path: Path, hr: np.ndarray, scale: int) -> float:
    """By the definition, `scale` pixels cut."""
    sr = np.asarray(Image.open(path))
    hr = hr[: len(sr), : sr.shape[1]]
    ys = [rgb_to_y(torch.from_numpy(each.copy()).permute(2, 0, 1)[None] / 255).numpy() for each in (sr, hr)]
    inside = (..., slice(scale, -scale), slice(scale, -scale))
    return float(-10 * np.log10(np.mean((ys[0][inside] - ys[1][inside]) ** 2)))


def test_the_expert_says_the_scale_of_the_files(folders, hr_folder, scale):
    args = ("--hr", hr_folder, "--lr", folders["LR"], "--expert-images", f"plain={folders['plain']}")
    (scores,) = json.loads(call(evaluate, *args, "--expert", folders["entry"], *FAST))["sets"].values()
    values = scores["scores"]["values"]["psnr_y"]
    for number, name in enumerate(scores["scores"]["images"]):
        hr = np.asarray(Image.open(hr_folder / f"{name}.png"))
        expected = psnr_y(folders["plain"] / f"{name}_SRx{scale}.png", hr, scale)
        assert values["expert:plain"][number] == pytest.approx(expected, abs=1e-3)
        assert values["bicubic"][number] == values["expert:plain"][number]


def test_of_images_alone_the_scale_is_said(folders, hr_folder, scale):
    args = ("--hr", hr_folder, "--lr", folders["LR"], "--expert-images", f"plain={folders['plain']}", *FAST)
    assert len(json.loads(call(evaluate, *args, "--scale", scale))["sets"]) == 1
    with pytest.raises(StoreError, match=r"no image can be scored at x4: .*; --scale chooses another"):
        call(evaluate, *args)


def test_two_scales_in_one_call_are_refused(folders, hr_folder, run_root, scale):
    files = ("--hr", hr_folder, "--expert", folders["entry"])
    with pytest.raises(ConfigError, match=f"images of one scale: edsr is for x{scale}, edsr-xs is for x4"):
        call(evaluate, *files, "--expert", "edsr-xs", *FAST)
    with pytest.raises(ConfigError, match=f"images of one scale: --scale is for x{scale}, the run is for x4"):
        call(evaluate, "--run", run_root, "--hr", hr_folder, "--scale", scale, *FAST)


def test_one_network_enlarges_by_its_own_scale(folders, scale, tmp_path):
    lr = folders["LR"] / f"photo1x{scale}.png"
    call(upscale, "--expert", folders["entry"], lr, tmp_path / "sr.png")
    assert Image.open(tmp_path / "sr.png").size == tuple(n * scale for n in Image.open(lr).size)
