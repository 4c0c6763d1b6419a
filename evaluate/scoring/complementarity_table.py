"""What experts are worth together, as text for a terminal."""

from collections.abc import Sequence
from itertools import groupby

from championship_sr.evaluate.methods import row
from championship_sr.evaluate.scoring.complementarity import Complementarity, ExpertCost, Subset
from championship_sr.evaluate.scoring.scores import aligned
from championship_sr.train.gains import Gain

MOST_ROWS = 15  # every subset of four experts; of more experts the best of each size
DIGITS = 3  # of PSNR, as in the table of scores
EXPLAINED = "own error: the share of an expert's squared error that no combination of the others' errors explains"
COMBINED = "combined by weights of sum 1, negative allowed, before rounding to 8 bits"


def text(complementarity: Complementarity) -> str:
    """The experts, their errors' correlation, the subsets and the oracles, each as a table of its own."""
    parts = [
        _experts(complementarity),
        _correlation(complementarity),
        _subsets(complementarity),
        _oracles(complementarity),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def shown(complementarity: Complementarity) -> list[Subset]:
    """All subsets, or the best of each size if there are many."""
    if len(complementarity.subsets) <= MOST_ROWS:
        return list(complementarity.subsets)
    by_size = groupby(complementarity.subsets, key=lambda subset: len(subset.experts))
    return [max(group, key=lambda subset: subset.psnr_y) for _, group in by_size]


def signed(gain: Gain) -> str:
    """The mean with its sign; what rounds to nothing has none of its own."""
    return _signed(gain.mean)


def interval(gain: Gain) -> str:
    """The two ends of the interval."""
    return f"{_signed(gain.low)} .. {_signed(gain.high)}"


def _signed(value: float) -> str:
    return f"{round(value, DIGITS) + 0.0:+.{DIGITS}f}"


def cost_cells(cost: ExpertCost) -> list[str]:
    """Parameters, seconds and stored bytes, empty if not known."""
    return [
        "" if cost.parameters is None else f"{cost.parameters / 1e6:.2f} M",
        "" if cost.seconds is None else f"{cost.seconds:.3g}",
        "" if cost.stored_bytes is None else f"{cost.stored_bytes / 1e6:.3g} MB",
    ]


def expert_rows(complementarity: Complementarity) -> list[list[str]]:
    """A header and a row for each expert, without columns for which nothing is known."""
    header = ["expert", "own error", "adds to the others, dB", "95 % interval", "x8 adds, dB", "95 % interval"]
    rows = [[*header, "parameters", "seconds", "stored"]]
    for name in complementarity.experts:
        gains = [complementarity.adds.get(name), complementarity.self_ensemble.get(name)]
        cells = [cell for gain in gains for cell in ((signed(gain), interval(gain)) if gain else ("", ""))]
        own = f"{100 * complementarity.own_error[name]:.1f} %" if len(complementarity.experts) > 1 else ""
        rows.append([name, own, *cells, *cost_cells(complementarity.costs.get(name, ExpertCost()))])
    kept = [i for i in range(len(rows[0])) if any(cells[i] for cells in rows[1:])]
    return [[cells[i] for i in kept] for cells in rows]


def subset_rows(complementarity: Complementarity, subsets: Sequence[Subset]) -> list[list[str]]:
    """A header and a row for each of these subsets."""
    rows = [["experts", "PSNR-Y", f"gain over {complementarity.best}", "95 % interval", "weights"]]
    for subset in subsets:
        weights = " ".join(f"{weight:.3f}" for weight in subset.weights.values())
        names, psnr = " + ".join(subset.experts), f"{subset.psnr_y:.{DIGITS}f}"
        rows.append([names, psnr, signed(subset.gain), interval(subset.gain), weights])
    return rows


def oracles_in_words(complementarity: Complementarity) -> str:
    """The gains of the upper bounds over the best expert."""
    words = [f"{row(name).title} {signed(gain)} dB" for name, gain in complementarity.oracles.items()]
    return (
        f"upper bounds, which choose with HR in hand, over {complementarity.best}: {', '.join(words)}" if words else ""
    )


def _experts(complementarity: Complementarity) -> list[str]:
    explained = f"{EXPLAINED}; " if len(complementarity.experts) > 1 else ""
    return [
        "what each expert adds",
        *aligned(expert_rows(complementarity)),
        f"{explained}seconds and bytes for a mean image",
    ]


def _correlation(complementarity: Complementarity) -> list[str]:
    if not complementarity.correlation:
        return []
    names = complementarity.experts
    rows = [[a, *(f"{complementarity.correlation[a][b]:.3f}" for b in names)] for a in names]
    return ["correlation of their luma errors", *aligned([["", *names], *rows])]


def _subsets(complementarity: Complementarity) -> list[str]:
    subsets = shown(complementarity)
    more = len(complementarity.subsets) - len(subsets)
    notes = [f"the best of each number of experts; {more} more in the JSON"] if more else []
    return [COMBINED, *aligned(subset_rows(complementarity, subsets)), *notes, *complementarity.notes]


def _oracles(complementarity: Complementarity) -> list[str]:
    return [oracles_in_words(complementarity)] if complementarity.oracles else []
