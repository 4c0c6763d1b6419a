"""Track B end to end on tiny random Stable Diffusion 3 models. Needs the extra `diffusion`."""

import json

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from championship_sr import load
from championship_sr.evaluate.commands import evaluate, upscale
from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.diffusion.config import DiffusionConfig
from championship_sr.evaluate.diffusion.lora import merge_lora
from championship_sr.evaluate.diffusion.weights import load_refiner
from championship_sr.evaluate.inference.pictures import write_picture
from championship_sr.extract.images.decode import read_picture
from championship_sr.extract.images.picture import Picture
from championship_sr.store.errors import ConfigError, WeightsError

diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusion")

CHANNELS, TOKENS, WIDTH, POOLED = 16, 7, 24, 20
TILES = {"tile": 16, "overlap": 4, "vae_tile": 32, "vae_overlap": 16}


def tiny_vae():
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return vae.eval()


def tiny_transformer(channels: int = CHANNELS):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=POOLED,
        pos_embed_max_size=8,
    )
    for parameter in transformer.parameters():  # diffusers begins with a projection of zeros
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return transformer.eval()


def low_rank(model, names: list[str], seed: int, rank: int = 3) -> dict[str, torch.Tensor]:
    """A random LoRA of these layers, under the names that TSD-SR writes."""
    generator, result = torch.Generator().manual_seed(seed), {}
    for name in names:
        weight = model.get_submodule(name).weight
        halves = {"A": (rank, *weight.shape[1:]), "B": (weight.shape[0], rank, *[1] * (weight.ndim - 2))}
        for half, shape in halves.items():
            result[f"transformer.{name}.lora_{half}.weight"] = torch.randn(shape, generator=generator) * 0.3
    return result


TRANSFORMER_LAYERS = [
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.1.ff.net.0.proj",
    "pos_embed.proj",
    "proj_out",
]
VAE_LAYERS = ["encoder.conv_in", "encoder.mid_block.attentions.0.to_q", "encoder.conv_out"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A whole folder of weights for the student and the teacher."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd3")
    vae, transformer = tiny_vae(), tiny_transformer()
    vae.save_pretrained(folder / "vae")
    transformer.save_pretrained(folder / "transformer")
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    (folder / "lora").mkdir()
    for seed, (model, layers, name) in enumerate(
        [
            (transformer, TRANSFORMER_LAYERS, "transformer"),
            (vae, VAE_LAYERS, "vae"),
            (transformer, TRANSFORMER_LAYERS, "teacher"),
        ]
    ):
        save_file(low_rank(model, layers, seed), folder / "lora" / f"{name}.safetensors")
    for name in ("prompt", "prompt-null"):
        (folder / name).mkdir()
        torch.save(torch.randn(1, TOKENS, WIDTH), folder / name / "prompt_embeds.pt")
        save_file({"pooled": torch.randn(POOLED)}, folder / name / "pool_embeds.safetensors")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """The same, to be damaged."""
    for path in original.rglob("*.*"):
        (tmp_path / path.relative_to(original)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path.relative_to(original)).write_bytes(path.read_bytes())
    return tmp_path


def sr(height: int = 90, width: int = 70) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def refined(folder, image=None, **settings) -> torch.Tensor:
    config = DiffusionConfig(**TILES | settings)
    return load_refiner(folder, config, "cpu")(sr() if image is None else image)


@pytest.mark.parametrize("method", ["student", "teacher"])
@pytest.mark.parametrize("size", [(90, 70), (150, 301)])
def test_refines_images_of_any_size(original, method, size):
    image = sr(*size)
    made = refined(original, image, method=method, alpha=0.25, steps=4, strength=0.5)
    assert made.shape == image.shape and made.isfinite().all()
    assert (made - image).abs().mean() > 0.01
    assert torch.equal(refined(original, image, method=method, alpha=1, steps=4, strength=0.5), image)


def test_the_student_is_the_vae_the_loras_and_one_step(original):
    """Written out with diffusers alone; the LoRAs as peft applies them."""
    peft = pytest.importorskip("peft")
    vae = diffusers.AutoencoderKL.from_pretrained(original / "vae")
    transformer = diffusers.SD3Transformer2DModel.from_pretrained(original / "transformer")
    for model, name, layers in ((vae, "vae", VAE_LAYERS), (transformer, "transformer", TRANSFORMER_LAYERS)):
        peft.inject_adapter_in_model(peft.LoraConfig(r=3, lora_alpha=3, target_modules=layers), model)
        state = load_file(original / "lora" / f"{name}.safetensors")
        given = {key.removeprefix("transformer."): value for key, value in state.items()}
        outcome = peft.set_peft_model_state_dict(model, given)
        assert not outcome.unexpected_keys
    image = sr(64, 96)
    with torch.no_grad():
        latent = vae.encode(image * 2 - 1).latent_dist.mode() * 1.5305
        prediction = transformer(
            hidden_states=latent,
            timestep=torch.tensor([1000.0]),
            encoder_hidden_states=torch.load(original / "prompt" / "prompt_embeds.pt", weights_only=True),
            pooled_projections=load_file(original / "prompt" / "pool_embeds.safetensors")["pooled"][None],
        ).sample
        expected = vae.decode((latent - prediction) / 1.5305).sample.clamp(-1, 1) / 2 + 0.5
    found = refined(original, image, alpha=0, colour="none")
    assert (expected - image).abs().mean() > 0.01
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("part", ["vae", "transformer", "lora/transformer", "lora/vae", "prompt/pool_embeds"])
def test_every_file_matters(folder, part):
    before = refined(folder, alpha=0, colour="none")
    path = folder / f"{part}.safetensors"
    path = path if path.exists() else next((folder / part).glob("*.safetensors"))
    save_file({key: value * 0.5 for key, value in load_file(path).items()}, path, {"format": "pt"})
    assert (refined(folder, alpha=0, colour="none") - before).abs().max() > 1e-3


def test_settings_of_the_vae_come_from_its_configuration(folder):
    before = refined(folder, alpha=0, colour="none")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": 0.5, "shift_factor": 0.9}))
    scaled = refined(folder, alpha=0, colour="none")
    shifted = refined(folder, alpha=0, colour="none", student_shift=True)
    assert (scaled - before).abs().max() > 1e-3 and (shifted - scaled).abs().max() > 1e-3


class Straight:
    """A velocity field that leads every noisy latent straight to `target`."""

    def __init__(self, like, target, scheduler) -> None:
        self.config, self.target, self.scheduler = like.config, target, scheduler
        self.timesteps: list[float] = []

    def __call__(self, hidden_states, timestep, **_prompts):
        self.timesteps.append(timestep[0].item())
        sigma = timestep.view(-1, 1, 1, 1) / self.scheduler.config.num_train_timesteps
        return ((hidden_states - self.target) / sigma,)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_the_teacher_follows_the_end_of_the_schedule_to_its_target(original, guidance):
    config = DiffusionConfig(method="teacher", steps=10, strength=0.4, guidance=guidance, **TILES)
    refiner = load_refiner(original, config, "cpu")
    target = torch.rand(1, CHANNELS, 1, 1).expand(1, CHANNELS, 12, 14)
    field = refiner.transformer = Straight(refiner.transformer, target[..., :1, :1], refiner.scheduler)
    for _ in range(2):  # the scheduler begins again for each image
        found = refiner.many_steps(torch.rand(1, CHANNELS, 12, 14))
        assert torch.allclose(found, target, atol=1e-4)
    whole = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    whole.set_timesteps(10)
    assert field.timesteps == pytest.approx(whole.timesteps[6:].tolist() * 2)


def test_the_teacher_starts_from_noise_as_strong_as_its_first_timestep(original):
    config = DiffusionConfig(method="teacher", steps=10, strength=0.4, guidance=1, **TILES)
    refiner = load_refiner(original, config, "cpu")
    seen = []

    class Still:
        config = refiner.transformer.config

        def __call__(self, hidden_states, timestep, **_prompts):
            seen.append((hidden_states, timestep.item() / 1000))
            return (torch.zeros_like(hidden_states),)

    refiner.transformer = Still()
    refiner.many_steps(torch.full((1, CHANNELS, 16, 16), 5.0))
    latent, sigma = seen[0]
    assert 0 < sigma < 1
    assert latent.mean().item() == pytest.approx(5 * (1 - sigma), abs=0.1)
    assert latent.std().item() == pytest.approx(sigma, rel=0.1)


def test_the_seed_decides_the_teacher(original):
    settings = {"method": "teacher", "steps": 4, "strength": 0.5, "alpha": 0}
    assert torch.equal(refined(original, **settings), refined(original, **settings))
    assert not torch.equal(refined(original, **settings), refined(original, **settings, seed=1))


def test_guidance_leads_away_from_the_negative_prompt(original):
    config = DiffusionConfig(method="teacher", guidance=3, steps=4, strength=0.5, **TILES)
    refiner = load_refiner(original, config, "cpu")
    plain = load_refiner(original, DiffusionConfig(method="teacher", guidance=1, **TILES), "cpu")
    latent, timestep = torch.randn(2, CHANNELS, 12, 12), torch.tensor(500.0)
    towards = plain.velocity(latent, timestep)
    plain._prompts = refiner._prompts[:1]
    away = plain.velocity(latent, timestep)
    assert (towards - away).abs().max() > 1e-3
    assert torch.allclose(refiner.velocity(latent, timestep), away + 3 * (towards - away), atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close(original, precision):
    exact = refined(original, alpha=0)
    assert 0 < (refined(original, alpha=0, precision=precision) - exact).abs().mean() < 0.01


def test_the_merged_lora_equals_the_one_that_diffusers_saves(original, tmp_path):
    """With a lora_alpha that is not the rank, in the file's metadata."""
    peft = pytest.importorskip("peft")
    transformer = diffusers.SD3Transformer2DModel.from_pretrained(original / "transformer")
    transformer.add_adapter(
        peft.LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "proj_out"], init_lora_weights=False)
    )
    transformer.save_lora_adapter(tmp_path, weight_name="lora.safetensors")
    merged = diffusers.SD3Transformer2DModel.from_pretrained(original / "transformer")
    merge_lora(merged, tmp_path / "lora.safetensors")
    inputs = {
        "hidden_states": torch.randn(1, CHANNELS, 8, 8),
        "timestep": torch.tensor([700.0]),
        "encoder_hidden_states": torch.randn(1, TOKENS, WIDTH),
        "pooled_projections": torch.randn(1, POOLED),
    }
    with torch.no_grad():
        expected, found = transformer(**inputs).sample, merged(**inputs).sample
    assert torch.allclose(found, expected, atol=1e-4)


def damaged_config(folder):
    (folder / "vae" / "config.json").write_text("{")


def other_class(folder):
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "UNet2DConditionModel"}))


def truncated(folder):
    path = next((folder / "transformer").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])


def missing_tensor(folder):
    path = next((folder / "vae").glob("*.safetensors"))
    state = load_file(path)
    del state["encoder.conv_in.weight"]
    save_file(state, path, {"format": "pt"})


def extra_tensor(folder):
    path = next((folder / "transformer").glob("*.safetensors"))
    save_file(load_file(path) | {"extra": torch.ones(1)}, path, {"format": "pt"})


def other_shape(folder):
    path = next((folder / "transformer").glob("*.safetensors"))
    save_file(load_file(path) | {"proj_out.weight": torch.ones(3, 3)}, path, {"format": "pt"})


def other_channels(folder):
    tiny_transformer(channels=4).save_pretrained(folder / "transformer")
    save_file(low_rank(tiny_transformer(4), TRANSFORMER_LAYERS, 0), folder / "lora" / "transformer.safetensors")


def other_prompt(folder):
    torch.save(torch.ones(1, TOKENS, WIDTH + 1), folder / "prompt" / "prompt_embeds.pt")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged_config, "vae/config.json: not a model's configuration"),
        (other_class, "transformer: expected a SD3Transformer2DModel, found a UNet2DConditionModel"),
        (truncated, "transformer: can't be loaded"),
        (missing_tensor, r"vae: the weights don't fit the configuration: missing encoder\.conv_in\.weight"),
        (extra_tensor, "transformer: the weights don't fit the configuration: unexpected extra"),
        (other_shape, "transformer: .*proj_out.weight"),
        (other_channels, "the VAE makes 16 latent channels, but the transformer takes 4"),
        (
            other_prompt,
            r"prompt: the transformer expects embeddings \(1, tokens, 24\) and \(1, 20\), found \(1, 7, 25\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_errors_of_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(WeightsError, match=message) as caught:
        refined(folder)
    assert "\n" not in str(caught.value)


def test_a_tile_beyond_the_position_table_is_refused(original):
    with pytest.raises(ConfigError, match=r"diffusion\.tile=64: .* takes at most 16"):
        load_refiner(original, DiffusionConfig(), "cpu")


def invoked(command, *arguments) -> None:
    """Runs the command on the CPU, the diffusion model in the tiny tiles that these models take."""
    given = {"device": "cpu", "tile_px": 16, "halo_px": 8, "blend_px": 4}
    given |= {f"diffusion.{key}": value for key, value in TILES.items()}
    settings = [part for key, value in given.items() for part in ("--set", f"evaluate.{key}={value}")]
    result = CliRunner().invoke(command, [*map(str, arguments), *settings], standalone_mode=False)
    if result.exception:
        raise result.exception


def tiled(run_root, **more):
    return load(run_root, config=EvaluateConfig(device="cpu", tile_px=16, halo_px=8, blend_px=4), **more)


def test_upscale_refines_every_file_of_a_folder_tiles_and_depth_and_all(run_root, original, tmp_path):
    rng, given, made = np.random.default_rng(0), tmp_path / "in", tmp_path / "out"
    given.mkdir()
    deep, alpha = (rng.integers(2**16, size=shape, dtype=np.uint16) for shape in ((25, 18, 3), (25, 18)))
    write_picture(given / "deep.png", Picture(deep, alpha))
    Image.fromarray(rng.integers(0, 256, (12, 20, 3), np.uint8)).save(given / "flat.png")
    invoked(upscale, "--run", run_root, given, made, "--diffusion", original, "--alpha", 0.25)
    refine, plain = load_refiner(original, DiffusionConfig(alpha=0.25, **TILES), "cpu"), tiled(run_root)
    for name in ("deep.png", "flat.png"):
        pixels = read_picture(given / name).pixels
        largest = np.iinfo(pixels.dtype).max
        fused = plain(torch.from_numpy(pixels / largest).permute(2, 0, 1).float())
        expected, found = (refine(fused[None])[0] * largest).permute(1, 2, 0).numpy(), read_picture(made / name)
        assert found.pixels.dtype == pixels.dtype and (found.alpha is None) == (name == "flat.png")
        assert np.abs(found.pixels - expected).max() <= largest / 1e4 + 0.5  # a tensor is rounded to 32 bits on the way
        assert np.abs(found.pixels - fused.permute(1, 2, 0).numpy() * largest).mean() > largest / 100
    assert np.array_equal(tiled(run_root, refiner=refine)(pixels), found.pixels)


def test_a_submission_can_be_refined(run_root, original, tmp_path):
    (tmp_path / "lr").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "lr" / "a.png")
    arguments = ("submit", "--run", run_root, "--lr", tmp_path / "lr", tmp_path / "out", "--diffusion", original)
    invoked(evaluate, *arguments)
    refine = load_refiner(original, DiffusionConfig(**TILES), "cpu")
    found = read_picture(tmp_path / "out" / "results" / "a.png").pixels
    assert np.array_equal(found, tiled(run_root, refiner=refine)(pixels))


def test_weights_that_are_missing_are_one_line_and_nothing_is_written(run_root, hr_folder, folder, tmp_path):
    (folder / "lora" / "vae.safetensors").unlink()
    arguments = ("--run", run_root, hr_folder, tmp_path / "out", "--diffusion", folder)
    with pytest.raises(WeightsError, match=r"files missing for student: lora/vae\.safetensors \(TSD-SR:") as caught:
        invoked(upscale, *arguments)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    with pytest.raises(click.UsageError, match="leave out --experts-only"):
        invoked(upscale, *arguments, "--experts-only")
