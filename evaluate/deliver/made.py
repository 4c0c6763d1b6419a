"""Records what the pictures of a submission were made from, so that only up-to-date ones are reused.

made.jsonl    one line per picture; for each name, the last line counts:
  image       name of the input
  input       sha256 of its file
  given       expert -> sha256 of its given image of this input, for experts that are not run
  by          fingerprint of the run and of the options
  picture     sha256 of the PNG
  seconds     that the network and its experts took
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from championship_sr.evaluate.model import Model
from championship_sr.extract.images.results import ResultImages
from championship_sr.store.config import to_plain
from championship_sr.store.disk.small_files import parse_json, read_small, sha256_of
from championship_sr.store.format.canonical import canonical
from championship_sr.train.records.checkpoint import WEIGHTS_FILE

MADE = "made.jsonl"


@dataclass(frozen=True)
class PictureOrigin:
    """What decides the pixels of one picture."""

    input: str
    given: Mapping[str, str]
    by: str


@dataclass(frozen=True)
class Made:
    """A picture that was made, and how long it took."""

    origin: PictureOrigin
    picture: str
    seconds: float

    def is_of(self, origin: PictureOrigin, picture: Path) -> bool:
        """Whether the picture in this file is this one, made from exactly these inputs."""
        return self.origin == origin and self.picture == sha256_of(picture)


def fingerprint(model: Model, *, self_ensemble: bool) -> str:
    """The sha256 of everything except the input that decides a picture: run, experts, options and this package."""
    fusion = model.fusion
    decides = {
        "weights": sha256_of(fusion.checkpoint.path / WEIGHTS_FILE),
        "network": to_plain(fusion.config.fusion),
        "experts": [[name, fusion.expert_entries[name].identity] for name in model.expert_names],
        "images": sorted(model.images),
        "tiling": asdict(model.config.tiling),
        "self_ensemble": self_ensemble,
        "diffusion": model.refiner.fingerprint if model.refiner else None,
        "version": version("championship-sr"),
    }
    return hashlib.sha256(canonical(decides)).hexdigest()


def origin_of(path: Path, of_experts: Sequence[ResultImages], by: str) -> PictureOrigin:
    """What the picture of this input would be made from now."""
    given = {images.name: sha256_of(images.files[str(path)]) for images in of_experts}
    return PictureOrigin(sha256_of(path), given, by)


def read_made(out: Path) -> dict[str, Made]:
    """Name of the input -> its picture's record; incomplete or invalid lines are left out."""
    try:
        lines = read_small(out / MADE).splitlines()
    except FileNotFoundError:
        return {}
    pictures = {}
    for line in lines:
        try:
            content = parse_json(line)
            origin = PictureOrigin(content["input"], dict(content["given"]), content["by"])
            made = Made(origin, content["picture"], float(content["seconds"]))
            if math.isfinite(made.seconds):
                pictures[content["image"]] = made
        except (ValueError, KeyError, TypeError):
            continue  # its picture is then made again
    return pictures


def note_made(out: Path, name: str, made: Made) -> None:
    """Adds a picture to the record, once its file is whole."""
    content = {"image": name, **asdict(made.origin), "picture": made.picture, "seconds": round(made.seconds, 4)}
    with open(out / MADE, "ab+") as file:
        torn = file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n"
        file.write(b"\n" * torn + json.dumps(content).encode() + b"\n")
