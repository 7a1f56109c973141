"""Divides the inputs into units of work: parts of files, cut between two documents."""

from collections.abc import Sequence

from data_prep.inputs import InputPart
from data_prep.readers import AUTO, borders, detect_layout
from data_prep.readers.detect import is_sentences

_MIN_UNIT_BYTES, _MAX_UNIT_BYTES = 256 << 10, 4 << 20  # small files are combined to about this size
_EVEN_UNITS = 32  # target in a small corpus, so that the ranks finish together
_MAX_UNITS = 8_192  # a rank maps five files per unit, and Linux lets a process map 65,530
_MIN_LIST_BYTES = 64 << 10  # a larger list of sentences is not one document
_MOST_LOOKED_AT = 8  # files
_LARGE_FILE = 2.0  # times a unit: smaller files are not worth cutting


def plan_units(inputs: Sequence[InputPart], layout: str) -> list[list[InputPart]]:
    """Cuts the inputs, in their order, into units: a part of a large file, or several small files.

    Args:
        inputs: whole files.
        layout: of all of them; may be "auto".

    Raises:
        UserError: a large file cannot be read.
    """
    unit_bytes = _unit_bytes(inputs)
    units: list[list[InputPart]] = []
    room = 0  # bytes left in the unit
    for part in cut_large_files(inputs, layout):
        if room <= 0:
            units.append([])
            room = unit_bytes
        units[-1].append(part)
        room -= part.bytes
    return units


def sentence_lists(inputs: Sequence[InputPart], layout: str) -> list[str]:
    """Paths of large inputs that are read as one document but look like one sentence per line.

    Args:
        inputs: whole files; the first few are examined.
        layout: of all of them; only files that "auto" detects as text are meant.
    """
    if layout != AUTO:
        return []
    large = [f.path for f in inputs if f.bytes >= _MIN_LIST_BYTES or len(inputs) == 1]
    texts = (path for path in large[:_MOST_LOOKED_AT] if detect_layout(path) == "text")
    return [path for path in texts if is_sentences(path)]


def cut_large_files(inputs: Sequence[InputPart], layout: str) -> list[InputPart]:
    """Cuts inputs that are much larger than a unit into parts, if their format allows it."""
    unit_bytes = _unit_bytes(inputs)
    parts = []
    for file in inputs:
        if file.bytes > _LARGE_FILE * unit_bytes:
            known = detect_layout(file.path) if layout == AUTO else layout
            parts += borders.cut(file, known, unit_bytes)
        else:
            parts.append(file)
    return parts


def _unit_bytes(inputs: Sequence[InputPart]) -> int:
    num_bytes = sum(file.bytes for file in inputs)
    even = min(max(num_bytes // _EVEN_UNITS, _MIN_UNIT_BYTES), _MAX_UNIT_BYTES)
    return max(even, num_bytes // _MAX_UNITS)
