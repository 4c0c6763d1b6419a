"""Names of partners: every data set's and program's, and none that is another photograph."""

import pytest
from hypothesis import given
from hypothesis.strategies import lists, sampled_from, text

from championship_sr.extract.images.names import is_high_resolution, is_low_resolution, match_names, without_ending

LR_ENDINGS = ("x4", "_x4", "X4", "_LR", "_LR4", "_bicLRx4", "_LRBI_x4", "x4m", "x4d", "_LRx4", "_lq", "x4_LR")
RESULT_ENDINGS = (
    "_SR",
    "_SRx4",
    "x4",
    "x4_x4_SR",
    "_out",
    "_SwinIR",
    "_HAT-L_SRx4",
    "_HAT-L_SRx4_ImageNet-pretrain",
    "x4_HAT-L_SRx4",
    "_DRCT-L_X4",
    " (upscaled)",
)


@pytest.mark.parametrize("ending", ["", *LR_ENDINGS, *RESULT_ENDINGS])
@pytest.mark.parametrize("names", [("0801", "0802", "0803"), ("img_1", "img_10", "img_1_2"), ("a", "a_b", "a b.c")])
def test_the_ending_of_every_script_and_program_is_understood(names, ending):
    found = match_names(names, [name + ending for name in names], 4)
    assert found.files == {name: name + ending for name in names}
    assert not found.missing and not found.twice and not found.unused


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("img_001_HR", "img_001_LR"),
        ("Canon_001_HR", "Canon_001_LR4"),
        ("img_001_SRF_4_HR", "img_001_SRF_4_LR"),
        ("0801x4", "0801"),
        ("0801x4", "0801_SR"),
        ("0801x4", "0801x4_HAT-L_SRx4"),
        ("0801_gt", "0801_lq"),
        ("street/0801", "street/0801x4"),
        ("甲", "甲x4"),
    ],
)
def test_both_may_have_an_ending_of_their_own(name, file):
    assert match_names([name], [file], 4).files == {name: file}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("img_1", "img_10"),
        ("img_1", "img_1_2"),
        ("0801", "0802x4"),
        ("0801", "0801x2"),
        ("street/0801", "forest/0801"),
        ("0801", "street/0801"),
        ("a", "ab"),
        ("a", "b_a"),
    ],
)
def test_another_photograph_is_no_partner(name, file):
    found = match_names([name], [file], 4)
    assert found.missing == (name,) and found.unused == (file,) and not found.files


def test_a_name_of_its_own_wins_over_a_name_with_the_scale():
    assert match_names(["a", "ax4"], ["a", "ax4"], 4).files == {"a": "a", "ax4": "ax4"}
    assert match_names(["a", "a_SR"], ["a_SR", "a_SR_SR"], 4).twice == {"a_SR": ("a_SR", "a_SR_SR")}


def test_two_files_for_one_image_are_told():
    found = match_names(["a", "b"], ["a", "ax4", "b", "b"], 4)
    assert found.twice == {"a": ("a", "ax4"), "b": ("b", "b")} and not found.files and not found.missing


def test_the_ending_of_a_program_must_be_that_of_most_files():
    both = match_names(["a", "b"], ["a_HAT", "a_DRCT", "b_HAT", "b_DRCT"], 4)
    assert both.twice == {"a": ("a_HAT", "a_DRCT"), "b": ("b_HAT", "b_DRCT")}
    found = match_names(["a", "b", "c"], ["a_HAT", "b_HAT", "thumbs"], 4)
    assert found.files == {"a": "a_HAT", "b": "b_HAT"} and (found.missing, found.unused) == (("c",), ("thumbs",))
    # or of most images, where the program was given more
    assert match_names(["b"], ["a_HAT", "b_HAT", "c_HAT"], 4).files == {"b": "b_HAT"}
    # beside known endings an unknown one is another image's
    assert match_names(["a", "b", "c"], ["ax4", "bx4", "c_night"], 4).unused == ("c_night",)


@given(lists(text("ab_1x4", min_size=1, max_size=5), unique=True), sampled_from(RESULT_ENDINGS))
def test_no_file_is_lost_and_none_stands_for_two(names, ending):
    files = [name + ending for name in names]
    found = match_names(names, files, 4)
    told = [*found.files.values(), *(f for several in found.twice.values() for f in several), *found.unused]
    assert sorted(told) == sorted(files)
    assert sorted([*found.files, *found.twice, *found.missing]) == sorted(names)


def test_a_photographs_own_name_is_never_nothing():
    assert [without_ending(name, 4) for name in ("0801x4", "x4", "_LR", "s/x4", "a_SRF_4_HR")] == [
        "0801", "x4", "_LR", "s/x4", "a",
    ]  # fmt: skip


def test_names_say_which_of_two_in_one_folder_is_which():
    assert all(is_low_resolution(f"a{end}", 4) for end in ("_LR", "_LR4", "_bicLRx4", "_LRBI_x4", "_SRF_4_LR"))
    assert all(is_high_resolution(f"a{end}") for end in ("_HR", "_GT", "_SRF_4_HR"))
    assert not any(is_low_resolution(name, 4) or is_high_resolution(name) for name in ("a", "ax4", "aLR", "a_SR"))


def test_one_file_of_a_known_ending_does_not_hide_the_ending_that_the_others_share():
    names = [f"{n:04d}x4" for n in range(1, 7)]
    files = [f"{name}_HAT-L_SRx4" for name in names]
    found = match_names(names, [*files, "0002x4_SR"], 4)
    assert found.twice == {"0002x4": ("0002x4_HAT-L_SRx4", "0002x4_SR")}
    assert found.files == {name: f"{name}_HAT-L_SRx4" for name in names if name != "0002x4"} and not found.missing
    # most have a file: what else lies there is not taken for results, and what is missing is said
    maps = match_names(names, [f"{name}_SR" for name in names[1:]] + [f"{name}_SR_heatmap" for name in names], 4)
    assert maps.missing == ("0001x4",) and not maps.twice
