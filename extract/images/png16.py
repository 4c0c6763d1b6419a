"""PNG files of 16 bits a channel, which Pillow reads as 8 and cannot write.

Source: Portable Network Graphics (PNG) Specification, third edition, sections 5 (chunks), 8 (interlacing), 9 (filters)
and 11.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">IIBBBBB")  # width, height, depth, colour type, compression, filter, interlacing
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # colour type -> channels: grey, RGB, grey with alpha, RGBA
COLOUR_TYPES = {channels: colour for colour, channels in CHANNELS.items()}
WHOLE = ((0, 0, 1, 1),)
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
UP = 2  # the filter that rows are written with: each as its difference to the row above
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Png16:
    """values (h, w, C) in uint16, C = 1 to 4; exif and icc as they stand in the file."""

    values: np.ndarray
    exif: bytes = b""
    icc: bytes = b""


@dataclass
class _Chunks:
    header: bytes = b""
    exif: bytes = b""
    icc: bytes = b""
    data: list[bytes] = field(default_factory=list)


def is_png16(path: Path) -> bool:
    """Whether the file begins as a PNG of 16 bits a channel."""
    with open(path, "rb") as file:
        start = file.read(25)
    return start.startswith(SIGNATURE) and start[24:] == b"\x10"


def read_png16(path: Path) -> Png16:
    """The image in the file.

    raises  ValueError if it is damaged
    """
    chunks = _read_chunks(path.read_bytes())
    if len(chunks.header) != HEADER.size:
        raise ValueError(f"a header of {len(chunks.header)} bytes, expected {HEADER.size}")
    width, height, depth, colour, _compression, _filter, interlaced = HEADER.unpack(chunks.header)
    if depth != 16 or colour not in CHANNELS:
        raise ValueError(f"{depth} bits of colour type {colour}, expected 16 of {', '.join(map(str, CHANNELS))}")
    pixels = np.empty((height, width, 2 * CHANNELS[colour]), np.uint8)
    parts = [pixels[y::dy, x::dx] for x, y, dx, dy in (ADAM7 if interlaced else WHOLE)]
    parts = [part for part in parts if part.size]
    raw = _inflated(b"".join(chunks.data), sum(len(part) + part.size for part in parts))
    for part in parts:
        height, width, n = part.shape
        rows, raw = np.split(raw, [height * (1 + width * n)])
        rows = rows.reshape(height, 1 + width * n)
        part[...] = _unfiltered(rows[:, 1:].reshape(part.shape), rows[:, 0])
    return Png16(pixels.view(">u2").astype(np.uint16), chunks.exif, chunks.icc)


def _inflated(data: bytes, size: int) -> np.ndarray:
    """The uncompressed bytes, exactly as many as there must be."""
    try:
        raw = zlib.decompressobj().decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(raw) != size:
        raise ValueError(f"{'at least ' * (len(raw) > size)}{len(raw)} bytes of pixels, expected {size}")
    return np.frombuffer(raw, np.uint8)


def _read_chunks(content: bytes) -> _Chunks:
    chunks, place = _Chunks(), len(SIGNATURE)
    while True:
        if place + 12 > len(content):
            raise ValueError("the file ends too early")
        length, kind = struct.unpack_from(">I4s", content, place)
        data = content[place + 8 : place + 8 + length]
        if len(data) < length or content[place + 8 + length :][:4] != struct.pack(">I", zlib.crc32(kind + data)):
            raise ValueError(f"chunk {kind!r} is cut off or its checksum is wrong")
        if kind == b"IEND":
            return chunks
        if kind == b"IHDR":
            chunks.header = data
        elif kind == b"IDAT":
            chunks.data.append(data)
        elif kind == b"eXIf":
            chunks.exif = data
        elif kind == b"iCCP":
            chunks.icc = _profile(data)
        place += length + 12


def _profile(data: bytes) -> bytes:
    try:
        return zlib.decompress(data.partition(b"\0")[2][1:])
    except zlib.error as error:
        raise ValueError(f"colour profile: {error}") from None


def _unfiltered(filtered: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """The bytes (h, w, B) before the filters, one kind a row: 0 none, 1 left, 2 up, 3 their average, 4 Paeth.

    Each pixel needs those to its left and above, so that all pixels of an antidiagonal can be done at once.
    """
    if kinds.max(initial=0) > 4:
        raise ValueError(f"filter {kinds.max()} does not exist")
    height, width, n = filtered.shape
    # one row above and one column to the left of zeros, as the filters define them
    out = np.zeros((height + 1, width + 1, n), np.uint8)
    for diagonal in range(height + width - 1):
        y = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        x = diagonal - y
        left, up, corner = (out[a, b].astype(np.int16) for a, b in ((y + 1, x), (y, x + 1), (y, x)))
        predicted = np.choose(
            kinds[y, None], [np.zeros_like(left), left, up, (left + up) >> 1, _paeth(left, up, corner)]
        )
        out[y + 1, x + 1] = filtered[y, x] + predicted.astype(np.uint8)
    return np.ascontiguousarray(out[1:, 1:])


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))


def write_png16(file: io.BufferedWriter, image: Png16) -> None:
    """Writes the image, a few rows in memory at a time."""
    height, width, channels = image.values.shape
    file.write(SIGNATURE)
    _write_chunk(file, b"IHDR", HEADER.pack(width, height, 16, COLOUR_TYPES[channels], 0, 0, 0))
    if image.icc:
        _write_chunk(file, b"iCCP", b"icc\0\0" + zlib.compress(image.icc))
    if image.exif:
        _write_chunk(file, b"eXIf", image.exif)
    compressor = zlib.compressobj(6)
    for rows in _filtered(image.values):
        _write_chunk(file, b"IDAT", compressor.compress(rows))
    _write_chunk(file, b"IDAT", compressor.flush())
    _write_chunk(file, b"IEND", b"")


def _filtered(values: np.ndarray) -> Iterator[bytes]:
    above = None
    for first in range(0, len(values), ROWS_AT_ONCE):
        part = values[first : first + ROWS_AT_ONCE].astype(">u2")
        rows = part.view(np.uint8).reshape(len(part), -1)
        above = np.zeros_like(rows[:1]) if above is None else above
        difference = rows - np.concatenate([above, rows[:-1]])
        yield np.concatenate([np.full((len(rows), 1), UP, np.uint8), difference], axis=1).tobytes()
        above = rows[-1:]


def _write_chunk(file: io.BufferedWriter, kind: bytes, data: bytes) -> None:
    if data or kind != b"IDAT":  # the compressor gives nothing at first
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
