"""Draws one image of a store as a picture: the input, each expert's output, and its errors."""

from pathlib import Path

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw

from championship_sr.store.errors import StoreError
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.shards.reader import Store, StoredArray

CELL_PX = 480  # longest side of one picture in the sheet
GAP_PX, LABEL_PX = 8, 18
ERROR_GAIN = 8  # the factor by which the error maps magnify differences


def write_sheet(store: Store, image: str, path: Path) -> None:
    """A PNG of LR and HR, and for each expert SR, its error, and its features' first three principal components.

    image   its id or its name
    raises  StoreError if the store has no such image
    """
    index = _index(store, image)
    array = store.array(index, PAIRS, "lr")
    step = -(-max(array.shape[:2]) * store.scale // CELL_PX)
    lr = _unit(array, 1)
    has_hr = store.manifest.has_hr
    whole = np.empty(tuple(-(-n * store.scale // step) for n in lr.shape[:2]))
    hr = _unit(store.array(index, PAIRS, "hr"), step) if has_hr else _like(lr, whole)
    rows = [[("LR", _like(lr, hr)), *[("HR", hr)] * has_hr]]
    for name, expert in store.experts.items():
        sr = store.array(index, name, "sr").load()[::step, ::step]
        row = [(f"{name}: SR", sr)]
        if has_hr:
            row.append((f"{name}: |SR - HR| x {ERROR_GAIN}", np.abs(sr - hr) * ERROR_GAIN))
        for spec in expert.arrays:
            if spec.name != "sr":
                features = store.array(index, name, spec.name).load()
                row.append((f"{name}: {spec.name} ({spec.channels})", _like(_components(features), hr)))
        rows.append(row)
    _sheet(rows, hr.shape[0], hr.shape[1]).save(path)


def _index(store: Store, image: str) -> int:
    for i, candidate in enumerate(store.images):
        if image in (candidate.id, candidate.name):
            return i
    raise StoreError(f"{store.root}: no image {image}; the first ones are {', '.join(i.id for i in store.images[:3])}")


def _unit(array: StoredArray, step: int) -> np.ndarray:
    raw = array.read()[::step, ::step]
    return raw.astype(np.float32) / np.iinfo(raw.dtype).max


def _like(picture: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The picture at the other's size, without smoothing."""
    rows = np.arange(other.shape[0]) * picture.shape[0] // other.shape[0]
    columns = np.arange(other.shape[1]) * picture.shape[1] // other.shape[1]
    return picture[rows][:, columns]


def _components(features: np.ndarray) -> np.ndarray:
    """The first three principal components of the image's features, each over its middle 98 % as 0..1."""
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat -= flat.mean(0)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    components = flat @ vectors[:, ::-1][:, :3]
    low, high = np.percentile(components, [1, 99], axis=0)
    components = (components - low) / np.maximum(high - low, 1e-12)
    padded = np.pad(components, ((0, 0), (0, 3 - components.shape[1])))
    return padded.reshape(*features.shape[:2], 3)


def _sheet(rows: list[list[tuple[str, np.ndarray]]], height: int, width: int) -> Picture.Image:
    columns = max(len(row) for row in rows)
    size = (columns * (width + GAP_PX) + GAP_PX, len(rows) * (height + LABEL_PX + GAP_PX) + GAP_PX)
    sheet = Picture.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        for j, (label, picture) in enumerate(row):
            x, y = GAP_PX + j * (width + GAP_PX), GAP_PX + i * (height + LABEL_PX + GAP_PX)
            draw.text((x, y), label, fill="black")
            pixels = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
            sheet.paste(Picture.fromarray(pixels), (x, y + LABEL_PX))
    return sheet
