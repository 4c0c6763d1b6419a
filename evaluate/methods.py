"""The rows of every table: what each method is called and what it is."""

from collections.abc import Collection
from dataclasses import dataclass

BICUBIC, MEAN, FITTED, FUSION = "bicubic", "mean", "fitted", "fusion"
BUNDLED = "bundled"  # the fusion that is installed with the package
BEST_X8, FUSION_X8 = "best_expert_x8", "fusion_x8"
PER_IMAGE, PER_PIXEL = "best_expert_per_image", "best_expert_per_pixel"
# prefixes of the names of an expert, a phase, or a network scored beside the fusion
EXPERT, SWITCHED_OFF, SINGLE = "expert:", "without:", "single:"


@dataclass(frozen=True)
class Row:
    """How a method is called in a table."""

    title: str
    kind: str  # floor | baseline | expert | upper bound | fusion | single | ablation
    note: str = ""


ROWS = {
    BICUBIC: Row("bicubic", "floor"),
    MEAN: Row("mean of experts", "baseline"),
    FITTED: Row("fitted weights", "baseline", "of sum 1, negative allowed, fitted to images that are not scored"),
    BEST_X8: Row("best expert, x8 self-ensemble", "baseline"),
    PER_IMAGE: Row("best expert per image", "upper bound", "an oracle: needs the HR image to choose"),
    PER_PIXEL: Row("best expert per pixel", "upper bound", "an oracle: needs the HR image to choose"),
    FUSION: Row("fusion", "fusion"),
    BUNDLED: Row("bundled fusion", "fusion"),
    FUSION_X8: Row("fusion, x8 self-ensemble", "fusion"),
}


def held_up(methods: Collection[str]) -> str:
    """Which methods a report compares with the best expert: the fusion, or what is possible without one."""
    return next(method for method in (FUSION, FITTED, MEAN) if method in methods)


def row(method: str) -> Row:
    """The row of a method, of an expert (`expert:NAME`) or of an ablation (`without:PHASE`)."""
    if method.startswith(EXPERT):
        return Row(method.removeprefix(EXPERT), "expert")
    if method.startswith(SINGLE):
        return Row(method.removeprefix(SINGLE), "single", "one network, which sees LR alone")
    if method.startswith(SWITCHED_OFF):
        return Row(f"without {method.removeprefix(SWITCHED_OFF)}", "ablation", "switched off, not retrained")
    return ROWS[method]
