"""What a report shows of the experts together: a heat map of their errors' correlation, what each adds, and subsets."""

from typing import Any

from championship_sr.evaluate.report.headline import Fact, signed
from championship_sr.evaluate.scoring.complementarity import Complementarity
from championship_sr.evaluate.scoring.complementarity_table import (
    COMBINED,
    EXPLAINED,
    expert_rows,
    oracles_in_words,
    shown,
    subset_rows,
)

PALEST = 0.08  # the lowest correlation's share of the heat map's colour


def section(complementarity: Complementarity) -> dict[str, Any]:
    """The entries of together.html.j2."""
    subsets = shown(complementarity)
    rest = [subset for subset in complementarity.subsets if subset not in subsets]
    return {
        "sentence": complementarity.sentence,
        "names": complementarity.experts,
        "correlation": _heat_map(complementarity),
        "experts": expert_rows(complementarity),
        "explained": EXPLAINED,
        "combined": COMBINED,
        "subsets": subset_rows(complementarity, subsets),
        "rest": subset_rows(complementarity, rest) if rest else [],
        "notes": [*complementarity.notes, *filter(None, [oracles_in_words(complementarity)])],
    }


def facts(complementarity: Complementarity) -> list[Fact]:
    """The best expert's score, and what all experts gain over it by fitted weights."""
    scores = {subset.experts: subset for subset in complementarity.subsets}
    best, every = scores[(complementarity.best,)], scores[complementarity.experts]
    limits = f"95\u00a0% interval {signed(every.gain.low, 3)} to {signed(every.gain.high, 3)}"
    together = Fact(signed(every.gain.mean, 3), "dB", "of all experts by fitted weights over it", limits)
    alone = Fact(f"{best.psnr_y:.3f}", "dB", f"PSNR-Y of the best expert, {complementarity.best}")
    return [alone, together] if len(complementarity.experts) > 1 else [alone]


def _heat_map(complementarity: Complementarity) -> list[tuple[str, list[tuple[str, float]]]]:
    """Expert -> the text of each cell, and its share of the colour."""
    values = [value for row in complementarity.correlation.values() for value in row.values()]
    low, span = min(values, default=0.0), max(values, default=1.0) - min(values, default=0.0) or 1.0
    return [
        (name, [(f"{value:.3f}", PALEST + (1 - PALEST) * (value - low) / span) for value in row.values()])
        for name, row in complementarity.correlation.items()
    ]
