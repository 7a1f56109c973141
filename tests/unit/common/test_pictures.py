"""Pictures: all labels and numbers are in them, equal ones are equal bytes, mistakes are told."""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_bert.common import pictures
from dist_bert.common.errors import UserError
from dist_bert.common.pictures import (
    MAX_LINES,
    MAX_ROWS,
    Curve,
    Panel,
    check_picture,
    shortened,
    write_curves,
    write_lines,
    write_tables,
)

VALUES = np.array([[1.0, 0.25, -0.5], [0.25, 1.0, 0.125]])


def draw(path: Path, rows: list[str] | None = None, values: Any = VALUES) -> None:
    columns = [str(number) for number in range(values.shape[1])]
    panels = [Panel("left", values, columns), Panel("right", values * 0.5, columns)]
    rows = rows or [f"row {number} $1 & $2" for number in range(values.shape[0])]
    write_tables(path, "cost: $5 to $6", rows, panels, low=-0.5, high=1.0, bar_label="value")


def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects what is drawn as text from now on."""
    from matplotlib.backends.backend_agg import RendererAgg

    texts: list[str] = []
    original = RendererAgg.draw_text

    def draw_text(self: Any, gc: Any, x: Any, y: Any, s: str, *rest: Any, **named: Any) -> Any:
        texts.append(s)
        return original(self, gc, x, y, s, *rest, **named)

    monkeypatch.setattr(RendererAgg, "draw_text", draw_text)
    return texts


def test_all_labels_and_numbers_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn_texts(monkeypatch)
    draw(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    wanted = {"cost: $5 to $6", "left", "right", "value", "row 0 $1 & $2", "row 1 $1 & $2"}
    wanted |= {"1.00", "0.25", "-0.50", "0.12", "0.50", "-0.25", "0.06"}
    assert wanted <= set(texts)


def test_equal_tables_are_equal_bytes(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    draw(tmp_path / "b.png", values=VALUES * 0.9)
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_large_tables_have_no_numbers_and_huge_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = drawn_texts(monkeypatch)
    draw(tmp_path / "a.png", values=np.full((25, 2), 0.77))
    assert "row 24 $1 & $2" in texts and "0.77" not in texts
    with pytest.raises(UserError, match=rf"b\.png: 101 rows or columns: .* at most {MAX_ROWS}"):
        draw(tmp_path / "b.png", values=np.ones((101, 2)))
    assert not (tmp_path / "b.png").exists()


def test_curves_share_their_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn_texts(monkeypatch)
    upper = Curve("lr $1", [1, 2], [0.5, 0.25])
    upper.add([3], [0.0])
    for name in ("a.png", "b.png"):
        write_curves(
            tmp_path / name, "step", [upper, Curve("batch", [1, 3], [8, 8])], {1: "one", 2: "$2 $"}
        )
    assert (upper.places, upper.values) == ([1, 2, 3], [0.5, 0.25, 0.0])
    drawn = [text.strip() for text in texts]
    assert {"lr $1", "batch", "step", "one", "$2 $"} <= set(drawn)
    assert drawn.count("one") == 2, "once in each picture"
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_lines_share_a_panel_and_a_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn_texts(monkeypatch)
    curves = [Curve("ours $1", [1, 2], [7.0, 3.5]), Curve("theirs $2", [2], [6.5])]
    for name in ("a.png", "b.png"):
        write_lines(tmp_path / name, "minutes", "loss", curves)
    assert {"ours $1", "theirs $2", "minutes", "loss"} <= set(texts)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    write_lines(tmp_path / "b.png", "minutes", "loss", curves[:1])
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    with pytest.raises(UserError, match=rf"c\.png: 8 curves: a picture shows at most {MAX_LINES}"):
        write_lines(tmp_path / "c.png", "minutes", "loss", curves[:1] * 8)
    assert not (tmp_path / "c.png").exists()


def test_characters_without_a_font_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import font_manager

    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path / "a.png", rows=["银行", "plain"])
    told = capsys.readouterr().err
    assert told.startswith("no installed font has 行银: drawn as boxes; install")
    assert told.count("\n") == 1


def test_an_installed_font_is_used_for_what_matplotlibs_own_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from matplotlib import font_manager

    folder = Path(font_manager.findfont("DejaVu Sans")).parent
    symbols = str(folder / "STIXGeneral.ttf")  # stands for a font that was installed
    character = "\u1d84"  # a letter of phonetics that the first font lacks
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [symbols])
    assert pictures._font_families(f"plain {character}") == ["DejaVu Sans", "STIXGeneral"]
    assert pictures._font_families("plain") == ["DejaVu Sans"]


def test_what_cannot_be_drawn_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    check_picture("a.PNG", "--picture")
    with pytest.raises(UserError, match=r"--picture a\.jpg: must end in \.png: pictures"):
        check_picture("a.jpg", "--picture")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"--attention: pictures need matplotlib; pip install -c"):
        check_picture("a.png", "--attention")


def test_labels_are_cut_around_what_they_mark() -> None:
    assert shortened("The old [MASK].", 8, 14) == "The old [MASK]."
    far = "a" * 40 + "[MASK]" + "b" * 40
    assert shortened(far, 40, 46) == "…" + "a" * 30 + "[MASK]" + "b" * 30 + "…"
    assert shortened("a" * 61, -1, 0) == "a" * 60 + "…", "nothing is marked: the beginning"
