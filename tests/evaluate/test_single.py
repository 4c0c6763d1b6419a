"""One network by itself: images through it, and its row, gain and cost beside a fusion."""

import re

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from championship_sr.evaluate.commands import evaluate, upscale
from championship_sr.extract.config import load_expert_config
from championship_sr.extract.experts.expert import load_expert
from championship_sr.store.errors import ConfigError


def run(command, *arguments):
    return CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def entries(expert_entries, tmp_path):
    """Entries of two networks of one kind under names of their own."""
    paths = []
    for name, entry in zip(("taught", "alone"), expert_entries, strict=True):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**entry, "name": name}))
        paths.append(path)
    return paths


def test_upscale_takes_one_expert_and_writes_its_image(entries, hr_folder, tmp_path):
    photo = hr_folder / "photo2.png"
    done = run(upscale, "--expert", entries[0], "--set", "evaluate.device=cpu", photo, tmp_path / "out.png")
    assert done.exit_code == 0, done.output
    lr = torch.from_numpy(np.asarray(Image.open(photo)) / np.float32(255)).permute(2, 0, 1)[None]
    with load_expert(load_expert_config(entries[0]), torch.device("cpu"), 4) as expert:
        expected = (expert(lr)[0][0].permute(1, 2, 0) * 255).round().byte().numpy()
    assert np.abs(np.asarray(Image.open(tmp_path / "out.png")).astype(int) - expected).max() <= 1


def test_upscale_takes_a_run_or_an_expert_and_not_both(entries, run_root, store_root, hr_folder, tmp_path):
    done = run(upscale, "--run", run_root, "--expert", entries[0], hr_folder, tmp_path / "out")
    assert done.exit_code == 2 and "give --run or --expert, not both" in done.output
    done = run(upscale, "--expert", entries[0], store_root, tmp_path / "out")
    assert done.exit_code == 2 and "--expert runs on image files" in done.output
    with pytest.raises(ConfigError, match="another program made its images"):
        (tmp_path / "given.yaml").write_text(yaml.safe_dump({"name": "given", "images": str(hr_folder)}))
        run(upscale, "--expert", tmp_path / "given.yaml", hr_folder, tmp_path / "out")


def test_networks_beside_a_fusion_have_rows_a_gain_and_costs(entries, run_root, hr_folder):
    given = ["--run", run_root, "--hr", hr_folder, "--no-self-ensemble", "--set", "evaluate.device=cpu"]
    done = run(evaluate, *given, "--expert", entries[0], "--expert", entries[1])
    assert done.exit_code == 0, done.output
    scores = {
        line.split()[0]: float(line.split()[1]) for line in done.output.splitlines() if re.match(r"\w+ +\d", line)
    }
    gain = float(re.search(r"taught over alone: ([+-][\d.]+) dB", done.output).group(1))
    assert gain == pytest.approx(scores["taught"] - scores["alone"], abs=0.02)
    assert scores["taught"] == scores["one"]  # the same weights, as an expert of the run
    with load_expert(load_expert_config(entries[0]), torch.device("cpu"), 4) as expert:
        count = expert.n_parameters
    assert f"taught {count / 1e6:.2f} M parameters, " in done.output and "fusion with its experts" in done.output
    assert re.search(r"\d s by taught, [\d.]+ s by alone", done.output)
