"""Difference of VGG19 features."""

from pathlib import Path

import torch
from torch import Tensor, nn

from championship_sr.store.errors import WeightsError

LAYERS = {"relu2_2": 8, "relu3_4": 17, "relu4_4": 26}  # places in torchvision's vgg19().features
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's normalisation for its ImageNet weights
IMAGENET_STD = (0.229, 0.224, 0.225)
CACHED_NAME = "vgg19-dcbb9e9d.pth"
HOW_TO_GET = (
    'download them with: python -c "from torchvision.models import vgg19, VGG19_Weights; '
    "vgg19(weights=VGG19_Weights.IMAGENET1K_V1)\" (548 MiB, into torch's cache), "
    "or give a file with train.losses.vgg_weights"
)


class VGGPerceptual(nn.Module):
    """L1 between the features of a frozen VGG19 at relu2_2, relu3_4 and relu4_4, mean over the three.

    source  Johnson et al. 2016, "Perceptual losses for real-time style transfer and super-resolution"
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        self.features = load_features(weights).eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        with torch.no_grad():
            targets = self.extract(hr)
        differences = [(a - b).abs().mean() for a, b in zip(self.extract(sr), targets, strict=True)]
        return torch.stack(differences).mean()

    def extract(self, image: Tensor) -> list[Tensor]:
        """The features of images (B, 3, H, W) in 0..1 at LAYERS."""
        x = (image - self.mean) / self.std
        layers = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in LAYERS.values():
                layers.append(x)
        return layers


def load_features(weights: Path | None) -> nn.Sequential:
    """VGG19's layers up to relu4_4, with weights from a file or else from torch's cache.

    raises  WeightsError saying how to get the file, or what is wrong with it
    """
    # torchvision takes a second to import, and only this loss needs it
    from torchvision.models import vgg19

    path = weights or Path(torch.hub.get_dir()) / "checkpoints" / CACHED_NAME
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; the vgg loss needs VGG19's ImageNet weights: {HOW_TO_GET}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds for a damaged file
        raise WeightsError(f"{path}: not a readable weights file: {' '.join(str(error).split())[:200]}") from error
    with torch.device("meta"):
        features = vgg19(weights=None).features[: max(LAYERS.values()) + 1]
    # an in-place layer would overwrite the features that are kept
    features = nn.Sequential(*(nn.ReLU() if isinstance(layer, nn.ReLU) else layer for layer in features))
    wanted = {key: state.get(f"features.{key}") for key in features.state_dict()}
    missing = [key for key, value in wanted.items() if value is None]
    if missing:
        raise WeightsError(f"{path}: not torchvision's VGG19: no features.{missing[0]}; {HOW_TO_GET}")
    try:
        features.load_state_dict(wanted, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{path}: not torchvision's VGG19: {' '.join(str(error).split())[:200]}") from error
    return features
