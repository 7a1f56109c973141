"""Renders heat maps of matrices, and curves below or across each other, as PNG files.

Matplotlib is optional, and imported only to draw. Not for: metrics of runs (TensorBoard, and
`dist_bert.tools.report`).
"""

import dataclasses
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_bert.common import files
from dist_bert.common.errors import UserError

MAX_ROWS = 100  # more would be unreadable
_MAX_CONTEXT = 30  # characters of a label on each side of the marked part
_MAX_ROWS_WITH_NUMBERS = 24
# Told apart also by people who see no red or green, and in grey (Okabe and Ito 2008).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5A5A5A")
_LINE_MARKERS = "os^Dv<>"
MAX_LINES = len(COLORS)
_FONT = "DejaVu Sans"  # comes with matplotlib


@dataclasses.dataclass(frozen=True)
class Panel:
    """One table of a picture."""

    title: str
    values: NDArray[Any]  # (R, C)
    column_labels: Sequence[str]
    row_axis: str = ""  # what the rows are
    column_axis: str = ""
    texts: Sequence[Sequence[str]] | None = None  # (R, C) shown in the cells instead of the values


@dataclasses.dataclass(frozen=True)
class Curve:
    """A curve with its title."""

    title: str
    places: list[float]  # on the axis that all curves share
    values: list[float]

    def add(self, places: Sequence[float], values: Sequence[float]) -> None:
        """Continues it."""
        self.places.extend(places)
        self.values.extend(values)


def check_picture(path: str, flag: str) -> None:
    """Checks before the work whether a picture can be drawn.

    Raises:
        UserError: matplotlib is not installed, or the name does not end in .png.
    """
    if not path.lower().endswith(".png"):
        raise UserError(f"{flag} {path}: must end in .png: pictures are PNG files")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(
            f"{flag}: pictures need matplotlib; pip install -c constraints.txt -e '.[pictures]'"
        ) from None


def write_tables(
    path: str | Path,
    title: str,
    row_labels: Sequence[str],
    panels: Sequence[Panel],
    *,
    low: float,
    high: float,
    bar_label: str,
    form: str = ".2f",
) -> None:
    """Draws tables with the same rows side by side, with all values on one colour scale.

    Args:
        path: of the PNG file.
        title: shown above all panels.
        row_labels: (R,), of all panels.
        panels: the tables.
        low: value of the darkest colour.
        high: value of the brightest one, also used for higher values.
        bar_label: meaning of the values.
        form: format of the values in the cells, if there is room.

    Raises:
        UserError: there are more than `MAX_ROWS` rows or columns.
    """
    size = max(len(row_labels), *(len(panel.column_labels) for panel in panels))
    if size > MAX_ROWS:
        raise UserError(f"{path}: {size} rows or columns: a picture shows at most {MAX_ROWS}")
    import matplotlib
    from matplotlib.figure import Figure

    texts = [title, *row_labels, *(label for panel in panels for label in panel.column_labels)]
    has_numbers = size <= _MAX_ROWS_WITH_NUMBERS
    cell = 0.5 if has_numbers else 0.24  # inches
    with matplotlib.rc_context({"font.family": _font_families("".join(texts)), "font.size": 9}):
        width = sum(cell * len(panel.column_labels) + 0.6 for panel in panels) + 1
        figure = Figure(
            figsize=(width + 0.075 * max(map(len, row_labels)), cell * len(row_labels) + 1.6),
            layout="constrained",
        )
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(grid, panels, strict=True):
            image = axes.imshow(panel.values, vmin=low, vmax=high, cmap="cividis")
            axes.set_title(panel.title, fontsize=10)
            axes.set_xlabel(panel.column_axis)
            axes.set_ylabel(panel.row_axis)
            is_upright = max(map(len, panel.column_labels)) <= 2
            axes.set_xticks(
                range(len(panel.column_labels)),
                panel.column_labels,
                rotation=0 if is_upright else 90,
                parse_math=False,
            )
            rows = row_labels if axes is grid[0] else [""] * len(row_labels)
            axes.set_yticks(range(len(row_labels)), rows, parse_math=False)
            if has_numbers:
                _write_cells(axes, panel, form, (low + high) / 2)
        is_cut = any(panel.values.max() > high for panel in panels)
        extend = "max" if is_cut else "neither"  # an arrow shows that values exceed the scale
        figure.colorbar(
            image, ax=list(grid), label=bar_label, fraction=0.05, pad=0.02, extend=extend
        )
        figure.suptitle(title, fontsize=11, parse_math=False)
        _save(figure, path, dpi=150, bbox_inches="tight")


def write_curves(
    path: str | Path, axis: str, curves: Sequence[Curve], marks: Mapping[int, str]
) -> None:
    """Draws curves one below the other, from 0 up.

    Args:
        path: of the PNG file.
        axis: what their places are.
        curves: one for each panel.
        marks: place -> name of what begins there; a line through all panels.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.family": _font_families("".join(marks.values()))}):
        figure = Figure(figsize=(9, 1.6 * len(curves) + 0.6), layout="constrained")
        grid = figure.subplots(len(curves), 1, squeeze=False, sharex=True)[:, 0]
        for axes, curve in zip(grid, curves, strict=True):
            axes.plot(curve.places, curve.values, color="#0072B2")
            axes.set_title(curve.title, fontsize=9, loc="left")
            axes.set_ylim(0, 1.15 * max(curve.values))
            for place in marks:
                axes.axvline(place, color="grey", linewidth=0.8, linestyle="dashed")
        for place, name in marks.items():
            grid[0].text(
                place, 0.99, f" {name}", transform=grid[0].get_xaxis_transform(), va="top",
                fontsize=8, parse_math=False,
            )  # fmt: skip
        grid[-1].set_xlabel(axis)
        _save(figure, path, dpi=120)


def write_lines(path: str | Path, axis: str, values: str, curves: Sequence[Curve]) -> None:
    """Draws curves in one panel, points joined by lines, with a legend.

    Args:
        path: of the PNG file.
        axis: what their places are.
        values: what their values are.
        curves: at most `MAX_LINES`.

    Raises:
        UserError: there are more curves.
    """
    if len(curves) > MAX_LINES:
        raise UserError(f"{path}: {len(curves)} curves: a picture shows at most {MAX_LINES}")
    import matplotlib
    from matplotlib.figure import Figure

    titles = [curve.title for curve in curves]
    with matplotlib.rc_context({"font.family": _font_families("".join(titles))}):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for curve, color, marker in zip(curves, COLORS, _LINE_MARKERS, strict=False):
            axes.plot(curve.places, curve.values, color=color, marker=marker, markersize=4)
        for text in axes.legend(axes.lines, titles, fontsize=8).get_texts():
            text.set_parse_math(False)
        axes.grid(linewidth=0.4)
        axes.set_xlim(left=0)
        axes.set_xlabel(axis)
        axes.set_ylabel(values)
        _save(figure, path, dpi=120)


def shortened(label: str, begin: int, end: int) -> str:
    """A label that fits next to a picture: label[begin:end] and its context."""
    first, last = max(0, begin - _MAX_CONTEXT), max(end + _MAX_CONTEXT, 2 * _MAX_CONTEXT)
    head = "…" if first else ""
    return f"{head}{label[first:last]}{'…' if last < len(label) else ''}"


def lacking_characters(text: str) -> str:
    """The characters of a text that are in no installed font, sorted."""
    return "".join(sorted(_fonts_of(text)[1]))


def _save(figure: Any, path: str | Path, **options: Any) -> None:
    """Writes a whole PNG file: without the software's name, so that equal values give equal bytes.

    Args:
        figure: drawn within the fonts of `_font_families`.
        path: of the file.
        options: of `savefig`.
    """
    with files.whole_file(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # `_font_families` has told, once
        figure.savefig(file, format="png", metadata={"Software": None}, **options)


def _write_cells(axes: Any, panel: Panel, form: str, middle: float) -> None:
    for (row, column), value in np.ndenumerate(panel.values):
        text = f"{value:{form}}" if panel.texts is None else panel.texts[row][column]
        colour = "white" if value < middle else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def _font_families(text: str) -> list[str]:
    """Matplotlib's own font, and installed ones for the characters that it lacks.

    Warns on standard error about characters that no font has: they are drawn as boxes.
    """
    families, missing = _fonts_of(text)
    if missing:
        shown = "".join(sorted(missing)[:10])
        print(
            f"no installed font has {shown}: drawn as boxes; install a font, for Chinese e.g."
            " apt-get install fonts-noto-cjk",
            file=sys.stderr,
        )
    return families


def _fonts_of(text: str) -> tuple[list[str], set[str]]:
    """Font families for the characters of a text, and the characters that none of them has."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    def lacking(path: str, wanted: set[str]) -> set[str]:
        try:
            font = FT2Font(path)
        except RuntimeError:  # a font that FreeType cannot read
            return wanted
        return {character for character in wanted if not font.get_char_index(ord(character))}

    own = font_manager.findfont(_FONT)
    families, missing = [_FONT], lacking(own, {c for c in text if c.isprintable()})
    # From the disk: matplotlib's list of fonts lacks those installed since it was made.
    installed = font_manager.findSystemFonts() if missing else []
    for path in sorted(installed, key=lambda path: ("egular" not in path, Path(path).name)):
        still_missing = lacking(path, missing)
        if still_missing != missing:
            font_manager.fontManager.addfont(path)
            families.append(font_manager.FontProperties(fname=path).get_name())
            missing = still_missing
    return families, missing
