"""A full disk or Ctrl-C at any point of a command: one line, nothing half-written, and the same command goes on."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from championship_sr.pipeline import cli, one_line
from championship_sr.store.errors import StoreError

TIMED = re.compile(
    r"metrics\.jsonl|scores\.(json|md)|report\.html|readme\.txt|submission\.zip|made\.jsonl|expert\.yaml|shard-\d+\.json"
)


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, and a function that gives it so many KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")

    def give(kib: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={kib}k", folder], check=True)

    yield folder, give
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def commands(run_root, store_root, hr_folder, expert_entries, tmp_path) -> dict[str, Callable[[Path], list[str]]]:
    """Command -> its arguments for a place of the results."""
    config = tmp_path / "extract.yaml"
    content = {"data": {"hr": [str(hr_folder)]}, "experts": expert_entries, "device": "cpu"}
    config.write_text(yaml.safe_dump({"extract": content}))
    run, store, photos = f"--run={run_root}", f"--store={store_root}", str(hr_folder)
    return {
        "extract hdf5": lambda out: ["extract", f"--config={config}", f"--store={out}", "--set=extract.container=hdf5"],
        "extract zarr": lambda out: ["extract", f"--config={config}", f"--store={out}", "--set=extract.container=zarr"],
        "evaluate": lambda out: ["evaluate", run, store, f"--report={out}", "--no-self-ensemble"],
        "upscale": lambda out: ["upscale", run, photos, str(out), "--overwrite"],
        "submit": lambda out: ["submit", run, f"--lr={hr_folder}", str(out)],
        "export": lambda out: ["export", run, "--with-experts", str(out)],
    }


SAID = re.compile(r"No space left on device|needs .* MiB in reserve, but only .* are free")
NAMES = ["extract hdf5", "extract zarr", "evaluate", "upscale", "submit", "export"]


@pytest.mark.parametrize("name", NAMES)
def test_it_ends_in_one_line_and_the_same_command_goes_on(name, disk, commands, monkeypatch):
    (folder, give), arguments = disk, commands[name]
    if name == "extract zarr":  # as if others took the room between the look at it and the writing
        monkeypatch.setattr("championship_sr.store.shards.writer.SPARE_BYTES", -(1 << 40))
    assert not CliRunner().invoke(cli, arguments(folder / "whole")).exception
    whole, kib = contents(folder / "whole"), used(folder)
    subprocess.run(["rm", "-r", folder / "whole"], check=True)
    for share in (0.02, 0.4, 0.8):
        give(max(4, int(kib * share)))
        error = CliRunner().invoke(cli, arguments(folder / "out")).exception
        assert isinstance(error, (StoreError, OSError)) and SAID.search(one_line(error)), repr(error)
        assert "\n" not in one_line(error) and not unfinished(folder), unfinished(folder)
    give(64 << 10)
    again = CliRunner().invoke(cli, arguments(folder / "out"))
    assert not again.exception, again.exception
    assert contents(folder / "out") == whole


@pytest.mark.parametrize("name", ["evaluate", "upscale", "submit", "export"])
def test_after_ctrl_c_nothing_is_half_written_and_the_same_command_goes_on(name, commands, tmp_path, monkeypatch):
    arguments, whole, out = commands[name], tmp_path / "whole", tmp_path / "out"
    assert not CliRunner().invoke(cli, arguments(whole)).exception
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        assert CliRunner().invoke(cli, arguments(out)).exit_code == 1
    assert not unfinished(tmp_path) and len(contents(out)) < len(contents(whole))
    again = CliRunner().invoke(cli, arguments(out))
    assert not again.exception, again.exception
    assert contents(out) == contents(whole)


def interrupt_at(number: int, patch) -> None:
    """Ctrl-C at that of the moments in which a file is to get its name, or to be copied."""
    calls = iter(range(1, 1000))

    def interrupted(function):
        def called(*args, **options):
            if next(calls) == number:
                raise KeyboardInterrupt
            return function(*args, **options)

        return called

    patch.setattr("pathlib.Path.replace", interrupted(Path.replace))
    patch.setattr("shutil.copyfile", interrupted(shutil.copyfile))


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file's bytes; of those that hold times, that they are there."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return {str(p.relative_to(folder)): None if TIMED.fullmatch(p.name) else p.read_bytes() for p in found}


def used(folder: Path) -> int:
    about = os.statvfs(folder)
    return (about.f_blocks - about.f_bfree) * about.f_frsize // 1024


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
