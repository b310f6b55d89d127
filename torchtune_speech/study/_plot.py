"""A plot as SVG: the points of all seeds, their means, and intervals of the means."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape

_WIDTH, _HEIGHT = 400, 290  # of a panel, in pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 30, 58
_COLUMNS = 3
_LETTER = 6.6  # mean width
_TURN = 35  # degrees that long names are turned by
_TITLE = 34
_INK, _SOFT, _RULE, _COLOR = "#1b1b1b", "#5c5c5c", "#dddddd", "#1f5fa8"


@dataclass(frozen=True, slots=True)
class Panel:
    """One score of all variants.

    Attributes:
        x_label: what varies.
        y_label: the score, with its unit.
        names: of the variants; an axis of numbers if all are numbers.
        values: of each variant, a value a seed.
        means: of each variant; None without values.
        intervals: of the means; None where there is none.
    """

    x_label: str
    y_label: str
    names: Sequence[str]
    values: Sequence[Sequence[float]]
    means: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None]


def draw_panels(panels: Sequence[Panel], title: str) -> str:
    """Draw panels side by side, three in a row.

    Args:
        panels: at least one.
        title: over all.

    Returns:
        An SVG document.
    """
    columns = min(_COLUMNS, len(panels))
    names_height = max(_names_height(panel) for panel in panels)
    panel_height = _HEIGHT + names_height
    # The title may be longer than one panel is wide.
    width = max(_WIDTH * columns, round(_LEFT + 9 * len(title)))
    height = _TITLE + panel_height * math.ceil(len(panels) / columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="12" fill="{_INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(_LEFT, 22, title, size=15, bold=True),
    ]
    for i, panel in enumerate(panels):
        x, y = _WIDTH * (i % columns), _TITLE + panel_height * (i // columns)
        parts += [
            f'<g transform="translate({x} {y})">',
            *_panel(panel, i, names_height),
            "</g>",
        ]
    return "\n".join([*parts, "</svg>", ""])


def _names_height(panel: Panel) -> int:
    """Pixels that turned names of variants need more than names in a line; 0 if those fit."""
    longest = _LETTER * max(map(len, panel.names), default=0)
    slot = (_WIDTH - _LEFT - _RIGHT) / max(1, len(panel.names))
    if _numbers(panel.names) is not None or longest <= slot:
        return 0
    return math.ceil(longest * math.sin(math.radians(_TURN)))


def _panel(panel: Panel, number: int, names_height: int) -> list[str]:
    """A panel in its own coordinates; names of variants are turned if they have height."""
    panel = _in_order(panel)
    left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM
    parts = [_text(left, top - 10, panel.y_label, bold=True)]
    low, high = _range(panel)
    y_of = _scale(low, high, bottom, top)
    for tick in ticks(low, high):
        y = y_of(tick)
        parts += [_line(left, y, right, y, _RULE), _text(left - 6, y + 4, _short(tick), "end")]
    numbers = _numbers(panel.names)
    if numbers is None:
        slot = (right - left) / max(1, len(panel.names))
        xs = [left + slot * (i + 0.5) for i in range(len(panel.names))]
    else:
        # Room on both sides, so that no point lies on the edge.
        x_of = _scale(min(numbers), max(numbers), left + 14, right - 14)
        xs = [x_of(number) for number in numbers]
    last = -math.inf
    for x, name in zip(xs, panel.names, strict=True):
        parts.append(_line(x, bottom, x, bottom + 4, _SOFT))
        if numbers is None and names_height:
            parts.append(_text(x + 4, bottom + 14, name, "end", turn=-_TURN))
        elif numbers is None or x - last >= _LETTER * len(name) + 6:
            parts.append(_text(x, bottom + 18, name, "middle"))
            last = x
    parts += [
        _line(left, bottom, right, bottom, _SOFT),
        _text((left + right) / 2, bottom + names_height + 40, panel.x_label, "middle"),
        # An interval of two seeds may be wider than the panel.
        f'<clipPath id="inside{number}"><rect x="{left}" y="{top}" width="{right - left}" '
        f'height="{bottom - top}"/></clipPath>',
        f'<g clip-path="url(#inside{number})">',
        *_marks(panel, xs, y_of, joined=numbers is not None),
        "</g>",
    ]
    return parts


def _marks(
    panel: Panel, xs: Sequence[float], y_of: Callable[[float], float], *, joined: bool
) -> list[str]:
    """Whiskers, means and points."""
    parts, line = [], []
    for x, values, mean, ends in zip(xs, panel.values, panel.means, panel.intervals, strict=True):
        if mean is None:
            continue
        if ends is not None:
            low, high = y_of(ends[0]), y_of(ends[1])
            parts += [_line(x, low, x, high, _INK)]
            parts += [_line(x - 4, y, x + 4, y, _INK) for y in (low, high)]
        line.append(f"{x:.1f},{y_of(mean):.1f}")
        if not joined:
            parts.append(_line(x - 16, y_of(mean), x + 16, y_of(mean), _COLOR, 2))
        parts += [
            f'<circle cx="{x:.1f}" cy="{y_of(value):.1f}" r="3.5" fill="{_COLOR}" '
            f'fill-opacity=".55"><title>{value:.4g}</title></circle>'
            for value in values
        ]
    if joined and line:
        parts.append(
            f'<polyline points="{" ".join(line)}" fill="none" stroke="{_COLOR}" stroke-width="2"/>'
        )
    return parts


def _range(panel: Panel) -> tuple[float, float]:
    """All points, and of the intervals as much as lets the points be told apart."""
    points = [value for values in panel.values for value in values] or [0.0, 1.0]
    low, high = min(points), max(points)
    room = (high - low) or abs(high) or 1.0
    ends = [end for interval in panel.intervals if interval for end in interval]
    low = max(min([low, *ends]), low - room / 2)
    high = min(max([high, *ends]), high + room / 2)
    margin = 0.06 * ((high - low) or room)
    return low - margin, high + margin


def _in_order(panel: Panel) -> Panel:
    """The panel with variants that are numbers from small to large."""
    numbers = _numbers(panel.names)
    if numbers is None:
        return panel
    order = sorted(range(len(numbers)), key=lambda i: numbers[i])
    columns = ("names", "values", "means", "intervals")
    return replace(panel, **{c: [getattr(panel, c)[i] for i in order] for c in columns})


def _numbers(names: Sequence[str]) -> list[float] | None:
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return None
    return numbers if len(set(numbers)) > 1 and all(map(math.isfinite, numbers)) else None


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, four to nine of them.

    Args:
        low: lower end.
        high: upper end, above it.

    Returns:
        Multiples of 1, 2 or 5 times a power of ten.
    """
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(s for s in (5 * power, 2 * power, power) if (high - low) / s >= 4)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _short(value: float) -> str:
    return f"{value:.10g}" if abs(value) > 1e-12 else "0"


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" '
        f'stroke-width="{width}"/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    *,
    size: int = 12,
    bold: bool = False,
    turn: int = 0,
) -> str:
    weight = ' font-weight="600"' if bold else ""
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{weight}{turned}>'
        f"{escape(text)}</text>"
    )
