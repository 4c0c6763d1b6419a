"""Charts as inline SVG, coloured by the page's style sheet: they follow its light and dark colours."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 76, 12, 12, 42
MAX_BINS = 24
MAX_MARKED = 12  # points of a line that are also dots: one alone would not be seen
MAX_NAMED = 24  # bars with a name each
ROW, BAR, CHARACTER = 24, 14, 7.4  # of a named row: its height, its bar's, and the width of a letter

Point = tuple[float, float]


def line_chart(
    lines: Mapping[str, Sequence[Point]],
    levels: Mapping[str, float] | None = None,
    *,
    x_title: str,
    y_title: str,
    log_y: bool = False,
) -> str:
    """Lines over x, and dashed horizontal levels to compare them with; names are at their ends."""
    points = [(x, y) for line in lines.values() for x, y in line if math.isfinite(y) and (y > 0 or not log_y)]
    if not points:
        return ""
    levels = {name: y for name, y in (levels or {}).items() if math.isfinite(y)}
    value = math.log10 if log_y else float
    xs = [x for x, _ in points]
    ys = [value(y) for _, y in points] + [value(y) for y in levels.values()]
    frame = _Frame(_padded(min(xs), max(xs), 0), _padded(min(ys), max(ys), 0.06))
    parts = [frame.axes(x_title, y_title, log_y)]
    for index, (name, y) in enumerate(levels.items()):
        parts.append(_level(frame, name, value(y), index))
    for name, line in lines.items():
        drawn = [(frame.x(x), frame.y(value(y))) for x, y in line if math.isfinite(y) and (y > 0 or not log_y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        parts.append(f'<polyline class="line" points="{path}"><title>{escape(name)}</title></polyline>')
        if len(drawn) <= MAX_MARKED:
            parts += [f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in drawn]
    return _svg(parts, y_title)


def histogram(values: Sequence[float], *, x_title: str, y_title: str = "images") -> str:
    """A histogram with equal bins, one of which begins at 0; bins below 0 have another colour."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    span = max(max(values), 0) - min(min(values), 0)
    step = _nice(max(span, 1e-6) / max(4, min(MAX_BINS, round(2 * math.sqrt(len(values))))))
    bins = [math.floor(value / step + 1e-9) for value in values]
    first, last = min(*bins, 0), max(*bins, -1)
    counts = [bins.count(index) for index in range(first, last + 1)]
    frame = _Frame((first * step, (last + 1) * step), (0, max(counts) * 1.08))
    parts = [frame.axes(x_title, y_title, whole_y=True)]
    for index, count in zip(range(first, last + 1), counts, strict=True):
        left, right, top = frame.x(index * step), frame.x((index + 1) * step), frame.y(count)
        label = f"{index * step:+.3g} to {(index + 1) * step:+.3g}: {count}"
        parts.append(_rect(left + 1, top, right - left - 2, frame.y(0) - top, "good" if index >= 0 else "bad", label))
    parts.append(f'<line class="zero" x1="{frame.x(0):.1f}" x2="{frame.x(0):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    return _svg(parts, x_title)


def bars(values: Mapping[str, float], *, title: str) -> str:
    """One bar per name, the largest first, on both sides of 0; below 0 in another colour. Many bars go unnamed."""
    ordered = sorted(((v, k) for k, v in values.items() if math.isfinite(v)), reverse=True)
    if not ordered:
        return ""
    if len(ordered) > MAX_NAMED:
        return _columns(ordered, title)
    rows = _Rows([name for _, name in ordered], [0.0, *(value for value, _ in ordered)])
    parts = [rows.axes(title)]
    for index, (value, name) in enumerate(ordered):
        left, right = sorted((rows.x(value), rows.x(0)))
        kind = "good" if value >= 0 else "bad"
        label = f"{name}: {value:+.3f}"
        parts.append(_rect(left, rows.middle(index) - BAR / 2, max(right - left, 0.5), BAR, kind, label))
    return _svg(parts, title, rows.height)


def intervals(values: Mapping[str, tuple[float, float, float]], *, x_title: str) -> str:
    """One row per name: a point at the middle value, and a line from the low to the high one."""
    finite = {name: value for name, value in values.items() if all(map(math.isfinite, value))}
    if not finite:
        return ""
    rows = _Rows(list(finite), [0.0, *(number for value in finite.values() for number in value)])
    parts = [rows.axes(x_title)]
    for index, (name, (low, value, high)) in enumerate(finite.items()):
        y, label = rows.middle(index), f"{name}: {value:+.3f} ({low:+.3f} to {high:+.3f})"
        parts.append(
            f'<g><title>{escape(label)}</title><line class="whisker" x1="{rows.x(low):.1f}" x2="{rows.x(high):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/><circle class="point" cx="{rows.x(value):.1f}" cy="{y:.1f}" r="4.5"/></g>'
        )
    return _svg(parts, x_title, rows.height)


def _columns(ordered: Sequence[tuple[float, str]], title: str) -> str:
    frame = _Frame((0, len(ordered)), _padded(min(ordered[-1][0], 0), max(ordered[0][0], 0), 0.06))
    parts = [frame.axes("images, sorted", title, x_ticks=False)]
    for index, (value, name) in enumerate(ordered):
        left, right = frame.x(index), frame.x(index + 1)
        top, bottom = sorted((frame.y(value), frame.y(0)))
        gap = min(3.0, (right - left) * 0.15)
        kind = "good" if value >= 0 else "bad"
        label = f"{name}: {value:+.3f}"
        parts.append(_rect(left + gap, top, right - left - 2 * gap, max(bottom - top, 0.5), kind, label))
    parts.append(f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{frame.y(0):.1f}" y2="{frame.y(0):.1f}"/>')
    return _svg(parts, title)


class _Rows:
    """Named rows over one horizontal axis."""

    def __init__(self, names: Sequence[str], values: Sequence[float]) -> None:
        self.names = names
        self.left = min(WIDTH / 2, 16 + CHARACTER * max(len(name) for name in names))
        self.low, self.high = _padded(min(values), max(values), 0.04)
        self.height = TOP + ROW * len(names) + BOTTOM

    def x(self, value: float) -> float:
        return self.left + (value - self.low) / (self.high - self.low) * (WIDTH - RIGHT - self.left)

    def middle(self, index: int) -> float:
        return TOP + ROW * (index + 0.5)

    def axes(self, title: str) -> str:
        bottom = self.height - BOTTOM
        parts = []
        for value in _ticks(self.low, self.high):
            x = self.x(value)
            kind = "zero" if value == 0 else "grid"
            parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{_label(value)}</text>'
            )
        for index, name in enumerate(self.names):
            y = self.middle(index) + 4.5
            parts.append(
                f'<text class="label" x="{self.left - 10:.1f}" y="{y}" text-anchor="end">{escape(name)}</text>'
            )
        middle = (self.left + WIDTH - RIGHT) / 2
        parts.append(
            f'<text class="name" x="{middle}" y="{self.height - 3}" text-anchor="middle">{escape(title)}</text>'
        )
        return "".join(parts)


class _Frame:
    """Data coordinates -> SVG coordinates, and the axes around them."""

    def __init__(self, x_range: Point, y_range: Point) -> None:
        self.x_range, self.y_range = x_range, y_range

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(
        self, x_title: str, y_title: str, log_y: bool = False, *, x_ticks: bool = True, whole_y: bool = False
    ) -> str:
        parts = []
        for value in _ticks(*self.y_range, whole=whole_y):
            y, label = self.y(value), _label(10**value if log_y else value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        for value in _ticks(*self.x_range) if x_ticks else ():
            x = self.x(value)
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{_label(value)}</text>'
            )
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_title)}</text>')
        parts.append(
            f'<text class="name" transform="rotate(-90)" x="{-(TOP + HEIGHT - BOTTOM) / 2}" y="14" '
            f'text-anchor="middle">{escape(y_title)}</text>'
        )
        return "".join(parts)


def _level(frame: _Frame, name: str, value: float, index: int) -> str:
    y = frame.y(value)
    return (
        f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"><title>{escape(name)}</title>'
        f'</line><text class="tick" x="{LEFT + 6 + 104 * (index % 5)}" y="{y - 3:.1f}">{escape(name)}</text>'
    )


def _rect(x: float, y: float, width: float, height: float, kind: str, label: str) -> str:
    size = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect class="{kind}" {size}><title>{escape(label)}</title></rect>'


def _svg(parts: Sequence[str], label: str, height: float = HEIGHT) -> str:
    box = f'viewBox="0 0 {WIDTH} {height}"'
    return f'<svg class="chart" {box} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _padded(low: float, high: float, share: float) -> Point:
    room = (high - low) * share or (0.0 if high > low else max(abs(high), 1.0) * 0.05)
    return low - room, high + room


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    step = _nice((high - low) / 5)
    step = max(1, round(step)) if whole else step
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _nice(step: float) -> float:
    """The next number up that is 1, 2 or 5 times a power of 10."""
    power = 10 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _label(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}" if abs(value) < 1e6 else f"{value:.0e}"
