"""The package's public face: its names, its examples, and what an installed copy brings along."""

import doctest
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import championship_sr

ROOT = Path(__file__).parents[2]


def test_the_examples_of_the_documentation_run(store_root, run_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos.store").symlink_to(store_root)
    Path("runs").mkdir()
    Path("runs/first").symlink_to(run_root)
    Image.fromarray(np.full((16, 12, 3), 90, np.uint8)).save("small.png")
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testfile(str(ROOT / "docs/api.md"), module_relative=False, optionflags=options)
    assert tried > 15 and not failed


@pytest.mark.parametrize("name", championship_sr.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    assert getattr(championship_sr, name).__doc__
    assert name in dir(championship_sr)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fuse'"):
        _ = championship_sr.fuse


def test_the_package_and_its_stages_are_imported_without_torch():
    code = "import sys, championship_sr; from championship_sr import train, evaluate, extract; assert callable(train)"
    subprocess.run([sys.executable, "-c", code + "; assert not {'torch', 'numpy'} & set(sys.modules)"], check=True)


def test_a_script_that_holds_a_store_to_its_end_ends_silently(store_root):
    code = f"""
from championship_sr import Store
store = Store({str(store_root)!r})
arrays = [store.array(i, e, n).read() for i in range(4) for e in store.experts for n in ("sr", "features")]
kept = [store.view(store.array(i, "one", "sr")) for i in range(4)]
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == ""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "tests")
    source = shutil.copytree(ROOT, folder / "source", ignore=ignored)  # a build leaves files beside what it builds
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_a_wheel_holds_one_package_with_all_that_it_needs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"championship_sr"}
    data = {"configs/swift.yaml", "configs/experts/hat-l.yaml", "extract/weights/hat-xs.safetensors", "py.typed"}
    assert {f"championship_sr/{name}" for name in data} <= set(names)
    sources = {
        str(path.relative_to(ROOT))
        for top in ("store", "extract", "train", "evaluate")
        for path in (ROOT / top).rglob("*.py")
    }
    assert {f"championship_sr/{name}" for name in sources} <= set(names)
