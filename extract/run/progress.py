"""The one progress line of an extraction, whatever the number of its processes."""

from championship_sr.extract.run.shares import Rank, pixels
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.progress import progress


class Progress:
    """One line for all ranks: this rank's pixels as they are done, those of others as their records appear."""

    def __init__(
        self, manifest: Manifest, name: str, shards: list[int], variants: int, rebuild: bool, rank: Rank
    ) -> None:
        self._manifest, self._name, self._rebuild, self._several = manifest, name, rebuild, rank.world_size > 1
        self._px = {shard: pixels(manifest, shard) * variants for shard in self._missing() & set(shards)}
        self._total, self._done = sum(self._px.values()), 0
        self._bar = progress(total=self._total, desc=name, unit="px", unit_scale=True, smoothing=0.1, first=rank.first)

    def _missing(self) -> set[int]:
        return set(self._manifest.missing_shards(self._name, self._rebuild))

    def advance(self, px: int) -> None:
        """Adds pixels that are done in this process."""
        self._bar.update(px)

    def own(self, shard: int) -> None:
        """Called after each shard: adds what the other ranks have done meanwhile."""
        self._done += self._px.pop(shard, 0)
        if self._several and not self._bar.disable:
            missing = self._missing()
            others = sum(px for shard, px in self._px.items() if shard not in missing)
            self._bar.n = self._done + others
            self._bar.refresh()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bar.close()
