"""Chunk compression, as Zarr and HDF5 name it. It saves space, but compressed chunks cannot be mapped."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from championship_sr.store.errors import ConfigError, StoreError

ZSTD_LEVEL = 3
BLOSC_LEVEL = 5
BLOSC_BITSHUFFLE = 2
ZSTD_MAGIC, HEADER_BYTES = b"\x28\xb5\x2f\xfd", 18  # RFC 8878
HDF5_ZSTD, HDF5_BLOSC = 32015, 32001  # registered with The HDF Group; plain h5py reads them with `import hdf5plugin`


@dataclass(frozen=True)
class Compression:
    """One of numcodecs' compressors, with the names that the containers have for it."""

    name: str

    def codec(self) -> Any:
        """The compressor of numcodecs.

        raises  ImportError or AttributeError if it is not installed
        """
        import numcodecs

        if self.name == "zstd":
            return numcodecs.Zstd(level=ZSTD_LEVEL, checksum=True)
        return numcodecs.Blosc(cname="zstd", clevel=BLOSC_LEVEL, shuffle=BLOSC_BITSHUFFLE)

    def encode(self, chunk: Any) -> bytes:
        """The compressed bytes of one contiguous array."""
        return bytes(self.codec().encode(chunk))

    def decode(self, stored: Any, n_bytes: int, where: str) -> Any:
        """The bytes of a chunk, which must be `n_bytes` long.

        raises  StoreError naming `where` if they are damaged or of another length
        """
        told = _content_bytes(self.name, bytes(stored[:HEADER_BYTES]))
        if told != n_bytes:  # checked first: a few bytes can claim to decompress to any size
            raise StoreError(f"{where}: a {self.name} chunk is damaged ({told} bytes, expected {n_bytes})")
        try:
            return self.codec().decode(stored)
        except (RuntimeError, ValueError) as error:
            raise StoreError(f"{where}: a {self.name} chunk is damaged ({error})") from None

    def zarr_codec(self, itemsize: int) -> Mapping[str, Any]:
        """The entry in a Zarr array's list of codecs."""
        if self.name == "zstd":
            return {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": True}}
        options = {
            "typesize": itemsize,
            "cname": "zstd",
            "clevel": BLOSC_LEVEL,
            "shuffle": "bitshuffle",
            "blocksize": 0,
        }
        return {"name": "blosc", "configuration": options}

    def hdf5_filter(self, itemsize: int, chunk_bytes: int) -> tuple[int, tuple[int, ...]]:
        """The filter's number and its parameters in an HDF5 dataset."""
        if self.name == "zstd":
            return HDF5_ZSTD, (ZSTD_LEVEL,)
        zstd_inside_blosc = 5
        return HDF5_BLOSC, (2, 2, itemsize, chunk_bytes, BLOSC_LEVEL, BLOSC_BITSHUFFLE, zstd_inside_blosc)


def _content_bytes(name: str, header: bytes) -> int | None:
    """How many bytes a compressed chunk says that it stands for; None if it does not say."""
    if name == "blosc":
        return int.from_bytes(header[4:8], "little") if len(header) >= 8 else None
    if header[:4] != ZSTD_MAGIC or len(header) < 6:
        return None
    descriptor = header[4]  # RFC 8878, section 3.1.1.1
    single, id_bytes = descriptor >> 5 & 1, (0, 1, 2, 4)[descriptor & 3]
    size = (single, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single) + id_bytes
    return int.from_bytes(header[start : start + size], "little") + (256 if size == 2 else 0) if size else None


@lru_cache
def get_compression(name: str, codec: str) -> Compression:
    """The compression of this name, for the codec that asks for it.

    raises  ConfigError for an unknown name, StoreError if numcodecs or the part needed is missing
    """
    if name not in ("zstd", "blosc"):
        raise ConfigError(f"codec {codec!r}: compression {name!r} is neither zstd nor blosc")
    compression = Compression(name)
    try:
        compression.codec()
    except (ImportError, AttributeError):
        raise StoreError(
            f"codec {codec} needs numcodecs with {name}, which is not installed: pip install numcodecs"
        ) from None
    return compression
