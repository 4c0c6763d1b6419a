"""`store verify` with the two checks that need this stage: the source images, and the experts run again."""

from pathlib import Path

import click

from extract.experts_commands import live as check_live
from store.commands import FOLDER, JSON, store
from store.commands import verify as verify_bytes

__all__ = ["store"]


@store.command()
@click.argument("root", metavar="STORE", type=FOLDER)
@click.option("--repair", is_flag=True, help="Remove bad shards, so that extract makes exactly those again.")
@click.option("--live", type=click.IntRange(min=1), metavar="N", help="Also run the experts again on N images.")
@JSON
@click.pass_context
def verify(context: click.Context, root: Path, repair: bool, live: int | None, as_json: bool) -> None:
    """Read every byte and report every fault; exit status 1 if there is one."""
    context.invoke(verify_bytes, root=root, repair=repair, as_json=as_json)
    if live:
        context.invoke(check_live, root=root, n_images=live, names=(), device=None, as_json=as_json)
