"""Starts a run from another one's weights, with a fresh optimiser and possibly other experts."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from championship_sr.store.config import to_plain
from championship_sr.store.errors import ConfigError
from championship_sr.store.format.entries import Expert
from championship_sr.train.fusion.config import FusionConfig
from championship_sr.train.fusion.start import start_of
from championship_sr.train.fusion.taking_over import take_over
from championship_sr.train.records.checkpoint import LoadedFusion
from championship_sr.train.records.folder import feature_channels

log = logging.getLogger(__name__)

MAY_DIFFER = ("joined", "checkpointing")  # of the two networks' configurations


class Beginning:
    """A trained network as the beginning of a run on these experts.

    fusion  the configuration of the new run's network
    raises  ConfigError if the run has another network or scale, or none of its initial experts is left
    """

    def __init__(
        self, trained: LoadedFusion, run: Path, fusion: FusionConfig, entries: Mapping[str, Expert], scale: int
    ) -> None:
        self.trained, self.run = trained, run
        _check_network(fusion, trained.config.fusion, run)
        if scale != trained.scale:
            raise ConfigError(f"--init {run}: scale {trained.scale}; the store has {scale}")
        channels = {name: feature_channels(entry) for name, entry in entries.items()}
        self.new = tuple(name for name in entries if trained.channels.get(name) != channels[name])
        late = {*self.new, *trained.config.fusion.joined}
        joined = tuple(name for name in entries if name in late)
        if len(joined) == len(entries):
            began = [name for name in trained.experts if name not in trained.config.fusion.joined]
            raise ConfigError(
                f"--init {run}: none of its original experts, {', '.join(began)}, is among "
                f"{', '.join(entries)} with the same features; train a new run"
            )
        self.fusion = replace(fusion, joined=joined)
        self.entries = entries

    def fill(self, network: nn.Module) -> dict[str, float]:
        """Puts the weights into the network; returns what it departs from, expert -> weight."""
        take_over(network, self.trained.network, self.new)
        start = start_of(network)
        return dict(zip(self.entries, start.tolist(), strict=True)) if start is not None else {}

    def sentence(self) -> str:
        """What was taken over, in one line."""
        known = self.trained.expert_entries
        kept = [name for name in self.entries if name not in self.new]
        others = [name for name in kept if known[name].made_from != self.entries[name].made_from]
        left = [name for name in known if name not in self.entries]
        parts = [f"begins from step {self.trained.checkpoint.step} of {self.run}, taken over for {', '.join(kept)}"]
        parts += [f"{', '.join(self.new)} joined with weight 0"] * bool(self.new)
        parts += [f"left out: {', '.join(left)}"] * bool(left)
        parts += [f"with other weights than that run had: {', '.join(others)}"] * bool(others)
        return "; ".join(parts)


def _check_network(fusion: FusionConfig, there: FusionConfig, run: Path) -> None:
    old, new = to_plain(there), to_plain(fusion)
    differing = [
        f"fusion.{key} is {old[key]} there, {new[key]} now"
        for key in new
        if old[key] != new[key] and key not in MAY_DIFFER
    ]
    if differing:
        raise ConfigError(f"--init {run}: the run has another network: {'; '.join(differing)}")
