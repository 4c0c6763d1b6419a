"""The refinement with stand-ins for the VAE and the transformer, whose right answer is known."""

from types import SimpleNamespace

import click
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional

from championship_sr.evaluate.diffusion.config import DiffusionConfig
from championship_sr.evaluate.diffusion.options import diffusion_options, refiner_from_options
from championship_sr.evaluate.diffusion.refine import Prompt, Refiner
from championship_sr.store.config import build
from championship_sr.store.errors import ConfigError, WeightsError

FACTOR, SCALE, SHIFT = 4, 1.5, 0.25


class Shuffling:
    """An invertible VAE: pixels of a block become channels."""

    config = SimpleNamespace(block_out_channels=(1, 1, 1), scaling_factor=SCALE, shift_factor=SHIFT)

    def encode(self, image):
        latent = functional.pixel_unshuffle(image, FACTOR)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latent))

    def decode(self, latent, return_dict):
        return (functional.pixel_shuffle(latent, FACTOR),)


class Velocity:
    """Remembers what it was asked; predicts `gain` x the latent + the mean of its prompt."""

    config = SimpleNamespace(patch_size=2)

    def __init__(self, gain: float = 0.0) -> None:
        self.gain, self.calls = gain, []

    def __call__(self, hidden_states, timestep, encoder_hidden_states, pooled_projections, return_dict):
        assert len(hidden_states) == len(timestep) == len(encoder_hidden_states) == len(pooled_projections)
        self.calls.append(SimpleNamespace(latent=hidden_states, timestep=timestep))
        return (self.gain * hidden_states + encoder_hidden_states.mean((1, 2))[:, None, None, None],)


def prompt(value: float = 0.0) -> Prompt:
    return Prompt(torch.full((1, 5, 6), value), torch.zeros(1, 7))


def sr(batch: int = 1, height: int = 37, width: int = 50) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def refiner(velocity: Velocity | None = None, vae=None, **settings) -> Refiner:
    return Refiner(DiffusionConfig(**settings), vae or Shuffling(), velocity or Velocity(), prompt())


@pytest.mark.parametrize("student_shift", [False, True])
@pytest.mark.parametrize("colour", ["wavelet", "adain", "none"])
def test_a_student_that_predicts_nothing_gives_back_the_image(colour, student_shift):
    made = refiner(alpha=0, colour=colour, student_shift=student_shift)(sr(batch=2))
    assert torch.allclose(made, sr(batch=2), atol=1e-5)


def test_the_latent_is_the_scaled_code_minus_the_prediction_at_the_fixed_timestep():
    velocity = Velocity(gain=0.75)
    made = refiner(velocity, alpha=0, colour="none")(sr(height=32, width=48))
    (call,) = velocity.calls
    pixels = sr(height=32, width=48) * 2 - 1
    assert torch.allclose(call.latent, functional.pixel_unshuffle(pixels, FACTOR) * SCALE)
    assert call.timestep.tolist() == [1000.0]
    assert torch.allclose(made, (pixels * 0.25) / 2 + 0.5, atol=1e-6)


def test_the_shift_of_the_vae_is_used_where_asked_for():
    velocity = Velocity(gain=0.75)
    made = refiner(velocity, alpha=0, colour="none", student_shift=True)(sr(height=32, width=48))
    pixels = sr(height=32, width=48) * 2 - 1
    assert torch.allclose(made, ((pixels - SHIFT) * 0.25 + SHIFT) / 2 + 0.5, atol=1e-6)


def test_alpha_one_is_the_input_and_less_is_a_blend():
    diffused = refiner(Velocity(0.5), alpha=0)(sr())
    assert torch.equal(refiner(Velocity(0.5), alpha=1)(sr()), sr())
    assert (diffused - sr()).abs().mean() > 0.01
    blended = refiner(Velocity(0.5), alpha=0.3)(sr())
    assert torch.allclose(blended, 0.3 * sr() + 0.7 * diffused, atol=1e-6)


def test_colours_come_from_the_input():
    brighter = Velocity()
    made = Refiner(DiffusionConfig(alpha=0), Shuffling(), brighter, prompt(-0.3))(sr())
    plain = Refiner(DiffusionConfig(alpha=0, colour="none"), Shuffling(), brighter, prompt(-0.3))(sr())
    assert (plain - sr()).mean() > 0.05
    assert (made - sr()).abs().mean() < 0.02


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 15), (33, 64)])
def test_any_size_comes_out_as_it_went_in(size):
    velocity = Velocity(0.1)
    assert refiner(velocity)(sr(1, *size)).shape == (1, 3, *size)
    assert all(side % 2 == 0 for side in velocity.calls[0].latent.shape[-2:])


def test_large_images_go_through_in_tiles_with_the_same_result():
    tiles = {"tile": 16, "overlap": 4, "vae_tile": 16, "vae_overlap": 4}
    in_tiles, at_once = Velocity(0.5), Velocity(0.5)
    made = refiner(in_tiles, alpha=0, **tiles)(sr(2, 150, 210))
    assert torch.allclose(made, refiner(at_once, alpha=0)(sr(2, 150, 210)), atol=1e-5)
    assert len(at_once.calls) == 1 and len(in_tiles.calls) > 6
    assert {tuple(call.latent.shape) for call in in_tiles.calls} == {(2, 48, 16, 16)}


def test_gradients_and_the_kind_of_the_input_are_left_alone():
    given = sr().double().requires_grad_(True)
    made = refiner(Velocity(0.5))(given)
    assert made.dtype == torch.float64 and not made.requires_grad


def test_nan_from_the_model_is_an_error():
    with pytest.raises(WeightsError, match="NaN or Inf with precision=fp32"):
        refiner(Velocity(float("nan")))(sr())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 1.5}, "alpha must be in 0..1, found 1.5"),
        ({"colour": "histogram"}, "diffusion.colour: .*'histogram'"),
        ({"method": "teacher", "strength": 0.01}, "less than one step"),
        ({"tile": 64, "overlap": 40}, "at most half"),
        ({"alhpa": 0.5}, "diffusion.alhpa: no such key"),
    ],
)
def test_impossible_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        build(DiffusionConfig, values, "c.yaml", "diffusion")


def test_options_reach_the_refiner(monkeypatch, tmp_path):
    monkeypatch.setattr("championship_sr.evaluate.diffusion.options.load_refiner", lambda *given: given)

    @click.command()
    @diffusion_options
    def command(diffusion, alpha):
        made = refiner_from_options(diffusion, alpha, DiffusionConfig(colour="adain"), "cpu")
        click.echo("none" if made is None else f"{made[0].name} {made[1].alpha} {made[1].colour} {made[2]}")

    def output(*arguments):
        return CliRunner().invoke(command, arguments).output.strip()

    assert output() == "none"
    assert output("--diffusion", str(tmp_path), "--alpha", "0.25") == f"{tmp_path.name} 0.25 adain cpu"
    assert output("--diffusion", str(tmp_path)) == f"{tmp_path.name} 0.5 adain cpu"
    assert "--alpha needs --diffusion FOLDER" in output("--alpha", "0.25")
    assert "2" in output("--diffusion", str(tmp_path), "--alpha", "2")
