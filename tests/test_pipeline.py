import os
import subprocess
import sys

import click
import pytest
import torch
from click.testing import CliRunner

from championship_sr import pipeline
from championship_sr.store.errors import ConfigError, StoreError, WeightsError


@pytest.mark.parametrize("name", [*pipeline.COMMANDS, *(f"bench {name}" for name in pipeline.BENCHMARKS)])
def test_every_command_of_the_tables_can_be_imported(name):
    group = pipeline.cli
    for part in name.split():
        group = group.get_command(click.Context(group), part)
    assert isinstance(group, click.Command)


def test_help_needs_no_torch():
    code = "import sys; from championship_sr import pipeline; sys.argv[1:] = ['--help']\n"
    code += "try: pipeline.main()\nfinally: assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("train.steps: no"), 2, "error: train.steps: no\n"),
        (click.UsageError("give --store"), 2, "Error: give --store\n"),
        (StoreError("shard 3\nis bad"), 1, "error: shard 3 is bad\n"),
        (WeightsError("half a network"), 1, "error: half a network\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (MemoryError("12.0 GiB"), 1, "error: out of memory: 12.0 GiB\n"),
        (torch.OutOfMemoryError("of the device"), 1, "error: out of memory: of the device\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; run the same command again to continue\n"),
    ],
)
def test_bad_input_ends_in_one_line_and_its_status(monkeypatch, capsys, error, status, said):
    def fail(**_):
        raise error

    monkeypatch.setattr(pipeline.cli, "main", fail)
    with pytest.raises(SystemExit) as ended:
        pipeline.main()
    assert ended.value.code == status
    assert capsys.readouterr().err == said


def test_debug_shows_the_traceback(monkeypatch):
    def fail(**_):
        raise StoreError("bad")

    monkeypatch.setattr(pipeline.cli, "main", fail)
    monkeypatch.setattr(sys, "argv", ["pipeline.py", "--debug", "train"])
    with pytest.raises(StoreError):
        pipeline.main()


def test_a_real_interrupt_ends_with_130():
    code = "import signal, os, sys\nfrom championship_sr import pipeline\nsys.argv[1:] = ['x']\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells let background jobs ignore it
    code += "pipeline.cli.main = lambda **_: os.kill(os.getpid(), signal.SIGINT) or signal.pause()\npipeline.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 130 and "interrupted" in done.stderr


def test_the_limit_on_megapixels_is_raised_before_a_command(tmp_path, monkeypatch):
    from PIL import Image

    from championship_sr.extract.images.decode import UnreadableImage, decode

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setenv("CHAMPIONSHIP_SR_MAX_MEGAPIXELS", "0.00002")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=r"a\.png: larger than 0 megapixels"):
        decode(tmp_path / "a.png")
    result = CliRunner().invoke(pipeline.cli, ["--max-megapixels", "0.001", "experts", "list"])
    assert result.exit_code == 0 and decode(tmp_path / "a.png").shape == (8, 8, 3)
    code = "from championship_sr.extract.images.picture import limit_megapixels as limit; assert limit() == 0.001"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert CliRunner().invoke(pipeline.cli, ["--max-megapixels", "0", "experts", "list"]).exit_code == 2


@pytest.mark.parametrize(
    ("words", "offered"),
    [("e", ["extract", "evaluate", "export", "experts"]), ("bench l", ["loader"]), ("submit --lr", ["--lr"])],
)
def test_the_shell_completes_commands_and_options(words, offered):
    count = len(words.split())
    asked = {"COMP_WORDS": f"championship-sr {words}", "COMP_CWORD": str(count)}
    environment = {**os.environ, **asked, "_CHAMPIONSHIP_SR_COMPLETE": "bash_complete"}
    code = "from championship_sr import pipeline; pipeline.main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert [line.partition(",")[2] for line in done.stdout.split()] == offered
