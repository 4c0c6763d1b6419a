"""The commands `evaluate` and `upscale`."""

import json
from pathlib import Path

import click

from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.diffusion.options import diffusion_options, refiner_from_options
from championship_sr.extract.commands.options import cache_assignments, cache_gb_option, cache_option, trust_option
from championship_sr.store.config import load_section

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
OUT = click.Path(file_okay=False, path_type=Path)
FORMATS = ["png", "jpg", "webp", "tif", "bmp"]
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def configured(command):
    """The options that every command here reads its configuration from."""
    options = (
        click.option("--config", "config_path", type=FILE, help="YAML file with an `evaluate` section."),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            help="Override one configuration value; repeatable.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


class StorePlace(click.ParamType):
    """A feature store: a folder that is there, or a URL."""

    name = "DIR|URL"

    def convert(self, value, param, ctx) -> Path | str:
        return value if "://" in str(value) else FOLDER.convert(value, param, ctx)


class ExpertImages(click.ParamType):
    """NAME=DIR: an expert, and the folder of its images."""

    name = "NAME=DIR"

    def convert(self, value, param, ctx) -> tuple[str, Path]:
        name, sign, folder = value.partition("=")
        if not (name and sign and Path(folder).is_dir()):
            self.fail(f"expected NAME=DIR, an expert's name and the folder of its images, found {value!r}", param, ctx)
        return name, Path(folder)


expert_images_option = click.option(
    "--expert-images",
    multiple=True,
    type=ExpertImages(),
    callback=lambda _ctx, _param, given: dict(given),
    help="Read this expert's SR images of the inputs from a folder instead of running it; repeatable.",
)

self_ensemble_option = click.option(
    "--self-ensemble", is_flag=True, help="Average over the eight flips and rotations; takes 8 times as long."
)


def section(config_path: Path | None, assignments: tuple[str, ...]) -> EvaluateConfig:
    """The section `evaluate` with overrides such as `evaluate.tile_px=128`."""
    return load_section(EvaluateConfig, config_path, "evaluate", assignments)


@click.group(invoke_without_command=True)
@click.option("--run", type=FOLDER, help="Folder of the run. Without it, only the experts are scored.")
@click.option("--store", type=StorePlace(), help="Score the images of a feature store; s3:// and gs:// too.")
@cache_option
@cache_gb_option
@click.option("--images", multiple=True, metavar="ID", help="Score only this image of the store; repeatable.")
@click.option(
    "--hr",
    multiple=True,
    type=FOLDER,
    help="Score the image files in this folder, running the experts on them; repeatable.",
)
@click.option(
    "--lr",
    multiple=True,
    type=FOLDER,
    help="Folder of their LR images; repeatable. Default: made with MATLAB's bicubic.",
)
@click.option("--benchmarks", type=FOLDER, help="Score every benchmark in this folder (Set5, Set14, B100, ...).")
@click.option(
    "--expert",
    "experts",
    multiple=True,
    metavar="NAME|FILE.yaml",
    help="Expert to score if there is no --run; with --run, a student to score beside the fusion. Repeatable.",
)
@expert_images_option
@click.option(
    "--scale",
    type=click.IntRange(2, 8),
    help="Scale of the image files. Default: that of the run or of the experts, or 4 for --expert-images alone.",
)
@click.option(
    "--self-ensemble/--no-self-ensemble",
    default=None,
    help="Score the x8 self-ensemble of the fusion too, or of no method. Default: of the best expert.",
)
@click.option(
    "--ablation", is_flag=True, help="Add a row for the fusion with each phase switched off, without retraining."
)
@click.option(
    "--fit-store", type=StorePlace(), help="Fit the weights of the fitted-weights row to the images of this store."
)
@click.option("--report", type=OUT, help="Write an HTML report, CSV, JSON and Markdown to this folder.")
@trust_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@configured
@click.pass_context
def evaluate(
    ctx: click.Context,
    config_path,
    assignments,
    cache,
    cache_gb,
    self_ensemble,
    ablation,
    fit_store,
    report,
    as_json,
    **given,
) -> None:
    """Score a run against every expert, their mean and the oracles on the same images."""
    if ctx.invoked_subcommand:
        return
    from championship_sr.evaluate.inference.pictures import check_writable
    from championship_sr.evaluate.scoring.evaluation import ScoringOptions
    from championship_sr.evaluate.session import evaluate_sets, write_results

    if given["run"] is None and ablation:
        raise click.UsageError("--ablation needs a --run")
    options = ScoringOptions(self_ensemble, ablation, fit_store)
    config = section(config_path, assignments + cache_assignments("evaluate", cache, cache_gb))
    if report:
        check_writable(report)
    results = evaluate_sets(options=options, config=config, with_gallery=report is not None, **given)
    files = write_results(report, results) if report else []
    if as_json:
        sets = {name: scored.scores.described() for name, scored in results.sets.items()}
        click.echo(json.dumps({"sets": sets, "files": [str(path) for path in files]}))
    else:
        click.echo("\n".join([*map(str, files), results.table()]))
    results.check()


@evaluate.command("submit")
@click.option("--run", type=FOLDER, required=True, help="Folder of the run.")
@click.option("--lr", type=FOLDER, required=True, help="Folder of the challenge's LR images.")
@click.option("--description", default="", help="Text for the line `Other description` of readme.txt.")
@click.option(
    "--extra-data/--no-extra-data",
    default=True,
    show_default=True,
    help="Whether readme.txt says that extra training data was used.",
)
@self_ensemble_option
@expert_images_option
@diffusion_options
@trust_option
@click.argument("out", type=OUT)
@configured
def submit_command(
    run,
    lr,
    description,
    extra_data,
    self_ensemble,
    expert_images,
    diffusion,
    alpha,
    trusted,
    out,
    config_path,
    assignments,
) -> None:
    """Write an NTIRE submission (results, readme.txt and the zip) into the folder OUT and check it."""
    from championship_sr.evaluate.deliver.submit import Facts, submit
    from championship_sr.evaluate.model import load

    config = section(config_path, assignments)
    refiner = refiner_from_options(diffusion, alpha, config.diffusion, config.device)
    model = load(run, config=config, refiner=refiner, images=expert_images, trusted=trusted)
    made = submit(model, lr, out, Facts(extra_data, description), self_ensemble=self_ensemble)
    click.echo(f"{made.zip}: {made.images} images, {made.seconds_per_image:.2f} s each")


@evaluate.command("export")
@click.option("--run", type=FOLDER, required=True, help="Folder of the run.")
@click.option("--with-experts", is_flag=True, help="Copy the experts' weights too.")
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    type=click.Choice(["pt2", "onnx"]),
    help="Also export the fusion as a graph of this format; repeatable.",
)
@click.option(
    "--graph-px", type=click.IntRange(min=8), default=64, show_default=True, help="LR side of the graph's input."
)
@click.option("--trained-on", metavar="TEXT", help="Training data to name in the model card.")
@trust_option
@click.argument("out", type=OUT)
def export_command(run, with_experts, graphs, graph_px, trained_on, trusted, out) -> None:
    """Export a run to the folder OUT, to share it: weights, configuration and a model card."""
    from championship_sr.evaluate.deliver.export import export_graph, export_run
    from championship_sr.evaluate.model import load
    from championship_sr.store.disk.files import filling

    model = load(run, device="cpu", trusted=trusted)
    with filling(out) as inside:
        export_run(model, inside, with_experts=with_experts, trained_on=trained_on)
        differences = {ending: export_graph(model, inside / f"fusion.{ending}", graph_px) for ending in graphs}
    click.echo(out)
    for ending, difference in differences.items():
        click.echo(f"{out / f'fusion.{ending}'}: differs from the network by at most {difference:.1e}")


@click.command()
@click.option("--run", type=FOLDER, help="Folder of a run or an export. Default: the bundled fusion.")
@click.option(
    "--expert", metavar="NAME|FILE.yaml", help="Use this network alone instead of a run, for example a student."
)
@click.argument("given", metavar="INPUT")
@click.argument("output", type=click.Path(path_type=Path))
@self_ensemble_option
@click.option("--experts-only", is_flag=True, help="Write each expert's image instead of the fusion's.")
@click.option(
    "--format", "suffix", type=click.Choice(FORMATS), help="Format of the output. Default: that of the input."
)
@click.option(
    "--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="Quality of JPEG and WebP files."
)
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@expert_images_option
@diffusion_options
@trust_option
@configured
def upscale(
    run, expert, given, output, suffix, expert_images, diffusion, alpha, trusted, config_path, assignments, **options
) -> None:
    """Super-resolve INPUT (an image, a folder or a quoted pattern) into OUTPUT (a file or a folder).

    INPUT may also be a feature store: its stored expert images are fused without running any expert.
    With --diffusion, the fusion's image is refined for perceptual quality and blended with the unrefined one (Track B).
    """
    from championship_sr.evaluate.deliver.stored import upscale_store
    from championship_sr.evaluate.deliver.upscale import UpscaleOptions, find_inputs, upscale_files
    from championship_sr.evaluate.model import Model, load
    from championship_sr.evaluate.single import load_single
    from championship_sr.evaluate.stores import is_store, opened_store

    if diffusion and options["experts_only"]:
        raise click.UsageError("--diffusion refines the fusion's image; leave out --experts-only")
    if run and expert:
        raise click.UsageError("give --run or --expert, not both")
    from_store = is_store(given)
    if expert and (from_store or expert_images):
        raise click.UsageError("--expert runs on image files; leave out stores and --expert-images")
    if from_store and expert_images:
        raise click.UsageError("--expert-images is for image files; a store already has its experts' images")
    inputs, config = [] if from_store else find_inputs(given), section(config_path, assignments)
    refiner = refiner_from_options(diffusion, alpha, config.diffusion, config.device)
    if expert:
        model: Model = load_single(expert, config, refiner)
    else:
        model = load(run, config=config, refiner=refiner, images=expert_images, trusted=trusted)
    into_folder = len(inputs) > 1 or Path(given).is_dir()
    chosen = UpscaleOptions(suffix=f".{suffix}" if suffix else None, **options)
    if from_store:
        with opened_store(given, model.expert_names, config) as store:
            written = upscale_store(model, store, output, chosen)
    else:
        written = upscale_files(model, inputs, output, chosen, into_folder=into_folder)
    for path in written:
        click.echo(path)
