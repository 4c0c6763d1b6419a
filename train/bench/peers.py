"""Alternatives to our loader for reading training windows; each of them holds or slices the same windows.

A contender is opened with a number of worker processes and a batch size, and yields batches to the end of an epoch.
"""

import importlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import zarr
from torch.utils.data import DataLoader, Dataset

from championship_sr.store.format.layout import PAIRS, array_key
from championship_sr.store.shards.reader import Store
from championship_sr.train.data.batch import fields_of
from championship_sr.train.data.sampler import WindowPlace
from championship_sr.train.data.slots import Field

log = logging.getLogger(__name__)

Sample = dict[str, np.ndarray]
Contender = Callable[[int, int], Iterable[Any]]

PEERS = {"litdata": "litdata", "mosaicml_streaming": "streaming"}  # name -> module
CHUNK_BYTES = "64MB"  # the default of both, and what their guides advise


def raw_sample(store: Store, place: WindowPlace, crop_px: int) -> Sample:
    """The raw numbers of one window of every array, as a peer would hold them."""
    result = {}
    for field in fields_of(store, store.experts):
        y, x, side = (value * field.resolution for value in (place.y, place.x, crop_px))
        result[f"{field.source}.{field.name}"] = store.array(place.image, field.source, field.name).read(
            y, x, side, side
        )
    return result


class PatchFiles(Dataset):
    """One fp32 `.pt` file per patch: tensors in channels-first order, as the reference document's cache has them."""

    def __init__(self, folder: Path):
        self.paths = sorted(folder.glob("*.pt"))

    @staticmethod
    def write(folder: Path, number: int, sample: Sample) -> None:
        tensors: dict[str, Any] = {"expert_imgs": {}, "expert_feats": {}}
        for key, raw in sample.items():
            scale = np.float32(1 if raw.dtype.kind == "f" else 1 / 255)
            tensor = torch.from_numpy(np.ascontiguousarray((raw * scale).astype(np.float32).transpose(2, 0, 1)))
            source, _, name = key.partition(".")
            group = {"sr": tensors["expert_imgs"], "features": tensors["expert_feats"]}.get(name, tensors)
            group[name if source == PAIRS else source] = tensor
        torch.save(tensors, folder / f"{number:05d}.pt")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return torch.load(self.paths[number], weights_only=True)


class Slices(Dataset):
    """Windows of the store, sliced by zarr-python or h5py; each process opens an array once."""

    def __init__(self, store: Store, places: Sequence[WindowPlace], crop_px: int):
        self.store, self.places, self.crop_px = store, places, crop_px
        self.opened: dict[tuple[Field, int], Any] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Sample:
        place, result = self.places[number], {}
        for field in fields_of(self.store, self.store.experts):
            y, x, side = (value * field.resolution for value in (place.y, place.x, self.crop_px))
            result[f"{field.source}.{field.name}"] = self._array(field, place.image)[y : y + side, x : x + side]
        return result

    def _array(self, field: Field, image: int) -> Any:
        if (field, image) not in self.opened:
            where = self.store.images[image]
            path = self.store.manifest.shard_path(field.source, where.shard)
            is_zarr = path.suffix == ".zarr"
            # without HDF5's own lock, which some file systems lack: a peer should not fail where our loader works
            group = zarr.open_group(path, mode="r") if is_zarr else h5py.File(path, "r", locking=False)
            self.opened[field, image] = group[array_key(where.id, field.name)]
        return self.opened[field, image]


def in_torch_loader(make: Callable[[], Dataset]) -> Contender:
    """The dataset in a DataLoader, as its guide advises."""

    def opened(workers: int, batch_size: int) -> Iterable[Any]:
        return DataLoader(
            make(), batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
        )

    return opened


def litdata(folder: Path, samples: Callable[[], Iterator[Sample]]) -> Contender:
    """Lightning's streaming datasets, the samples in its own chunks."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=CHUNK_BYTES)
    for number, sample in enumerate(samples()):
        writer[number] = sample
    writer.done()
    writer.merge(1)

    def opened(workers: int, batch_size: int) -> Iterable[Any]:
        dataset = StreamingDataset(str(folder), shuffle=True)
        alive = {"num_workers": workers, "persistent_workers": workers > 0}
        return StreamingDataLoader(dataset, batch_size=batch_size, drop_last=True, **alive)

    return opened


def mosaicml_streaming(folder: Path, samples: Callable[[], Iterator[Sample]]) -> Contender:
    """MosaicML's streaming datasets, the samples in MDS shards."""
    from streaming import MDSWriter, StreamingDataset

    first = next(samples())
    columns = {key: f"ndarray:{raw.dtype.name}:{','.join(map(str, raw.shape))}" for key, raw in first.items()}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for sample in samples():
            writer.write(sample)

    def opened(workers: int, batch_size: int) -> Iterable[Any]:
        dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=batch_size)
        return DataLoader(dataset, batch_size, drop_last=True, num_workers=workers, persistent_workers=workers > 0)

    return opened


def installed_peers() -> list[str]:
    """The peers that can be imported; for each of the others, a log line says why not and how to install it."""
    peers = []
    for name, module in PEERS.items():
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:  # OSError: the system lacks a library that they need
            reason = " ".join(str(error).split())
            log.warning("%s is left out (%s): pip install 'championship-sr[bench]'", name, reason)
        else:
            peers.append(name)
    return peers


def contenders(
    folder: Path, store: Store, hdf5: Store, places: Sequence[WindowPlace], crop_px: int
) -> Iterator[tuple[str, Contender]]:
    """Name and contender of each, once its samples are written below the folder."""

    def samples() -> Iterator[Sample]:
        return (raw_sample(store, place, crop_px) for place in places)

    patches = folder / "pt_files"
    patches.mkdir()
    for number, sample in enumerate(samples()):
        PatchFiles.write(patches, number, sample)
    yield "pt_files", in_torch_loader(partial(PatchFiles, patches))
    yield "zarr_slicing", in_torch_loader(partial(Slices, store, places, crop_px))
    yield "h5py_slicing", in_torch_loader(partial(Slices, hdf5, places, crop_px))
    for name in installed_peers():
        yield name, {"litdata": litdata, "mosaicml_streaming": mosaicml_streaming}[name](folder / name, samples)
