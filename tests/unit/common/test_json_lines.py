"""Files of lines: damaged ones are left out and told of, and later ones are dropped."""

import json
import os
from pathlib import Path

import pytest

from dist_bert.common import json_lines
from dist_bert.common.json_lines import drop_rows_after, read_rows, write_rows

GOOD = [{"step": step, "loss": step / 4} for step in range(1, 6)]
DAMAGED = (
    b"\x00" * 97,
    b'{"step": 3, "lo{"step": 3, "loss": 0.75}',  # half a line, then the next start's
    b'{"step": 3, "loss": 0.\xff5}',
    b'{"step": 3, "loss": Infinity}',
    b'{"step": 3, "loss": "low"}',
    b'{"step": "3", "loss": 0.75}',
    b'{"loss": 0.75}',
    b"[3, 0.75]",
    b"",
    b"[" * 100_000,
)


@pytest.mark.parametrize("damage", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_left_out_and_told_of(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row).encode() for row in GOOD]
    path.write_bytes(b"\n".join([*lines[:2], damage, *lines[3:], b'{"step": 6, "lo']))
    kept = [GOOD[0], GOOD[1], GOOD[3], GOOD[4]]
    assert read_rows(path, only_numbers=True) == kept
    told = f"{path}: 1 damaged lines are skipped, the first is line 3"
    assert [record.getMessage() for record in caplog.records] == [told]
    drop_rows_after(path, 4, only_numbers=True)
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == kept[:3]


def test_keys_that_a_reader_needs_are_there(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"step": 1, "text": "ü"}, {"step": 2}])
    assert read_rows(tmp_path / "rows.jsonl", ("text",)) == [{"step": 1, "text": "ü"}]
    assert read_rows(tmp_path / "none.jsonl") == []


def test_later_rows_are_cut_off_without_room_for_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a copy is written")

    path = tmp_path / "rows.jsonl"
    write_rows(path, GOOD)
    with open(path, "ab") as file:
        file.write(b'{"step": 6')
    monkeypatch.setattr(json_lines, "write_rows", refuse)
    drop_rows_after(path, 3)
    assert read_rows(path) == GOOD[:3] and path.read_bytes().endswith(b"\n")
    drop_rows_after(path, 3)
    assert read_rows(path) == GOOD[:3]
    drop_rows_after(path, 0)
    assert os.path.getsize(path) == 0
    drop_rows_after(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()
