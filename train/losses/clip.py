"""Difference of CLIP embeddings."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from championship_sr.store.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # Radford et al. 2021, the published preprocessing
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
DEFAULT_MODEL = "openai/clip-vit-base-patch32"
HOW_TO_GET = (
    f"download them with: hf download {DEFAULT_MODEL} (into the cache of huggingface_hub), "
    "or give a folder that holds config.json and model.safetensors with train.losses.clip_weights"
)


class CLIPSemantic(nn.Module):
    """1 - cosine similarity of the image embeddings of a frozen CLIP; the gradient passes through the encoder."""

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        encoder = load_encoder(weights)
        self.size: Any = encoder.config.image_size  # one number, although the library allows more
        self.encoder = encoder.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.embed(hr)
        return 1 - F.cosine_similarity(self.embed(sr), target, dim=-1).mean()

    def embed(self, image: Tensor) -> Tensor:
        """Embeddings (B, D) of images (B, 3, H, W) in 0..1, resized to the encoder's square."""
        resized = F.interpolate(image, size=(self.size, self.size), mode="bicubic", antialias=True, align_corners=False)
        return self.encoder(pixel_values=(resized - self.mean) / self.std).image_embeds


def load_encoder(weights: Path | None) -> "CLIPVisionModelWithProjection":
    """CLIP's vision tower from a folder, or else from Hugging Face's cache; nothing is downloaded.

    raises  ConfigError if transformers is not installed, WeightsError saying how to get the weights
    """
    try:
        from transformers import CLIPVisionModelWithProjection
    except ImportError:
        raise ConfigError(
            "the clip loss needs the package transformers: pip install 'championship-sr[perceptual]'"
        ) from None
    place = str(weights or DEFAULT_MODEL)
    if weights is not None and not weights.is_dir():
        raise WeightsError(f"{place}: no such folder; the clip loss needs CLIP's weights: {HOW_TO_GET}")
    try:
        return CLIPVisionModelWithProjection.from_pretrained(place, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{place}: CLIP cannot be loaded ({reason}); {HOW_TO_GET}") from error
