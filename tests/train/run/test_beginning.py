"""A run that begins from another: the same weights, other experts."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from championship_sr.store.errors import ConfigError
from championship_sr.train.commands import train as command
from championship_sr.train.fusion.config import FusionConfig
from championship_sr.train.fusion.network import build_fusion
from championship_sr.train.fusion.taking_over import take_over
from championship_sr.train.records.checkpoint import load_fusion
from championship_sr.train.records.folder import read_config, read_experts
from championship_sr.train.records.journal import read_metrics
from championship_sr.train.run.loop import train

CHANNELS = {"one": 5, "two": 7, "bare": 0}
NETWORKS = {
    "swift": {}, "paper": {"profile": "paper"}, "direct": {"profile": "direct"}, "cnn": {"profile": "cnn"},
    "mean": {"start": "mean"}, "document": {"profile": "paper", "start": "document"},
    "ablated": {"without": ("selection", "bands")}, "images": {"features": False},
}  # fmt: skip
NARROW = {
    "bands": 8, "band_heads": 2, "band_expansion": 1, "experts": 8, "expert_heads": 2, "expert_expansion": 1,
    "hierarchy": 8, "selection": 8, "refinement": 8, "refinement_layers": 3, "edges": 8,
}  # fmt: skip


def shaken(channels: dict[str, int], **options) -> torch.nn.Module:
    """A network none of whose weights is where it started."""
    torch.manual_seed(1)
    network = build_fusion(FusionConfig(**{**NARROW, **options}), channels, 4).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    if network.start_weights is not None:
        network.start_weights.copy_(torch.softmax(torch.randn(len(channels)), 0))
    return network


def inputs(channels: dict[str, int], seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    scene = torch.rand(1, 3, 40, 48, generator=draw)
    images = {name: scene + 0.05 * torch.randn(scene.shape, generator=draw) for name in channels}  # as experts differ
    features = {name: torch.randn(1, n, 10, 12, generator=draw) for name, n in channels.items() if n}
    return torch.rand(1, 3, 10, 12, generator=draw), images, features


def answer(network, channels: dict[str, int], given) -> torch.Tensor:
    lr, images, features = given
    own = {name: features[name] for name in channels if channels[name] and network.config.features}
    return network(lr, torch.stack([images[name] for name in channels], dim=1), own)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("order", [("new", "two", "plain", "bare", "one"), ("one", "two", "bare")])
def test_the_first_output_is_the_old_one_with_new_experts_at_weight_0(name, order):
    everyone = {**CHANNELS, "new": 6, "plain": 0}
    channels, joined = {each: everyone[each] for each in order}, tuple(sorted({*order} - {*CHANNELS}))
    old = shaken(CHANNELS, **NETWORKS[name])
    network = shaken(channels, joined=joined, **NETWORKS[name])
    take_over(network, old, joined)
    given = inputs(everyone)
    with torch.no_grad():
        assert (answer(network, channels, given) - answer(old, CHANNELS, given)).abs().max() < 1e-5


def test_an_expert_that_joined_is_learned_from_the_first_step_on():
    channels = {**CHANNELS, "new": 6}
    network = shaken(channels, joined=("new",))
    take_over(network, shaken(CHANNELS), ("new",))
    before, given = copy.deepcopy(network), inputs(channels)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(2):
        (answer(network, channels, given) - given[1]["new"]).abs().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    for key in (
        "collaboration.project.new.weight",
        "hierarchy.routing2.linear.bias",
        "selection.gates.4.linear.bias",
    ):
        assert not torch.equal(network.state_dict()[key], before.state_dict()[key])


@pytest.fixture(scope="module")
def begun(make_learnable, make_config, tmp_path_factory) -> tuple[Path, Path]:
    """A run on two experts, and a store that has a third."""
    root = tmp_path_factory.mktemp("begun")
    config = make_config(steps=2, experts=["one", "two"])
    store = make_learnable(root / "store", channels={"one": 5, "two": 7, "three": 4})
    return train(config, store, root / "old"), store


def begin(run: Path, store: Path, out: Path, *more: str):
    small = ("data.batch_size=2", "data.crop_px=8", "data.threads=0", "tensorboard=false", "validation.hold_out=1")
    assignments = [part for each in (*small, "steps=1", "device=cpu") for part in ("--set", f"train.{each}")]
    arguments = ["--init", str(run), "--store", str(store), "--out", str(out), *assignments, *more]
    return CliRunner().invoke(command, arguments)


def test_a_run_begins_from_another_with_an_expert_more_and_goes_on(begun, tmp_path, caplog):
    old, store = begun
    with caplog.at_level(logging.WARNING):
        done = begin(old, store, tmp_path / "new")
    assert done.exit_code == 0, done.exception
    assert f"begins from step 2 of {old}, taken over for one, two; three joined with weight 0" in caplog.text
    fusion = read_config(tmp_path / "new").fusion
    assert fusion.joined == ("three",) and fusion.widths == read_config(old).fusion.widths
    weights = read_metrics(tmp_path / "new")[0]["weights"]
    assert weights["three"] == 0 and weights["one"] == pytest.approx(read_metrics(old)[0]["weights"]["one"], abs=1e-6)
    again = begin(old, store, tmp_path / "new")
    assert again.exit_code == 0 and load_fusion(tmp_path / "new").checkpoint.step == 1
    further = CliRunner().invoke(command, ["--resume", str(tmp_path / "new"), "--set", "train.steps=2"])
    assert further.exit_code == 0, further.exception
    assert str(old) in (tmp_path / "new" / "run.yaml").read_text()


def test_an_expert_may_be_dropped_and_the_others_share_its_weight(begun, tmp_path, caplog):
    old, store = begun
    with caplog.at_level(logging.WARNING):
        done = begin(old, store, tmp_path / "new", "--set", "train.experts=[two]")
    assert done.exit_code == 0, done.exception
    assert "taken over for two; left out: one" in caplog.text
    assert list(read_experts(tmp_path / "new")) == ["two"]
    assert load_fusion(tmp_path / "new").network.start_weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("train.experts=[three]", "none of its original experts, one, two, is among three"),
        ("train.fusion.profile=paper", "the run has another network: fusion.profile is swift there, paper now"),
    ],
)
def test_what_cannot_begin_from_a_run_is_said_before_anything_is_written(begun, tmp_path, more, said):
    refused = begin(*begun, tmp_path / "new", "--set", more)
    assert isinstance(refused.exception, ConfigError) and said in str(refused.exception)
    assert not (tmp_path / "new").exists()
