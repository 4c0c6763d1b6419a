"""The network as a whole: where it starts, what reaches its output, and what its profiles share."""

import pytest
import torch
from torch import Tensor

from championship_sr.store.config import build
from championship_sr.store.errors import ConfigError
from championship_sr.train.fusion.config import PHASES, FusionConfig
from championship_sr.train.fusion.network import build_fusion
from championship_sr.train.fusion.phases.frequency import N_BANDS
from championship_sr.train.fusion.start import start_from

PROFILES = ["swift", "paper", "direct", "cnn", "lean"]
PHASED = ["swift", "paper", "direct"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("experts", "size", "scale"), [(1, (8, 8), 4), (2, (9, 13), 4), (5, (15, 8), 2), (3, (8, 11), 3)]
)
def test_untrained_it_is_the_mean_of_its_experts(fusions, profile, experts, size, scale):
    channels = {f"expert{i}": 3 + 4 * i for i in range(experts)}
    network = fusions.build(profile, channels=channels, scale=scale)
    lr, images, features = fusions.inputs(*size, channels=channels, scale=scale)
    assert (network(lr, images, features) - images.mean(1)).abs().max() < 1e-5


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("weights", [(1.0,), (1.4, -0.4), (0.5, -0.2, 0.1, 0.9, -0.3)])
def test_untrained_it_is_the_combination_that_it_starts_from(fusions, profile, weights):
    channels = {f"expert{i}": 3 + 4 * i for i in range(len(weights))}
    network = fusions.build(profile, channels=channels)
    start_from(network, torch.tensor(weights))
    lr, images, features = fusions.inputs(9, 13, channels=channels)
    expected = sum(weight * image for weight, image in zip(weights, images.unbind(1), strict=True))
    assert (network(lr, images, features) - expected).abs().max() < 1e-5
    again = fusions.build(profile, channels=channels)
    again.load_state_dict(network.state_dict())
    assert (again(lr, images, features) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("profile", PROFILES)
def test_what_the_phases_choose_is_relative_to_the_start(fusions, profile):
    network = fusions.build(profile)
    fusions.train(network)
    lr, images, features = fusions.inputs()
    with torch.no_grad():
        of_mean = network(lr, images, features)
        start_from(network, torch.tensor([0.6, 0.6, -0.2]))
        moved = network(lr, images, features) - of_mean
    by = (images * (torch.tensor([0.6, 0.6, -0.2]) - 1 / 3).view(1, 3, 1, 1, 1)).sum(1)
    assert (moved - by).abs().mean() < 0.3 * by.abs().mean()


@pytest.mark.parametrize("start", ["mean", "document"])
def test_other_starts_have_no_fitted_weights(fusions, start):
    assert "start_weights" not in fusions.build("swift", start=start).state_dict()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("features", [True, False])
def test_every_parameter_learns(fusions, profile, features):
    network = fusions.build(profile, features=features)
    fusions.train(network)
    lr, images, given = fusions.inputs()
    network.zero_grad()
    (network(lr, images, given) - images[:, 0]).abs().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("profile", PROFILES)
def test_experts_without_features_enter_as_in_a_fusion_without_any(fusions, profile):
    none = dict.fromkeys("abc", 0)
    network, other = fusions.build(profile, channels=none), fusions.build(profile, features=False)
    fusions.train(other)
    network.load_state_dict(other.state_dict())
    lr, images, features = fusions.inputs()
    assert torch.equal(network(lr, images, {}), other(lr, images, features))


@pytest.mark.parametrize("profile", PROFILES)
def test_experts_with_and_without_features_are_fused_together(fusions, profile):
    network = fusions.build(profile, channels={"a": 5, "b": 0, "c": 12})
    lr, images, features = fusions.inputs()
    del features["b"]
    assert (network(lr, images, features) - images.mean(1)).abs().max() < 1e-5
    fusions.train(network)
    network.zero_grad()
    (network(lr, images, features) - images[:, 0]).abs().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("profile", PHASED)
@pytest.mark.parametrize("phase", PHASES)
def test_the_trained_output_depends_on_each_phase(fusions, profile, phase):
    network = fusions.build(profile)
    fusions.train(network, steps=4)
    inputs = fusions.inputs()
    with torch.no_grad():
        whole = network(*inputs)
        with network.switched_off(phase):
            without = network(*inputs)
        assert torch.equal(network(*inputs), whole), "switched on again"
    assert (whole - without).abs().max() > 1e-5


@pytest.mark.parametrize("profile", PHASED)
def test_every_band_reaches_the_trained_output(fusions, profile):
    network = fusions.build(profile)
    fusions.train(network, steps=4)
    inputs = fusions.inputs()
    whole = network(*inputs)
    split = network.frequency.split
    for band in range(N_BANDS):
        network.frequency.split = lambda lr, band=band: _without(split(lr), band)
        assert (network(*inputs) - whole).abs().max() > 1e-7, band
    network.frequency.split = split
    assert torch.equal(network(*inputs), whole)


@pytest.mark.parametrize("profile", PHASED)
def test_guidance_and_every_gate_reach_the_trained_output(fusions, profile):
    network = fusions.build(profile)
    fusions.train(network, steps=4)
    inputs = fusions.inputs()
    whole = network(*inputs)
    split, decided = network.frequency.forward, network.selection.normalised
    for tier in range(3):
        network.frequency.forward = lambda lr, tier=tier: _without_guidance(*split(lr), tier)
        assert (network(*inputs) - whole).abs().max() > 1e-7, tier
    network.frequency.forward = split
    for expert in range(len(network.experts)):
        network.selection.normalised = lambda *seen, expert=expert: _closed(decided(*seen), expert)
        assert (network(*inputs) - whole).abs().max() > 1e-5, expert


def _without_guidance(bands: Tensor, guidance: Tensor, tier: int) -> tuple[Tensor, Tensor]:
    guidance = guidance.clone()
    guidance[:, tier] = 0
    return bands, guidance


def _closed(gates: Tensor, expert: int) -> Tensor:
    gates = gates.clone()
    gates[:, expert] = 0
    return gates


def _without(bands: Tensor, band: int) -> Tensor:
    bands = bands.clone()
    bands[:, band // 3, band % 3] = 0
    return bands


@pytest.mark.parametrize("profile", PROFILES)
def test_features_reach_the_trained_output(fusions, profile):
    network = fusions.build(profile)
    fusions.train(network, steps=4)
    lr, images, features = fusions.inputs()
    whole = network(lr, images, features)
    for name in features:
        changed = {**features, name: features[name].flip(-1)}
        assert (network(lr, images, changed) - whole).abs().max() > 1e-5, name


@pytest.mark.parametrize("start", ["mean", "document"])
@pytest.mark.parametrize("size", [(12, 11), (8, 8)])
def test_paper_is_direct_with_less_work(fusions, start, size):
    direct, paper = (fusions.build(profile, start=start) for profile in ("direct", "paper"))
    fusions.train(direct)
    paper.load_state_dict(direct.state_dict())
    inputs = fusions.inputs(*size)
    some, other = direct(*inputs), paper(*inputs)
    assert (some - other).abs().max() < 1e-4
    direct.zero_grad()
    some.square().mean().backward()
    other.square().mean().backward()
    for (name, a), b in zip(direct.named_parameters(), paper.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-3 * a.grad.norm() + 1e-7, name


@pytest.mark.parametrize("profile", PHASED)
def test_checkpointing_changes_memory_only(fusions, profile):
    kept, again = (fusions.build(profile, start="document", checkpointing=c) for c in (False, True))
    inputs = fusions.inputs()
    for network in (kept, again):
        network(*inputs).square().mean().backward()
    for (name, a), b in zip(kept.named_parameters(), again.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("profile", PHASED)
def test_bfloat16_gives_nearly_the_full_result(fusions, profile):
    network = fusions.build(profile, start="document")
    inputs = fusions.inputs()
    with torch.autocast("cpu", torch.bfloat16):
        half = network(*inputs)
    half.float().square().mean().backward()
    assert (half.float() - network(*inputs)).abs().max() < 0.05
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())


def test_an_exported_network_gives_the_same_image(fusions):
    network = fusions.build("swift", start="document").eval()
    inputs = fusions.inputs(8, 8, batch=1)
    exported = torch.export.export(network, inputs).module()
    assert torch.allclose(exported(*inputs), network(*inputs), atol=1e-6)


@pytest.mark.parametrize("profile", PROFILES)
def test_training_and_inference_are_one_function_of_each_image(fusions, profile):
    network = fusions.build(profile, **({"start": "document"} if profile in PHASED else {}))
    lr, images, features = fusions.inputs(batch=3)
    with torch.no_grad():
        together = network.train()(lr, images, features)
        alone = network.eval()(lr[1:2], images[1:2], {name: x[1:2] for name, x in features.items()})
    assert torch.allclose(together[1:2], alone, atol=1e-5)


@pytest.mark.parametrize("profile", PHASED)
def test_the_documents_start_brightens_as_its_constants_say(fusions, profile):
    network = fusions.build(profile, start="document")
    lr, images, features = fusions.inputs()
    assert network.residual_scale.item() == pytest.approx(0.1)
    assert network.edges.skip.tolist() == [1, 1, 1]
    modulation = network.maps(lr, images, features)["modulation"]
    assert (modulation > 0).all() and (modulation < 1).all()
    with network.switched_off(*set(PHASES) - {"collaboration"}):
        brighter = network(torch.ones_like(lr), torch.ones_like(images), features).mean()
    assert 1.1 < brighter < 1.3  # (1, 1.2) for modulation and 0.1 for the bilinear image


@pytest.mark.parametrize("profile", PHASED)
def test_maps_have_a_value_for_each_pixel(fusions, profile):
    network = fusions.build(profile)
    fusions.train(network)
    lr, images, features = fusions.inputs()
    maps = network.maps(lr, images, features)
    batch, experts, _, *size = images.shape
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "difficulty": (batch, 1, *size),
        "gates": (batch, experts, *size),
        "modulation": (batch, experts, *size),
    }
    assert all(x.min() >= 0 and x.max() <= 1 for x in maps.values())
    assert maps["gates"].sum(1).max() < 1 + 1e-5
    assert not any(x.requires_grad for x in maps.values())


@pytest.mark.parametrize("profile", PHASED)
@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_left_out_has_no_parameters_and_the_rest_start_as_before(fusions, profile, phase):
    whole, part = fusions.build(profile), fusions.build(profile, without=(phase,))
    kept = part.state_dict()
    assert not any(name.startswith(f"{phase}.") for name in kept)
    assert all(torch.equal(kept[name], x) for name, x in whole.state_dict().items() if not name.startswith(f"{phase}."))
    lr, images, features = fusions.inputs()
    assert (part(lr, images, features) - images.mean(1)).abs().max() < 1e-5


@pytest.mark.parametrize("profile", PROFILES)
def test_default_sizes_are_the_documents_budget_and_lean_has_a_third(profile):
    channels = {"hat": 180, "drct": 180, "grl": 180, "edsr": 256}
    network = build_fusion(FusionConfig(profile=profile), channels, 4)
    share = 0.3 if profile == "lean" else 1
    assert 1.1e6 * share <= sum(p.numel() for p in network.parameters()) <= 1.5e6 * share


@pytest.mark.parametrize("profile", ["paper", "direct"])
def test_deep_refinement_has_the_documents_layers(profile):
    refinement = build_fusion(FusionConfig(profile=profile), {"a": 4}, 4).refinement
    layers = [(conv.in_channels, conv.out_channels, conv.kernel_size) for conv in refinement.convs]
    assert layers == [(3, 128, (3, 3)), *[(128, 128, (3, 3))] * 4, (128, 3, (3, 3))]
    assert sum(p.numel() for p in refinement.parameters()) == 597_379, "the document's table has 400,000"


def test_gates_below_the_least_sum_leave_the_rest_to_the_mean(fusions):
    selection = fusions.build("paper").selection
    gates = selection.normalised(torch.full((1, 3, 2, 2), -1.0), torch.zeros(1, 1, 2, 2))
    assert gates.sum(1).max() < 1e-3
    images = torch.rand(1, 3, 3, 8, 8)
    torch.nn.init.constant_(selection.gates[-1].linear.bias, -1.0)
    fused, *_ = selection(images.mean(1), images, torch.rand(1, 3, 2, 2), torch.zeros(1, 0, 2, 2))
    assert torch.allclose(fused, images.mean(1), atol=1e-5)


def test_weights_that_are_blended_are_the_images_that_they_make_blended(fusions):
    network = fusions.build("swift")
    fusions.train(network)
    lr, images, _ = fusions.inputs(8, 9)
    weights = torch.softmax(torch.randn(2, 3, 32, 36), dim=1)
    seen = lr, torch.rand(2, 8, 8, 9)
    image, *maps = network.selection((images * weights.unsqueeze(2)).sum(1), images, *seen)
    blended, *same = network.selection(weights, None, *seen)
    assert torch.allclose((images * blended.unsqueeze(2)).sum(1), image, atol=1e-5)
    assert all(torch.equal(one, other) for one, other in zip(maps, same, strict=True))


def test_the_network_learns_which_expert_to_trust(fusions):
    """Each expert is right on one half of each image: the mean is wrong everywhere."""
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(2, 3, 48, 48, generator=generator)
    wrong = (hr + 0.2 * torch.randn(hr.shape, generator=generator)).split(24, dim=-1)
    halves = hr.split(24, dim=-1)
    images = torch.stack([torch.cat([halves[0], wrong[1]], -1), torch.cat([wrong[0], halves[1]], -1)], dim=1)
    right = torch.zeros(2, 1, 12, 12)
    right[..., :6] = 1.0
    lr, features = torch.nn.functional.avg_pool2d(hr, 4), {"left": right, "right": 1 - right}
    network = fusions.build("swift", channels={"left": 1, "right": 1})
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    mean = (images.mean(1) - hr).abs().mean().item()
    for _ in range(40):
        optimiser.zero_grad()
        loss = (network(lr, images, features) - hr).abs().mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.5 * mean


def test_unknown_phases_and_widths_are_refused(fusions):
    with pytest.raises(ConfigError, match="no phase colour"):
        build(FusionConfig, {"without": ["colour"]}, "fusion")
    with pytest.raises(ConfigError, match="profile"):
        build(FusionConfig, {"profile": "fast"}, "fusion")
    with pytest.raises(ConfigError, match="multiple"):
        build(FusionConfig, {"experts": 30, "expert_heads": 4}, "fusion")
    with pytest.raises(ConfigError, match="no experts"):
        build_fusion(FusionConfig(), {}, 4)
    with pytest.raises(ConfigError, match="no phase colour"), fusions.build().switched_off("colour"):
        pass


def test_images_of_another_size_are_refused(fusions):
    lr, images, features = fusions.inputs()
    with pytest.raises(ValueError, match="expected"):
        fusions.build()(lr, images[..., :-1], features)
    with pytest.raises(ValueError, match="expected"):
        fusions.build()(lr, images[:, :2], features)
