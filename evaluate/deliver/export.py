"""Exports a run to share: its best weights, configuration and a model card, and the fusion as one graph."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from championship_sr.evaluate.bundled import CARD, TRAINED_ON
from championship_sr.evaluate.model import WEIGHTS, Model
from championship_sr.extract.config import BUNDLED
from championship_sr.store.config import dump_yaml
from championship_sr.store.disk.files import filling
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.entries import Expert
from championship_sr.train.fusion.config import FusionConfig
from championship_sr.train.records.checkpoint import CHECKPOINTS, STATE_FILE, WEIGHTS_FILE
from championship_sr.train.records.folder import CONFIG_FILE, EXPERTS_FILE
from championship_sr.train.records.seen import SEEN_FILE

PROGRAM, ONNX = "fusion.pt2", "fusion.onnx"
TOLERANCE = 1e-4  # largest difference allowed between a graph and the network, for images in 0..1


def export_run(model: Model, out: Path, *, with_experts: bool = False, trained_on: str | None = None) -> Path:
    """Writes a folder that `load` takes like the run itself, whole or not at all, and returns it.

    with_experts  the experts' weights are copied into it
    trained_on    what the run was trained on, for the model card
    raises        StoreError if the folder is not empty
    """
    with filling(out) as inside:
        _fill(model, inside, with_experts, trained_on)
    return out


def _fill(model: Model, out: Path, with_experts: bool, trained_on: str | None) -> None:
    source, step = model.root, model.fusion.checkpoint.path.name
    target = out / CHECKPOINTS / step
    target.mkdir(parents=True)
    for name in (CONFIG_FILE, SEEN_FILE):
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)
    for name in (WEIGHTS_FILE, STATE_FILE):
        shutil.copyfile(source / CHECKPOINTS / step / name, target / name)
    names = weights_names(model)
    entries = {name: _shared(entry, names) for name, entry in model.fusion.expert_entries.items()}
    (out / EXPERTS_FILE).write_text(dump_yaml({name: asdict(entry) for name, entry in entries.items()}))
    if with_experts:
        _copy_experts(model, out / WEIGHTS, names)
    (out / CARD).write_text(model_card(model, trained_on), encoding="utf-8")


def weights_names(model: Model) -> dict[str, str]:
    """Expert -> the name of its weights file in an export; equal names are prefixed with the expert's."""
    entries = model.fusion.expert_entries
    paths = {name: entry.notes["config"].get("weights") or "" for name, entry in entries.items()}
    names = {name: Path(path).name for name, path in paths.items() if path and not path.startswith(BUNDLED)}
    files = {(file.casefold(), entries[name].made_from) for name, file in names.items()}
    if len(files) == len({file for file, _ in files}):
        return names
    return {name: f"{name}@{file}" for name, file in names.items()}  # no expert's name has an @ in it


def _shared(entry: Expert, names: Mapping[str, str]) -> Expert:
    """The entry without details of this machine: of the notes only the expert's configuration, without folders."""
    config = dict(entry.notes["config"])
    if entry.name in names:
        config["weights"] = names[entry.name]
    if config.get("images"):
        config["images"] = Path(config["images"]).name
    return replace(entry, notes={"config": config})


def _copy_experts(model: Model, folder: Path, names: Mapping[str, str]) -> None:
    folder.mkdir()
    for expert in model.experts:  # loading them has checked that the files are the right ones
        weights = expert.config.weights
        if weights and expert.name in names:
            shutil.copyfile(weights, folder / names[expert.name])


def model_card(model: Model, trained_on: str | None = None) -> str:
    """The model card, in Markdown."""
    fusion = model.fusion
    parameters = sum(parameter.numel() for parameter in fusion.network.parameters())
    psnr = fusion.checkpoint.psnr
    data = f"{TRAINED_ON}{' '.join(trained_on.split())}\n\n" if trained_on else ""
    rows = "\n".join(
        f"| {name} | {entry.identity.get('architecture', '')} | `{entry.made_from or 'random'}` "
        f"| {entry.notes['config'].get('licence') or 'not stated'} | {entry.notes['config'].get('url') or ''} |"
        for name, entry in fusion.expert_entries.items()
    )
    return f"""# {model.root.resolve().name}

A fusion of {len(fusion.experts)} frozen x{fusion.scale} super-resolution experts, trained from their stored images and
features. {parameters:,} parameters, {_network_in_words(fusion.config.fusion)}, checkpoint of step
{fusion.checkpoint.step}{f", {psnr:.3f} dB PSNR-Y on its validation images" if psnr is not None else ""}.

```python
from championship_sr import load

model = load("path/to/this/folder")
sr = model("photo.png")
```

It needs the experts' weights, exactly these, in the working directory or in the folder `{WEIGHTS}` beside this file.
Images of an expert without an architecture are given with each input (`--expert-images NAME=DIR`).

| expert | architecture | sha256 of the weights or images | licence | from |
|---|---|---|---|---|
{rows}

{data}For photographs reduced by bicubic interpolation; noise, JPEG artefacts and blur are not removed. The experts'
own training images and licences bind whoever uses them.
"""


def _network_in_words(config: FusionConfig) -> str:
    return f"network `{config.architecture}`" if config.architecture else f"profile `{config.profile}`"


class _Flat(nn.Module):
    """The network with one input per tensor, as graphs require."""

    def __init__(self, network: nn.Module, experts: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.experts = network, experts

    def forward(self, lr: Tensor, images: Tensor, *features: Tensor) -> Tensor:
        return self.network(lr, images, dict(zip(self.experts, features, strict=True)))


def export_graph(model: Model, path: Path, lr_px: int = 64) -> float:
    """Writes the fusion as a graph for windows of one size, and returns its largest difference from the network.

    path    ending in .pt2 (torch.export) or .onnx; inputs `lr`, `images` and the features of each expert in order
    lr_px   side of the windows, LR pixels
    raises  ConfigError if a package is missing or an operator is not supported, StoreError if outputs differ
    """
    with_features = tuple(name for name, channels in model.fusion.channels.items() if channels)
    flat = _Flat(model.network, with_features).eval().cpu()
    example, other = (_example(model, lr_px, seed) for seed in (0, 1))
    with torch.no_grad():
        expected = flat(*other)
    image = (_write_onnx if path.suffix == ".onnx" else _write_program)(flat, example, other, path)
    difference = (image - expected).abs().max().item()
    if not difference <= TOLERANCE:
        path.unlink()
        raise StoreError(
            f"{path}: its output differs from the network's by {difference:.2g} (on 0..1); the file was removed"
        )
    return difference


def _example(model: Model, size: int, seed: int) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    large = size * model.scale
    lr = torch.rand(1, 3, size, size, generator=random)
    images = torch.rand(1, len(model.expert_names), 3, large, large, generator=random)
    widths = filter(None, model.fusion.channels.values())  # an expert without features has no input for them
    features = (torch.randn(1, channels, size, size, generator=random) for channels in widths)
    return lr, images, *features


def _write_program(flat: nn.Module, example: tuple[Tensor, ...], other: tuple[Tensor, ...], path: Path) -> Tensor:
    torch.export.save(torch.export.export(flat, example), path)
    with torch.no_grad():
        return torch.export.load(path).module()(*other)


def _write_onnx(flat: _Flat, example: tuple[Tensor, ...], other: tuple[Tensor, ...], path: Path) -> Tensor:
    try:
        import onnx  # noqa: F401 (torch's exporter writes by it)
        import onnxruntime
        import onnxscript  # noqa: F401 (and translates by it)
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail
    except ImportError as error:
        raise ConfigError(f"{path}: {error}. Run: pip install 'championship-sr[onnx]'") from None
    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)  # it logs every operator that it leaves unchanged
    names = ["lr", "images", *(f"features_{name}" for name in flat.experts)]
    try:
        program = torch.onnx.export(flat, example, dynamo=True, verbose=False, input_names=names, output_names=["sr"])
        program.save(path)  # type: ignore[union-attr]  # it is None without `dynamo` alone
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except (torch.onnx.OnnxExporterError, Fail) as error:
        raise ConfigError(f"{path}: ONNX cannot express this network: {_first_line(error)}") from None
    inputs = {name: tensor.numpy() for name, tensor in zip(names, other, strict=True)}
    return torch.from_numpy(session.run(None, inputs)[0])


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
