"""What the refinement does to an image, apart from where its weights are."""

from typing import Literal

from championship_sr.store.config import config_dataclass


@config_dataclass
class DiffusionConfig:
    """One step of TSD-SR's student, or several of its teacher, and how much of the result is kept.

    Tile sizes are in latent pixels: one is as many image pixels as the VAE's factor, 8 for Stable Diffusion 3.
    """

    method: Literal["student", "teacher"] = "student"
    alpha: float = 0.5  # share of the fusion's own image in the output; 1 changes nothing
    colour: Literal["wavelet", "adain", "none"] = "wavelet"  # how the colours of the fusion's image are restored
    timestep: float = 1000.0  # at which the student was distilled
    student_shift: bool = False  # TSD-SR was trained on latents without the shift_factor of SD3's VAE
    vae_lora: bool = True  # TSD-SR's student comes with a LoRA of the VAE's encoder
    teacher_lora: bool = True  # TSD-SR's teacher is SD3 with a LoRA; false: SD3 itself
    steps: int = 28  # of the teacher's whole schedule
    strength: float = 0.3  # share of that schedule that is run: 0 is nothing, 1 starts from pure noise
    guidance: float = 7.5  # classifier-free guidance of the teacher; 1 needs no negative prompt
    seed: int = 0  # of the teacher's noise
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the transformer; the VAE always runs in fp32
    tile: int = 64  # TSD-SR's training size: larger latents are cut
    overlap: int = 8
    vae_tile: int = 96
    vae_overlap: int = 24

    def __post_init__(self) -> None:
        for key, low, high in (("alpha", 0, 1), ("strength", 0, 1), ("guidance", 1, 100), ("timestep", 0, 1000)):
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"{key} must be in {low}..{high}, found {getattr(self, key)}")
        if self.method == "teacher" and self.steps_run < 1:
            raise ValueError(f"steps={self.steps} x strength={self.strength} is less than one step")
        for tile, overlap in ((self.tile, self.overlap), (self.vae_tile, self.vae_overlap)):
            if tile < 16 or not 0 <= overlap <= tile // 2:
                raise ValueError(
                    f"tiles must be at least 16 and overlaps at most half of that, found {tile} and {overlap}"
                )

    @property
    def steps_run(self) -> int:
        """The last steps of the teacher's schedule, those that `strength` leaves."""
        return round(self.steps * self.strength)
