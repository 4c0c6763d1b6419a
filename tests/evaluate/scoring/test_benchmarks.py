"""Benchmark folders in the layouts that people have."""

import numpy as np
import pytest
from PIL import Image

from championship_sr.evaluate.scoring.benchmarks import find_benchmarks
from championship_sr.store.errors import StoreError

LAYOUTS = {
    "ours": ("HR/a.png", "LR_x4/a.png"),
    "official EDSR's": ("HR/a.png", "LR_bicubic/X4/ax4.png"),
    "BasicSR's": ("GTmod12/a.png", "LRbicx4/a.png"),
    "BasicSR's, cut to 4": ("GTmod4/a.png", "LRbicx4/a.png"),
    "DIV2K's": ("DIV2K_valid_HR/0801.png", "DIV2K_valid_LR_bicubic/X4/0801x4.png"),
    "Huang's": ("image_SRF_4/img_001_SRF_4_HR.png", "image_SRF_4/img_001_SRF_4_LR.png"),
    "HR alone": ("HR/a.png",),
    "originals": ("original/a.png",),
    "bare files": ("a.png",),
}


def write(path, side):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(path)


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS)
def test_each_layout_is_known(tmp_path, names):
    for name, side in zip(names, (32, 8), strict=False):
        write(tmp_path / "Set5" / name, side)
    left_out = []
    found = find_benchmarks(tmp_path, 4, left_out)
    assert list(found) == ["Set5"] and not left_out
    [pair] = found["Set5"]
    assert pair.hr == tmp_path / "Set5" / names[0]
    assert pair.lr == (tmp_path / "Set5" / names[1] if len(names) > 1 else None)
    lr, hr = pair.read()
    assert hr.shape == (32, 32, 3) and lr.shape == (8, 8, 3)


def test_several_sets_are_found_by_their_folders(tmp_path):
    for name in ("Set5", "Set14", "Urban100"):
        write(tmp_path / name / "HR" / "a.png", 16)
    (tmp_path / "notes").mkdir()
    assert list(find_benchmarks(tmp_path, 4, [])) == ["Set14", "Set5", "Urban100"]


def test_one_benchmark_is_its_own_folder(tmp_path):
    write(tmp_path / "Set5" / "HR" / "a.png", 16)
    assert list(find_benchmarks(tmp_path / "Set5", 4, [])) == ["Set5"]


def test_what_does_not_fit_is_named_and_the_rest_stays(tmp_path):
    for name in ("img_001", "img_002"):
        write(tmp_path / "B100" / "image_SRF_4" / f"{name}_SRF_4_HR.png", 32)
    write(tmp_path / "B100" / "image_SRF_4" / "img_001_SRF_4_LR.png", 8)
    left_out = []
    assert len(find_benchmarks(tmp_path, 4, left_out)["B100"]) == 1
    assert len(left_out) == 1 and "img_002_SRF_4_HR.png: has no LR image" in left_out[0]


def test_no_benchmark_is_said(tmp_path):
    with pytest.raises(StoreError, match="no benchmark in a known layout, such as Set5/HR"):
        find_benchmarks(tmp_path, 4, [])


def test_a_benchmark_whose_images_do_not_fit_is_named_by_them(tmp_path):
    write(tmp_path / "B100" / "HR" / "a.png", 32)
    write(tmp_path / "B100" / "LR_bicubic" / "X4" / "ax4.png", 5)
    with pytest.raises(StoreError, match=r"no image can be scored: .*HR/a.png: 32 x 32 is not 4 times ax4.png, 5 x 5"):
        find_benchmarks(tmp_path, 4, [])


def test_a_benchmark_of_odd_sizes_is_cut_to_its_lr(tmp_path):
    write(tmp_path / "B100" / "HR" / "a.png", 35)
    write(tmp_path / "B100" / "LR_bicubic" / "X4" / "ax4.png", 8)
    [pair] = find_benchmarks(tmp_path, 4, [])["B100"]
    assert [image.shape for image in pair.read()] == [(8, 8, 3), (32, 32, 3)]


def test_folders_beside_bare_images_are_no_part_of_their_benchmark(tmp_path):
    write(tmp_path / "Set5" / "a.png", 32)
    write(tmp_path / "Set5" / "LR_bicubic" / "X4" / "ax4.png", 8)
    [pair] = find_benchmarks(tmp_path, 4, [])["Set5"]
    assert pair.hr.name == "a.png" and pair.lr is None
