import functools

import pytest
import torch
from torch import nn

from championship_sr.extract.config import load_expert_config
from championship_sr.extract.experts.expert import LoadedExpert, NonFiniteError, load_expert
from championship_sr.extract.experts.networks import Network, load_network
from championship_sr.store.errors import ConfigError, WeightsError

CPU = torch.device("cpu")


class Small(nn.Module):
    """x2 by nearest neighbour of a convolution; `say` looks at each input and may change the output."""

    def __init__(self, say=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 3, 1)
        self.unused = nn.Identity()
        self.drop = nn.Dropout(0.5)
        self.say = say or (lambda x, y: y)

    def forward(self, x):
        y = self.last(self.drop(self.body(x)))
        return self.say(x, y.repeat_interleave(2, 2).repeat_interleave(2, 3))


def expert(model, multiple_px=1, minimum_px=1, scale=2, tap="body", **options) -> LoadedExpert:
    config = load_expert_config({"name": "e", "weights": "none", "tap": tap})
    network = Network(model.eval(), model, multiple_px, multiple_px, minimum_px, "Small", {}, None)
    return LoadedExpert(config, network, CPU, scale, **options)


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (8, 8), (13, 9), (2, 40)])
def test_the_network_sees_a_reflected_multiple_of_its_window_and_the_answer_is_cropped(size):
    seen = []
    model = Small(lambda x, y: seen.append(x) or y)
    loaded = expert(model, multiple_px=8, minimum_px=16)
    seen.clear()
    lr = torch.rand(1, 3, *size)
    sr, features = loaded(lr)
    (padded,) = seen
    assert all(n % 8 == 0 and n >= 16 for n in padded.shape[2:])
    assert padded[..., : size[0], : size[1]].equal(lr)
    assert sr.shape == (1, 3, 2 * size[0], 2 * size[1]) and features["features"].shape == (1, 4, *size)
    if size[0] > 1 and padded.shape[2] > size[0]:
        assert padded[..., size[0], : size[1]].equal(lr[..., size[0] - 2, :])  # the edge itself is not repeated


def test_sr_and_features_are_the_networks_own():
    loaded, lr = expert(Small()), torch.rand(2, 3, 6, 5)
    sr, features = loaded(lr)
    model = Small().eval()
    assert sr.equal(model(lr).clamp(0, 1))
    assert features["features"].equal(model.body(lr))


def test_training_mode_around_an_expert_does_not_reach_it():
    parent, lr = nn.Module(), torch.rand(1, 3, 6, 5)
    parent.expert = expert(Small())  # with dropout
    before = parent.expert(lr)[0]
    parent.train()
    assert parent.expert(lr)[0].equal(before)


def test_no_gradient_flows_into_an_expert_and_a_training_step_can_take_its_answer():
    loaded, lr = expert(Small()), torch.rand(1, 3, 6, 5, requires_grad=True)
    sr, features = loaded(lr)
    assert not sr.requires_grad and not features["features"].requires_grad
    assert not sr.is_inference()


def test_closing_takes_the_hooks_off():
    model = Small()
    with expert(model):
        assert model.body._forward_hooks
    assert not model.body._forward_hooks


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_an_error_even_where_clamping_would_hide_it(value):
    loaded = expert(Small(lambda x, y: y.index_fill(3, torch.tensor([0]), value) if x.shape[2] == 5 else y))
    with pytest.raises(NonFiniteError, match="expert e: sr contains NaN or Inf at precision fp32"):
        loaded(torch.rand(1, 3, 5, 5))


def test_large_values_whose_sum_overflows_are_finite():
    loaded = expert(Small(lambda x, y: y.fill_(3e38) if x.shape[2] == 5 else y))
    assert loaded(torch.rand(1, 3, 5, 5))[0].equal(torch.ones(1, 3, 10, 10))


@pytest.mark.parametrize(
    ("precision", "advice"),
    [("fp32", "the weights may be damaged"), ("bf16", "precision to fp32"), ("fp16", "precision to bf16 or fp32")],
)
def test_weights_whose_first_answer_is_not_finite_are_refused_with_advice(precision, advice):
    with pytest.raises(NonFiniteError, match=f"sr contains NaN or Inf at precision {precision}; .*{advice}"):
        expert(Small(lambda x, y: y * float("inf")), precision=precision)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_used_in_the_network_and_float32_comes_out(precision):
    dtypes = []
    loaded = expert(Small(lambda x, y: dtypes.append(y.dtype) or y), precision=precision)
    sr, features = loaded(torch.rand(1, 3, 6, 5))
    assert set(dtypes) == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    assert sr.dtype == features["features"].dtype == torch.float32
    assert loaded.identity["precision"] == precision


def test_channels_last_changes_the_layout_not_the_values():
    plain, last = expert(Small()), expert(Small(), channels_last=True)
    lr = torch.rand(1, 3, 6, 5)
    assert torch.allclose(plain(lr)[0], last(lr)[0], atol=1e-6)
    assert last._network.model.body.weight.is_contiguous(memory_format=torch.channels_last)


def test_taps_of_a_compiled_network_are_refreshed_at_each_forward(monkeypatch):
    # hooks set after the first compiled forward would never fire
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    loaded, model = expert(Small(), compiled=True), Small().eval()
    for _ in range(2):
        lr = torch.rand(1, 3, 6, 5)
        assert torch.allclose(loaded(lr)[1]["features"], model.body(lr), atol=1e-6)


def test_another_scale_is_found_before_the_first_image():
    with pytest.raises(WeightsError, match=r"returns \(1, 3, 64, 96\) for \(1, 3, 32, 48\), expected x4 RGB"):
        expert(Small(), scale=4)


def test_a_tap_that_does_not_run_is_found_before_the_first_image():
    with pytest.raises(ConfigError, match="tap unused is not reached in the forward pass"):
        expert(Small(), tap="unused")


def test_a_failing_network_is_named_in_one_line():
    class Picky(Small):
        def forward(self, x):
            return super().forward(x.reshape(7, -1))

    with pytest.raises(WeightsError, match=r"expert e: fails on an image of 32 x 48: shape .* is invalid"):
        expert(Picky())


def test_a_failed_probe_leaves_no_hooks():
    model = Small()
    with pytest.raises(WeightsError):
        expert(model, scale=4)
    assert not model.body._forward_hooks


def test_identity_changes_with_whatever_decides_the_bytes(save_edsr):
    entry = save_edsr()
    base = load_expert(load_expert_config(entry), CPU, 4).identity
    for changed, options in (
        (entry | {"tap": "conv_first"}, {}),
        (entry | {"window_px": 4}, {}),
        (entry | {"tap": {"path": "conv_after_body", "side": "input"}}, {}),
        (entry, {"precision": "bf16"}),
        (entry, {"channels_last": True}),
        (save_edsr("tiny", seed=1), {}),
    ):
        assert load_expert(load_expert_config(changed), CPU, 4, **options).identity != base


def test_identity_does_not_change_with_the_place_of_the_weights(save_edsr, tmp_path):
    entry = save_edsr()
    base = load_expert(load_expert_config(entry), CPU, 4).identity
    moved = (tmp_path / "tiny.safetensors").rename(tmp_path / "elsewhere.safetensors")
    assert load_expert(load_expert_config(entry | {"weights": str(moved)}), CPU, 4).identity == base


def test_random_weights_are_stamped():
    config = load_expert_config(
        {
            "name": "e",
            "weights": "none",
            "tap": "conv_after_body",
            "architecture": "extract.edsr:EDSR",
            "hyperparameters": {"num_feat": 4, "num_block": 1},
        }
    )
    identity = load_expert(config, CPU, 4, random_weights=True).identity
    assert identity["random_weights"] is True and identity["weights_sha256"] is None


def test_several_taps_come_by_name(save_edsr):
    entry = save_edsr() | {"tap": None, "taps": {"features": "conv_after_body", "early": "conv_first"}}
    loaded = load_expert(load_expert_config(entry), CPU, 4)
    assert loaded.channels == {"features": 8, "early": 8}
    lr = torch.rand(1, 3, 6, 5)
    model = load_network(load_expert_config(entry), 4).model
    assert loaded(lr)[1]["early"].equal(model.conv_first((lr - model.mean) * model.img_range))
