"""The command `experts pretrain`."""

import json
from pathlib import Path

import click

from championship_sr.extract.commands.experts import experts
from championship_sr.extract.commands.options import device_option
from championship_sr.extract.config import ExpertConfig, load_expert_config
from championship_sr.store.config import build, override, to_plain

__all__ = ["experts", "pretrain"]


@experts.command()
@click.option(
    "--config", "entry", required=True, metavar="NAME | FILE.yaml", help="Expert entry with a `pretrain` section."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for checkpoints and weights. Default: runs/NAME.")
@click.option(
    "--hr", multiple=True, metavar="DIR", help="Folder of HR images, instead of those in the entry; repeatable."
)
@click.option("--store", metavar="DIR|URL", help="Train from this feature store instead of folders.")
@click.option("--teacher", metavar="fitted|mean|RUN", help="Also learn from a teacher, as in `train`; needs --store.")
@click.option("--teacher-x8", is_flag=True, help="Average the teacher over the eight stored variants.")
@click.option(
    "--beside",
    multiple=True,
    metavar="EXPERT",
    help="Also learn what this expert of the store lacks, for an expert to fuse with it; repeatable; needs --store.",
)
@device_option
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one value, for example pretrain.steps=100; repeatable.",
)
def pretrain(entry, out, hr, store, teacher, teacher_x8, beside, device, assignments):
    """Train a small expert of your own; the same command continues from the last checkpoint."""
    from championship_sr.train.config import TeacherConfig
    from championship_sr.train.pretraining.pretrain import pretrain as run

    if teacher_x8 and not teacher:
        raise click.UsageError("--teacher-x8 needs --teacher")
    config = load_expert_config(entry)
    given = (*assignments, *([f"pretrain.hr={json.dumps(hr)}"] if hr else []))
    if given:
        config = build(ExpertConfig, override(to_plain(config), given), str(entry))
    taught = TeacherConfig(of=teacher or "", x8=teacher_x8)
    where = out or Path("runs") / config.name
    click.echo(run(config, where, device=device or "auto", store=store, teacher=taught, beside=beside))
