"""Networks that are built from weights and entries: their sizes, their declarations, and what is told apart."""

import pytest
import torch
from spandrel.architectures.DRCT import DRCT
from spandrel.architectures.GRL import GRL
from spandrel.architectures.HAT import HAT

from championship_sr.extract.config import load_expert_config
from championship_sr.extract.edsr import DIV2K_RGB_MEAN, EDSR
from championship_sr.extract.experts.networks import load_network
from championship_sr.extract.experts.weights_file import read_state
from championship_sr.store.errors import ConfigError, WeightsError
from championship_sr.train.students.student import export
from tests.extract.experts.small_edsr import DECLARED, edsr


def official(network: EDSR) -> dict:
    """The weights under the official repository's names, its mean shift included."""
    n = len(network.body)
    renamed = {}
    for key, value in network.state_dict().items():
        for ours, theirs in (
            ("conv_first.", "head.0."),
            ("upsample.", "tail.0."),
            ("conv_last.", "tail.1."),
            ("conv_after_body.", f"body.{n}."),
        ):
            if key.startswith(ours):
                key = theirs + key.removeprefix(ours)
        renamed[key.replace(".conv1.", ".body.0.").replace(".conv2.", ".body.2.")] = value
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        renamed[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1)
        renamed[f"{name}.bias"] = sign * 255 * torch.tensor(DIV2K_RGB_MEAN)
    return renamed


def official_forward(state: dict, image: torch.Tensor) -> torch.Tensor:
    """What the official repository computes of an image in the network's range, written from its layer names alone."""

    def conv(x, name):
        weight = state[f"{name}.weight"]
        return torch.nn.functional.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    head = conv(conv(image, "sub_mean"), "head.0")
    x = head
    for block in range(3):
        x = x + conv(conv(x, f"body.{block}.body.0").relu(), f"body.{block}.body.2")
    x = conv(x, "body.3") + head
    for step in (0, 2):
        x = torch.nn.functional.pixel_shuffle(conv(x, f"tail.0.{step}"), 2)
    return conv(conv(x, "tail.1"), "add_mean")


@pytest.mark.parametrize("mean", [DIV2K_RGB_MEAN, (0.3, 0.5, 0.6)])
@pytest.mark.parametrize("top", [255, 1])
def test_the_official_edsr_works_in_its_own_range_and_shifts_by_its_own_mean(entry, mean, top):
    network = edsr(rgb_mean=mean)
    state = official(network)
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        state[f"{name}.bias"] = sign * top * torch.tensor(mean)
    image = torch.rand(1, 3, 7, 9)
    loaded = load_network(entry(state, ".pt"), 4)
    assert torch.allclose(
        loaded.call(image).clamp(0, 1), (official_forward(state, top * image) / top).clamp(0, 1), atol=1e-5
    )


@pytest.mark.parametrize("layout", ["basicsr", "official", "wrapped", "module"])
def test_edsr_loads_in_every_layout_in_use(entry, layout):
    network = edsr()
    state = {
        "basicsr": network.state_dict(),
        "official": official(network),
        "wrapped": {"params_ema": network.state_dict(), "params": edsr(num_block=1).state_dict()},
        "module": {f"module.{key}": value for key, value in network.state_dict().items()},
    }[layout]
    loaded = load_network(entry(state, ".pth"), 4)
    image = torch.rand(1, 3, 7, 9)
    assert loaded.call(image).equal(network(image))
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())


def test_what_no_file_says_is_taken_from_the_entry(entry):
    said = {"num_feat": 8, "num_block": 3, "res_scale": 0.25, "img_range": 1.0}
    network = edsr(**said)
    loaded = load_network(entry(network.state_dict(), **DECLARED | {"hyperparameters": said}), 4)
    image = torch.rand(1, 3, 7, 9)
    assert loaded.call(image).equal(network(image))


def test_another_network_is_told_apart(entry):
    with pytest.raises(WeightsError, match=r"weights.pth: holds EDSR, expected HAT"):
        load_network(entry(edsr().state_dict(), ".pth", architecture="spandrel.architectures.HAT:HAT"), 4)


def test_another_scale_is_told_apart(entry):
    with pytest.raises(WeightsError, match="holds EDSR for x2, expected x4"):
        load_network(entry(edsr(upscale=2).state_dict()), 4)


def test_half_a_network_is_told_apart(entry):
    state = edsr().state_dict()
    cut = {key: value for key, value in state.items() if not key.startswith(("body.1.conv2", "body.2"))}
    with pytest.raises(WeightsError, match=r"not a complete EDSR: 2 tensors missing \(such as body.1.conv2"):
        load_network(entry(cut), 4)
    only_body = {key: value for key, value in state.items() if key.startswith("body")}
    with pytest.raises(WeightsError, match=r"not a whole e: 10 of its 22 tensors are missing"):
        load_network(entry(only_body, **DECLARED), 4)
    with pytest.raises(WeightsError, match=r"no network that spandrel knows \(tensors: body.0.conv1.bias"):
        load_network(entry(only_body), 4)


def test_another_size_of_the_architecture_is_told_apart(entry):
    with pytest.raises(
        WeightsError, match=r"holds EDSR of 0.01 M parameters, but e has 0.01 M \(4 tensors missing, 0 others\)"
    ):
        load_network(entry(edsr(num_block=2).state_dict(), **DECLARED), 4)
    with pytest.raises(WeightsError, match=r"holds EDSR of 0.04 M parameters, but e has 0.01 M \(other shapes\)"):
        load_network(entry(edsr(num_feat=16).state_dict(), **DECLARED), 4)


def test_the_right_network_passes_its_declaration(entry):
    assert load_network(entry(edsr().state_dict(), **DECLARED), 4).architecture == "EDSR"


def test_a_grl_of_another_window_is_told_apart(entry, tmp_path):
    small = {
        "img_size": 32, "embed_dim": 8, "depths": [1], "num_heads_window": [1], "num_heads_stripe": [1],
        "window_size": 8, "stripe_size": [8, 16], "stripe_groups": [None, None], "stripe_shift": True, "mlp_ratio": 1,
        "anchor_window_down_factor": 4, "upsampler": "pixelshuffledirect", "upscale": 4,
    }  # fmt: skip
    network = GRL(**small)
    export(network, tmp_path / "weights.safetensors")
    state = read_state(tmp_path / "weights.safetensors")
    declared = {"architecture": "spandrel.architectures.GRL:GRL", "hyperparameters": small}
    assert load_network(entry(state, **declared), 4).multiple_px == 16
    with pytest.raises(WeightsError, match=r"window_size is .*8.*, but the entry of e says .*16"):
        load_network(entry(state, **declared | {"hyperparameters": small | {"window_size": 16}}), 4)


def test_a_grl_file_that_shows_no_sizes_has_those_of_the_published_sr_checkpoints(entry):
    small = {
        "img_size": 64, "embed_dim": 8, "depths": [1], "num_heads_window": [1], "num_heads_stripe": [1],
        "window_size": 32, "stripe_size": [64, 64], "stripe_groups": [None, None], "stripe_shift": True,
        "mlp_ratio": 1, "anchor_window_down_factor": 4, "upsampler": "pixelshuffle", "upscale": 4,
    }  # fmt: skip
    state = {f"model.{name}": p for name, p in GRL(**small).named_parameters()}
    declared = {"architecture": "spandrel.architectures.GRL:GRL", "hyperparameters": small}
    network = load_network(entry(state, ".ckpt", **declared), 4)
    assert (network.model.window_size, network.model.stripe_size) == ((32, 32), [64, 64])
    with pytest.raises(WeightsError, match=r"window_size is .*32.*, but the entry of e says .*8"):
        load_network(entry(state, ".ckpt", **declared | {"hyperparameters": small | {"window_size": 8}}), 4)


def test_the_window_multiple_comes_from_the_network_unless_the_entry_says_it(entry):
    drct = DRCT(
        img_size=16, embed_dim=8, gc=4, depths=(6,), num_heads=(2,), window_size=8, mlp_ratio=1, upscale=4,
        upsampler="pixelshuffle",
    )  # fmt: skip
    assert load_network(entry(drct.state_dict()), 4).multiple_px == 16  # what spandrel asks of every DRCT
    own = load_network(entry(drct.state_dict(), window_px=32), 4)
    assert own.multiple_px == own.align_px == 32


def test_tiles_are_aligned_to_windows_that_only_inner_modules_know():
    # DCTLSA's blocks pad to windows of 16, and the network says nothing of it
    config = load_expert_config(
        {
            "name": "e",
            "weights": "none",
            "tap": "LR_conv",
            "architecture": "spandrel.architectures.DCTLSA:DCTLSA",
            "hyperparameters": {"nf": 10, "num_head": 5},
        }
    )
    network = load_network(config, 4, random_weights=True)
    assert (network.multiple_px, network.align_px) == (1, 16)


def test_random_weights_are_the_same_in_every_process_and_leave_the_generator_alone():
    config = load_expert_config({"name": "e", "weights": "nowhere.pth", "tap": "body", **DECLARED})
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, two = load_network(config, 4, random_weights=True), load_network(config, 4, random_weights=True)
    assert torch.rand(2).equal(expected)
    assert all(a.equal(b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert one.weights_sha256 is None


def test_random_weights_need_a_description_of_the_network():
    config = load_expert_config({"name": "e", "weights": "nowhere.pth", "tap": "body"})
    with pytest.raises(ConfigError, match="random weights need the entry's architecture"):
        load_network(config, 4, random_weights=True)


@pytest.mark.parametrize(
    ("name", "parameters"), [("hat-l", 40.85), ("drct-l", 27.58), ("grl-b", 20.20), ("edsr-l", 43.09)]
)
def test_the_four_have_their_published_sizes(name, parameters):
    network = load_network(load_expert_config(name), 4, random_weights=True)
    assert round(sum(p.numel() for p in network.model.parameters()) / 1e6, 2) == parameters


def test_the_published_grl_has_window_32_and_stripe_64():
    network = load_network(load_expert_config("grl-b"), 4, random_weights=True)
    assert (network.model.window_size, network.model.stripe_size, network.multiple_px) == ((32, 32), [64, 64], 64)


HAT_XS = {
    "img_size": 16, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 8, "compress_ratio": 4,
    "squeeze_factor": 4, "overlap_ratio": 0.5, "mlp_ratio": 2, "num_feat": 8, "upscale": 4, "upsampler": "pixelshuffle",
}  # fmt: skip


@pytest.mark.parametrize("said", [{"conv_scale": 0.5}, {"img_range": 255.0}, {"conv_scale": 0.2, "img_range": 2.0}])
@pytest.mark.parametrize("declared", [True, False])
def test_hyperparameters_that_weights_do_not_show_are_honoured(entry, said, declared):
    torch.manual_seed(0)
    network = HAT(**HAT_XS | said).eval()
    values = {"hyperparameters": said}
    if declared:
        values = {"architecture": "spandrel.architectures.HAT:HAT", "hyperparameters": HAT_XS | said}
    loaded = load_network(entry(network.state_dict(), **values), 4)
    image = torch.rand(1, 3, 16, 16)
    assert loaded.call(image).equal(network(image))
    assert not load_network(entry(network.state_dict()), 4).call(image).equal(network(image))
    assert loaded.hyperparameters.items() >= said.items()


def test_hyperparameters_that_change_nothing_leave_the_network_that_spandrel_makes(entry):
    torch.manual_seed(0)
    state = HAT(**HAT_XS).state_dict()
    plain, said = (load_network(entry(state, **values), 4) for values in ({}, {"hyperparameters": HAT_XS}))
    image = torch.rand(1, 3, 16, 16)
    assert said.call(image).equal(plain.call(image)) and said.hyperparameters == plain.hyperparameters


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ({"rgb_mean": [0, 0, 0]}, ConfigError, "expert e: hyperparameters.rgb_mean: HAT has no such argument"),
        ({"embed_dim": 16}, WeightsError, r"does not match the hyperparameters of e, embed_dim=16"),
        ({"window_size": 4}, WeightsError, r"weights.safetensors: .*window_size"),
    ],
)
def test_hyperparameters_that_the_network_has_not_or_the_file_denies_are_refused_by_name(entry, said, error, message):
    with pytest.raises(error, match=message):
        load_network(entry(HAT(**HAT_XS).state_dict(), hyperparameters=said), 4)


def test_the_mean_and_the_range_of_an_edsr_are_the_entry_s_where_it_says_them(entry):
    said = {"rgb_mean": [0.1, 0.2, 0.3], "img_range": 1.0}
    network, image = edsr(**said), torch.rand(1, 3, 7, 9)
    assert load_network(entry(network.state_dict(), hyperparameters=said), 4).call(image).equal(network(image))
