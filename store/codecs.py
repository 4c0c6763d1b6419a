"""Codecs, each with a stated error, that encode values as raw numbers and back, for numpy arrays and torch tensors.

A tensor is encoded on its own device. Its raw numbers equal those of the same numpy array, bit for bit, except with
principal components: matrix products differ in their last bits from library to library.

A codec's name is `base` or `base+compression`: `float16`, `uint8`, `pca64-int8`, `float16+zstd`. The base says what
the numbers mean, the compression only how their chunks lie in the file.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from championship_sr.store.containers.compression import Compression, get_compression
from championship_sr.store.errors import ConfigError, StoreError

Params = Mapping[str, Any]  # name -> array: what `decode` needs in addition to the raw numbers

BASES = ("float32", "float16", "bfloat16", "uint8", "uint16", "int8", "pcaK-int8", "pcaK-int4")
FLOAT16_MAX = 65504.0
INT8_MAX, INT4_MAX = 127, 7
WHOLE_BYTES = 8  # components of pcaK-int4 that are in int8
CLIPS = (
    1.0,
    0.8,
    0.6,
    0.45,
    0.35,
    0.25,
    0.18,
)  # shares of the largest magnitude that int4 may reach; the best one is used
CLIP_SAMPLE = 8192  # pixels on which the clip is chosen
_FLOAT32 = np.dtype(np.float32)
_NOTHING: np.ndarray = np.zeros(())  # to add to


@dataclass(frozen=True)
class Codec:
    """The base class, which is also the lossless codec float32; the others are below."""

    name: str
    compression: Compression | None = None
    raw_dtype: np.dtype = _FLOAT32
    limit: float = np.inf  # the largest magnitude that a finite raw number stands for
    components: int = 0  # in the basis, which must be fitted before the first image; 0: there is no basis
    own: ClassVar[
        tuple[str, ...]
    ] = ()  # parameters that differ from array to array: one number per raw channel, or more

    def raw_channels(self, channels: int) -> int:
        """Channels of the raw array."""
        return self.components or channels

    def pixel_bytes(self, channels: int) -> int:
        """Bytes of a pixel's raw numbers, before compression."""
        return self.raw_channels(channels) * self.raw_dtype.itemsize

    def params(self, values: Any, basis: Params | None = None) -> dict[str, Any]:
        """The parameters of this array alone, and those that it shares with the expert's other arrays (`basis`)."""
        return {}

    def own_params(self, channels: int) -> dict[str, int]:
        """Name -> how many numbers, 0 or more each, are particular to an array."""
        return dict.fromkeys(self.own, self.components or channels)

    def encode(self, values: Any, params: Params) -> Any:
        """Raw numbers of float32 (rows, cols, C)."""
        return _cast(values, self.raw_dtype)

    def decode(self, raw: Any, params: Params) -> Any:
        """float32 (..., C) of raw (..., raw channels); params may have leading axes that broadcast."""
        return _float(raw)

    def quantum(self, values: np.ndarray, params: Params) -> np.ndarray:
        """The largest distance between neighbouring decoded numbers at these values; encoding errs by half of it."""
        return np.abs(values) * 2.0**-23


class Float16(Codec):
    def encode(self, values: Any, params: Params) -> Any:
        if not isinstance(values, np.ndarray):
            return values.half()
        import torch  # rounds to even as numpy does, at twice the speed

        return torch.from_numpy(values).half().numpy()

    def quantum(self, values: np.ndarray, params: Params) -> np.ndarray:
        return np.maximum(np.abs(values) * 2.0**-10, 2.0**-24)


class Bfloat16(Codec):
    """The upper half of a float32, rounded to even; zarr and h5py know it as uint16."""

    def encode(self, values: Any, params: Params) -> Any:
        if not isinstance(values, np.ndarray):
            import torch

            return values.bfloat16().view(torch.uint16)
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)

    def decode(self, raw: Any, params: Params) -> Any:
        if isinstance(raw, np.ndarray):
            return (raw.astype(np.uint32) << 16).view(np.float32)
        import torch

        return raw.view(torch.bfloat16).float()

    def quantum(self, values: np.ndarray, params: Params) -> np.ndarray:
        return np.maximum(np.abs(values) * 2.0**-7, 2.0**-126)


class Unit(Codec):
    """Images: 0..1 as integers over their whole range; values outside are clipped, as every metric does."""

    @property
    def levels(self) -> int:
        return int(np.iinfo(self.raw_dtype).max)

    def encode(self, values: Any, params: Params) -> Any:
        return _cast((values.clip(0, 1) * float(self.levels)).round(), self.raw_dtype)

    def decode(self, raw: Any, params: Params) -> Any:
        return _float(raw) / self.levels

    def quantum(self, values: np.ndarray, params: Params) -> np.ndarray:
        return np.full_like(values, 1 / self.levels)


class Scaled(Codec):
    """int8 with one scale per channel and array: the channel's largest magnitude becomes 127."""

    own = ("scale",)

    def params(self, values: Any, basis: Params | None = None) -> dict[str, Any]:
        return {"scale": _scales(values)}

    def encode(self, values: Any, params: Params) -> Any:
        return _whole(values / _float32(params["scale"]), INT8_MAX)

    def decode(self, raw: Any, params: Params) -> Any:
        return _float(raw) * _like(params["scale"], raw)

    def quantum(self, values: np.ndarray, params: Params) -> np.ndarray:
        return np.broadcast_to(params["scale"], values.shape)


class Principal(Scaled):
    """Principal components of the features, each in int8 with one scale per array; the expert has one basis."""

    def params(self, values: Any, basis: Params | None = None) -> dict[str, Any]:
        if basis is None:
            raise StoreError(
                f"codec {self.name} has no basis; make one with fit_pca and pass it to Manifest.add_expert"
            )
        return {**basis, "scale": _scales(self._project(values, basis))}

    def encode(self, values: Any, params: Params) -> Any:
        return super().encode(self._project(values, params), params)

    def decode(self, raw: Any, params: Params) -> Any:
        return super().decode(raw, params) @ _like(params["basis"], raw) + _like(params["mean"], raw)

    def quantum(self, values: np.ndarray, params: Params) -> np.ndarray:
        return np.broadcast_to(np.abs(params["basis"]).T @ params["scale"], values.shape)

    @staticmethod
    def _project(values: Any, basis: Params) -> Any:
        return (values - _like(basis["mean"], values)) @ _like(basis["basis"], values).T


class Packed(Principal):
    """Principal components, the first eight in int8, the others in four bits, two of them to a byte.

    The late components vary little: half of the bits for twice as many of them halves the error at equal bytes.
    """

    def raw_channels(self, channels: int) -> int:
        return WHOLE_BYTES + (self.components - WHOLE_BYTES) // 2

    def params(self, values: Any, basis: Params | None = None) -> dict[str, Any]:
        params = super().params(values, basis)
        late = self._project(values, params)[..., WHOLE_BYTES:].reshape(-1, self.components - WHOLE_BYTES)
        scale = _clipping_scales(late[:: max(1, len(late) // CLIP_SAMPLE)])
        return {**params, "scale": _joined(params["scale"][:WHOLE_BYTES], scale)}

    def encode(self, values: Any, params: Params) -> Any:
        numbers = self._project(values, params) / params["scale"]
        early = _whole(numbers[..., :WHOLE_BYTES], INT8_MAX)
        late = _whole(numbers[..., WHOLE_BYTES:], INT4_MAX)
        half = late.shape[-1] // 2
        return _joined(early, (late[..., half:] << 4) | (late[..., :half] & 15))

    def decode(self, raw: Any, params: Params) -> Any:
        early, pairs = raw[..., :WHOLE_BYTES], raw[..., WHOLE_BYTES:]
        # shifts of signed numbers keep the sign
        return super().decode(_joined(early, (pairs << 4) >> 4, pairs >> 4), params)


@lru_cache
def get_codec(name: str) -> Codec:
    """The codec of this name.

    raises  ConfigError for an unknown name, StoreError if the library for it is missing
    """
    base, plus, suffix = name.partition("+")
    compression = get_compression(suffix, name) if plus else None
    principal = re.fullmatch(r"pca([1-9]\d*)-int([48])", base)
    if principal:
        components, kind = int(principal.group(1)), Packed if principal.group(2) == "4" else Principal
        if kind is Packed and (components <= WHOLE_BYTES or components % 2):
            raise ConfigError(f"codec {name!r}: the number of components must be even and greater than {WHOLE_BYTES}")
        return kind(name, compression, np.dtype(np.int8), components=components)
    match base:
        case "float32":
            return Codec(name, compression)
        case "float16":
            return Float16(name, compression, np.dtype(np.float16), limit=FLOAT16_MAX)
        case "bfloat16":
            return Bfloat16(name, compression, np.dtype(np.uint16))
        case "uint8" | "uint16":
            return Unit(name, compression, np.dtype(base))
        case "int8":
            return Scaled(name, compression, np.dtype(np.int8))
    raise ConfigError(f"codec {name!r}: expected one of {', '.join(BASES)}, optionally followed by +zstd or +blosc")


def fit_pca(samples: Iterable[np.ndarray], components: int) -> dict[str, np.ndarray]:
    """The basis of `pcaK-int8` and `pcaK-int4`: {"mean": (C,), "basis": (K, C)}, float32, largest variance first.

    samples     float (..., C): features of a few tiles or whole images, all of one expert and tap; they decide the
                bytes, so take the same ones whatever part of the images is extracted here
    components  K, `get_codec(name).components`
    raises      StoreError if the samples span fewer than K components
    """
    count, total, square = 0, _NOTHING, _NOTHING
    for sample in samples:
        flat = np.asarray(sample, np.float64).reshape(-1, np.shape(sample)[-1])
        count, total, square = count + len(flat), total + flat.sum(0), square + flat.T @ flat
    channels = len(total) if count else 0
    if components > channels or count <= components:
        raise StoreError(f"pca{components}: {channels} channels at {count} pixels do not span {components} components")
    mean = total / count
    _, vectors = np.linalg.eigh(square / count - np.outer(mean, mean))
    basis = vectors[:, ::-1].T[:components]
    signs = np.sign(
        basis[np.arange(components), np.abs(basis).argmax(1)]
    )  # otherwise the library chooses the signs freely
    return {"mean": mean.astype(np.float32), "basis": (basis * signs[:, None]).astype(np.float32)}


def _scales(values: Any) -> Any:
    return _positive(_largest(values), INT8_MAX)


def _clipping_scales(values: Any) -> Any:
    """For each column the scale of int4 that gives the least mean squared error."""
    largest, scales, errors = _largest(values), [], []
    for clip in CLIPS:
        scale = _positive(largest * clip, INT4_MAX)
        scales.append(scale)
        errors.append(((_whole(values / scale, INT4_MAX) * scale - values) ** 2).sum(0))
    library = _library(values)
    best = library.stack(errors).argmin(0)
    return sum(scale * (best == i) for i, scale in enumerate(scales))


def _positive(largest: Any, number: int) -> Any:
    """The scales at which the largest magnitudes become this number; 1 for channels that are 0 throughout."""
    if isinstance(largest, np.ndarray):
        return np.where(largest > 0, largest / number, 1).astype(np.float32)
    # by a tensor: on a GPU, division by a plain number multiplies by its reciprocal
    return _library(largest).where(largest > 0, largest / largest.new_full((), number), 1.0)


def _largest(values: Any) -> Any:
    """The largest magnitude of each channel."""
    axes = tuple(range(values.ndim - 1))
    if isinstance(values, np.ndarray):
        return abs(values).max(axes)
    return _library(values).maximum(values.amax(axes), -values.amin(axes))  # reads twice, but makes no copy


def _whole(values: Any, limit: int) -> Any:
    """int8 of the values, which are overwritten: rounded, within -limit..limit."""
    if isinstance(values, np.ndarray):
        values = values.round(out=values).clip(-limit, limit, out=values)
    else:
        values = values.round_().clamp_(-limit, limit)
    return _cast(values, np.dtype(np.int8))


def _joined(*parts: Any) -> Any:
    return np.concatenate(parts, axis=-1) if isinstance(parts[0], np.ndarray) else _library(parts[0]).cat(parts, dim=-1)


def _cast(values: Any, dtype: np.dtype) -> Any:
    if isinstance(values, np.ndarray):
        return values.astype(dtype)
    return values.to(getattr(_library(values), dtype.name))


def _float32(value: Any) -> Any:
    return np.asarray(value, np.float32) if isinstance(value, list | np.ndarray) else value


def _library(values: Any) -> Any:
    """numpy or torch, whose functions these are."""
    if isinstance(values, np.ndarray):
        return np
    import torch  # imported here because the store's readers work without torch

    return torch


def _float(raw: Any) -> Any:
    return raw.astype(np.float32) if isinstance(raw, np.ndarray) else raw.float()


def _like(value: Any, raw: Any) -> Any:
    """The parameter on the raw numbers' side: numpy beside numpy, a tensor on the same device beside a tensor."""
    if isinstance(raw, np.ndarray) or not isinstance(value, np.ndarray):
        return value
    import torch

    return torch.from_numpy(np.ascontiguousarray(value)).to(raw.device)
