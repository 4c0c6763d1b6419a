"""A single network that only sees LR and is trained like the fusion, and the expert that it becomes."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from championship_sr.extract.config import ExpertConfig
from championship_sr.extract.experts.architecture import SPANDREL, build_network, known
from championship_sr.extract.experts.expert import load_expert, pad_to
from championship_sr.extract.experts.networks import load_strictly
from championship_sr.extract.experts.weights_file import read_state
from championship_sr.store.config import dump_yaml, to_plain
from championship_sr.store.disk import files
from championship_sr.store.errors import ConfigError, WeightsError
from championship_sr.train.records.checkpoint import WEIGHTS_FILE, choose, load_weights, sha256_of
from championship_sr.train.students.attention import start_local
from championship_sr.train.students.tail import collapse_tail, restored

# spandrel tells GRL's window and stripe sizes from these, which GRL itself does not save
GRL_SIZE_BUFFERS = ("table_w", "table_sh", "index_sh_a2w")
CPU = torch.device("cpu")


class Student(nn.Module):
    """An expert's network, called like a fusion; it only sees LR.

    multiple_px, minimum_px  what the sides of its input are padded to
    """

    def __init__(self, network: nn.Module, scale: int, multiple_px: int, minimum_px: int) -> None:
        super().__init__()
        self.network, self.scale, self.multiple_px, self.minimum_px = network, scale, multiple_px, minimum_px

    def forward(self, lr: Tensor, _images: Tensor | None = None, _features: dict[str, Tensor] | None = None) -> Tensor:
        height, width = lr.shape[-2:]
        padded = pad_to(lr, self.multiple_px, self.minimum_px)
        return self.network(padded)[..., : height * self.scale, : width * self.scale]


def new_student(config: ExpertConfig, scale: int) -> Student:
    """The untrained student, or one that starts from the weights of `pretrain.start`.

    It is first saved and loaded as an expert, so that hours of training do not end in an unusable network.

    raises  ConfigError for an entry that describes no network, or one of another scale; WeightsError for weights to
            start from that are of another network
    """
    network = _network(config)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        path = Path(folder) / f"{config.name}.safetensors"
        export(network, path)
        try:
            with load_expert(entry_of(config, path), CPU, scale) as expert:
                student = Student(network, scale, expert.multiple_px, expert.minimum_px)
        except (ConfigError, WeightsError) as error:
            reason = str(error).replace(str(path), "its network")
            raise ConfigError(
                f"student {config.name}: cannot become an x{scale} expert of this store: {reason}"
            ) from None
        _check_plain_call(student, config)
    if _collapses(config):
        collapse_tail(network)
    return student


def entry_of(config: ExpertConfig, weights: Path) -> ExpertConfig:
    """The entry of the expert that a student is with these weights."""
    path, hyperparameters = _recipe(config)
    if not known(path):  # spandrel recognises its own networks by their weights
        config = replace(config, architecture=path, hyperparameters=dict(hyperparameters))
    return replace(
        config, weights=str(weights), url=None, sha256=sha256_of(weights), source="a student of this program's"
    )


def export_student(config: ExpertConfig, run: Path, scale: int) -> Path:
    """Writes NAME.safetensors and NAME.yaml, an expert's entry, into a student's run; returns the entry's path."""
    checkpoint = choose(run, "best")
    if config.pretrain:  # the initial weights are no longer needed
        config = replace(config, pretrain=replace(config.pretrain, start=None, scale=scale))
    network = _network(config)
    if _collapses(config):
        collapse_tail(network)
    load_weights(Student(network, scale, 1, 1), checkpoint.path / WEIGHTS_FILE)
    if _collapses(config):
        network = restored(network, _network(config))
    weights, entry = run / f"{config.name}.safetensors", run / f"{config.name}.yaml"
    export(network, weights, half=config.pretrain is not None and config.pretrain.half)
    made = entry_of(config, weights)
    content = {key: value for key, value in to_plain(made).items() if value not in (None, {}, [])}
    content["weights"] = weights.name  # found beside the entry
    files.write_atomic(entry, dump_yaml(content).encode())
    return entry


def export(network: nn.Module, path: Path, *, half: bool = False) -> None:
    """Writes weights that spandrel recognises and loads again, as safetensors; whole or not at all.

    half  parameters in float16, which takes half the space; they are float32 again once loaded
    """
    weights = dict(network.state_dict())
    if type(network).__name__ == "GRL":
        weights |= {name: getattr(network, name) for name in GRL_SIZE_BUFFERS}
    parameters = dict(network.named_parameters())
    tensors = {
        key: (_stored(value, half) if key in parameters else narrowed(value)).detach().cpu().clone().contiguous()
        for key, value in weights.items()
    }
    unfinished = path.with_name(path.name + files.TMP)
    save_file(tensors, unfinished)
    files.publish(unfinished, path)


def _stored(parameter: Tensor, half: bool) -> Tensor:
    return parameter.half() if half and parameter.is_floating_point() else parameter


def narrowed(buffer: Tensor) -> Tensor:
    """The buffer as 8-bit integers if that loses nothing: index tables and masks are most of a small file."""
    for dtype in (torch.uint8, torch.int8):
        if buffer.to(dtype).to(buffer.dtype).equal(buffer):
            return buffer.to(dtype)
    return buffer


def _collapses(config: ExpertConfig) -> bool:
    return config.pretrain is not None and config.pretrain.collapse_tail


def _recipe(config: ExpertConfig) -> tuple[str, dict]:
    """What builds the network of an entry: `package.module:factory` and its arguments."""
    if config.pretrain:
        return config.pretrain.network, config.pretrain.hyperparameters
    if config.architecture:
        return config.architecture, config.hyperparameters
    raise ConfigError(
        f"student {config.name}: its entry describes no network to train; give it a pretrain section with network "
        f"({SPANDREL}HAT:HAT, or package.module:factory) and hyperparameters"
    )


def _network(config: ExpertConfig) -> nn.Module:
    path, hyperparameters = _recipe(config)
    key = "pretrain.network" if config.pretrain else "architecture"
    network = build_network(path, hyperparameters, f"student {config.name}: {key}")
    start = config.pretrain.start if config.pretrain else None
    if start:
        names = network.state_dict().keys()
        if not start.is_file():
            raise WeightsError(f"student {config.name}: pretrain.start={start}: no such file")
        state = read_state(start, lambda state: names <= state.keys())
        kept = {key: value for key, value in state.items() if key in names or key not in GRL_SIZE_BUFFERS}
        load_strictly(network, kept, start, config.name)
    elif config.pretrain and config.pretrain.local_attention and not start_local(network):
        raise ConfigError(
            f"student {config.name}: pretrain.local_attention: {type(network).__name__} has no window attention with a "
            "table of position biases; leave it out"
        )
    return network


@torch.no_grad()
def _check_plain_call(student: Student, config: ExpertConfig) -> None:
    """Raises ConfigError for a network whose call returns anything other than the image."""
    side = 32
    made = student.network.eval()(pad_to(torch.full((1, 3, side, side), 0.5), student.multiple_px, student.minimum_px))
    if not isinstance(made, Tensor) or made.shape[:2] != (1, 3):
        shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise ConfigError(f"student {config.name}: its network returns {shape} in training, expected one RGB image")
    student.network.train()
