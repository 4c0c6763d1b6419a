"""EDSR, the one expert architecture that spandrel lacks, registered with spandrel's own registry.

Source: Lim et al. 2017, "Enhanced Deep Residual Networks for Single Image Super-Resolution".
Two key layouts are in use and both load: BasicSR's (`conv_first`, `body.0.conv1`, ...) and the
official repository's (`head.0`, `body.0.body.0`, ..., with `sub_mean` and `add_mean`).
"""

import math
import re
from typing import ClassVar

import torch
from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor
from spandrel.util import KeyCondition, get_seq_len
from torch import Tensor, nn

DIV2K_RGB_MEAN = (0.4488, 0.4371, 0.4040)  # Lim et al. 2017, the published checkpoints
OFFICIAL_IMG_RANGE = 255.0  # both layouts' published checkpoints work on 0..255


class ResidualBlockNoBN(nn.Module):
    """Two 3x3 convolutions without normalisation, their sum scaled before it is added."""

    def __init__(self, num_feat: int, res_scale: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(x))) * self.res_scale


class Upsample(nn.Sequential):
    """Sub-pixel upsampling: one x2 step for each power of two, or one x3 step."""

    def __init__(self, scale: int, num_feat: int) -> None:
        factors = [3] if scale == 3 else [2] * int(math.log2(scale))
        if math.prod(factors) != scale:
            raise ValueError(f"scale={scale}: EDSR upsamples by 3 or by a power of 2")
        layers: list[nn.Module] = []
        for factor in factors:
            layers += [nn.Conv2d(num_feat, num_feat * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
        super().__init__(*layers)


class EDSR(nn.Module):
    """EDSR; RGB (B, 3, h, w) in 0..1 becomes (B, 3, scale*h, scale*w) in about 0..1."""

    hyperparameters: ClassVar[dict] = {}
    mean: Tensor

    def __init__(
        self,
        *,
        num_feat: int = 256,
        num_block: int = 32,
        upscale: int = 4,
        res_scale: float = 0.1,
        img_range: float = OFFICIAL_IMG_RANGE,
        rgb_mean: tuple[float, ...] = DIV2K_RGB_MEAN,
    ) -> None:
        super().__init__()
        self.arguments = {
            "num_feat": num_feat,
            "num_block": num_block,
            "upscale": upscale,
            "res_scale": res_scale,
            "img_range": img_range,
            "rgb_mean": rgb_mean,
        }
        self.img_range = img_range
        self.register_buffer("mean", torch.tensor(rgb_mean).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, num_feat, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlockNoBN(num_feat, res_scale) for _ in range(num_block)))
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsample = Upsample(upscale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first((x - self.mean) * self.img_range)
        x = self.upsample(self.conv_after_body(self.body(x)) + x)
        return self.conv_last(x) / self.img_range + self.mean


def basicsr_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint in the official layout, renamed to BasicSR's.

    `sub_mean` and `add_mean` are left out: they are fixed 1x1 convolutions that carry only the mean.
    """
    n_blocks = get_seq_len(state, "body") - 1
    renamed = {}
    for key, value in state.items():
        if key.startswith(("sub_mean.", "add_mean.")):
            continue
        key = re.sub(r"^head\.0\.", "conv_first.", key)
        key = re.sub(r"^tail\.0\.", "upsample.", key)
        key = re.sub(r"^tail\.1\.", "conv_last.", key)
        key = re.sub(rf"^body\.{n_blocks}\.", "conv_after_body.", key)
        key = re.sub(r"^(body\.\d+)\.body\.0\.", r"\1.conv1.", key)
        key = re.sub(r"^(body\.\d+)\.body\.2\.", r"\1.conv2.", key)
        renamed[key] = value
    return renamed


def _official_mean(state: dict[str, Tensor]) -> tuple[tuple[float, ...], float]:
    """The mean, in 0..1, and the value range, of which the file holds the product: a mean of 0..1 is below 1."""
    bias = state["add_mean.bias"]
    img_range = OFFICIAL_IMG_RANGE if bias.max() > 1 else 1.0
    return tuple(round(float(v), 4) for v in bias / img_range), img_range


class EDSRArch(Architecture[EDSR]):
    """Recognises EDSR by its keys; shapes give width, depth and scale.

    Residual scale and value range are not in the weights: they are the published ones, 0..255, and
    0.1 from 256 features up (EDSR-L) or 1 below (EDSR baseline). Mean and range are the file's own where
    the official layout states them.
    """

    def __init__(self) -> None:
        super().__init__(
            id="EDSR",
            detect=KeyCondition.has_any(
                KeyCondition.has_all(
                    "conv_first.weight",
                    "body.0.conv1.weight",
                    "body.0.conv2.weight",
                    "conv_after_body.weight",
                    "upsample.0.weight",
                    "conv_last.weight",
                ),
                KeyCondition.has_all(
                    "head.0.weight", "body.0.body.0.weight", "body.0.body.2.weight", "tail.0.0.weight", "tail.1.weight"
                ),
            ),
        )

    def load(self, state_dict: dict[str, Tensor]) -> ImageModelDescriptor[EDSR]:
        mean: tuple[float, ...] = DIV2K_RGB_MEAN
        img_range = OFFICIAL_IMG_RANGE
        if "head.0.weight" in state_dict:
            if "add_mean.bias" in state_dict:
                mean, img_range = _official_mean(state_dict)
            state_dict = basicsr_keys(state_dict)
        num_feat = state_dict["conv_first.weight"].shape[0]
        model = EDSR(
            num_feat=num_feat,
            num_block=get_seq_len(state_dict, "body"),
            upscale=_upscale(state_dict, num_feat),
            res_scale=0.1 if num_feat >= 256 else 1.0,
            img_range=img_range,
            rgb_mean=mean,
        )
        return ImageModelDescriptor(
            model,
            state_dict,
            architecture=self,
            purpose="SR",
            tags=[f"{num_feat}nf", f"{len(model.body)}nb"],
            supports_half=True,
            supports_bfloat16=True,
            scale=_upscale(state_dict, num_feat),
            input_channels=3,
            output_channels=3,
        )


def _upscale(state: dict[str, Tensor], num_feat: int) -> int:
    convs = [value for key, value in state.items() if re.fullmatch(r"upsample\.\d+\.weight", key)]
    return math.prod(math.isqrt(conv.shape[0] // num_feat) for conv in convs)


def register() -> None:
    """Makes EDSR known to every spandrel ModelLoader; safe to call twice."""
    MAIN_REGISTRY.add(ArchSupport.from_architecture(EDSRArch()), ignore_duplicates=True)
