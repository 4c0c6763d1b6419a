"""`store verify` with the two checks that need this stage: the source images, and the experts run again."""

import logging
from pathlib import Path

import click

from championship_sr.extract.commands.experts import live as check_live
from championship_sr.extract.commands.options import trust_option
from championship_sr.extract.config import ImagesConfig
from championship_sr.extract.images.identify import digests
from championship_sr.extract.images.pairs import find_pairs
from championship_sr.store.commands import DRY_RUN, FOLDER, JSON, REPAIR, check_options, store
from championship_sr.store.commands import verify as verify_bytes
from championship_sr.store.format.entries import Image
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations.survey import survey
from championship_sr.store.operations.verify import Hashes

__all__ = ["store"]

log = logging.getLogger(__name__)


@store.command()
@click.argument("root", metavar="STORE", type=FOLDER)
@REPAIR
@DRY_RUN
@click.option(
    "--hr", multiple=True, metavar="DIR", help="Compare the store's HR images with those in this folder; repeatable."
)
@click.option(
    "--lr",
    multiple=True,
    metavar="DIR",
    help="Folder of the LR images: one for each --hr, or LR images without HR; repeatable.",
)
@click.option("--live", type=click.IntRange(min=1), metavar="N", help="Also run the experts again on N images.")
@trust_option
@JSON
@click.pass_context
def verify(
    context: click.Context,
    root: Path,
    repair: bool,
    dry_run: bool,
    hr: tuple[str, ...],
    lr: tuple[str, ...],
    live: int | None,
    trusted: tuple[str, ...],
    as_json: bool,
) -> None:
    """Read every byte and report every fault; exit with status 1 if there is one."""
    check_options(repair, dry_run)
    hashes = source_hashes(ImagesConfig(hr=hr, lr=lr), survey(root).manifest) if hr or lr else None
    context.invoke(verify_bytes, root=root, repair=repair, dry_run=dry_run, as_json=as_json, hashes=hashes)
    if live:
        context.invoke(check_live, root=root, n_images=live, names=(), trusted=trusted, device=None, as_json=as_json)


def source_hashes(data: ImagesConfig, manifest: Manifest) -> Hashes:
    """The current hashes of the image files, for `store.operations.verify`; (None, None) for missing images."""
    pairs = {pair.id: pair for pair in find_pairs(data, manifest.scale)}
    absent = [image.id for image in manifest.images if image.id not in pairs]
    if absent:
        count, of = len(absent), len(manifest.images)
        log.warning(
            "%d of %d images are not in %s and were not compared, for example %s",
            count,
            of,
            (data.hr or data.lr)[0],
            absent[0],
        )

    def hashes(image: Image) -> tuple[str | None, str | None]:
        if image.id not in pairs:
            return None, None
        lr, hr = pairs[image.id].read()
        return digests(lr, hr)

    return hashes
