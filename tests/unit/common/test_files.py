"""Files appear whole or not at all; hashes name contents."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from dist_bert.common import files


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with files.whole_file(path) as file:
        file.write(b"first ")
        file.flush()
        assert not path.exists()
        file.write(b"second")
    assert path.read_bytes() == b"first second"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), files.whole_file(tmp_path / "a.bin") as file:
        file.write(b"half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"former")
    with pytest.raises(ValueError), files.whole_file(path) as file:
        file.write(b"half")
        raise ValueError
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_in_one_go(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"former")
    with open(path, "rb") as reader:
        with files.whole_file(path) as file:
            file.write(b"new")
            file.flush()
            assert path.read_bytes() == b"former"
        assert path.read_bytes() == b"new"
        assert reader.read() == b"former", "who has it open keeps the former one"


def test_bytes_are_on_disk_before_the_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    seen = []

    def fsync(descriptor: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        size = target.stat().st_size if target.is_file() else None
        seen.append((target.is_dir(), size, path.exists()))

    monkeypatch.setattr("dist_bert.common.files.os.fsync", fsync)
    files.write_bytes(path, b"seven b")
    assert seen == [(False, 7, False), (True, None, True)]


def test_two_processes_do_not_share_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    with files.whole_file(path) as first:
        first.write(b"first")
        monkeypatch.setattr("dist_bert.common.files.os.getpid", lambda: -1)
        files.write_bytes(path, b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": {"text": "Straße 北京"}}
    for name in ("one", "two"):
        files.write_json(tmp_path / name, value)
    written = (tmp_path / "one").read_bytes()
    assert written == (tmp_path / "two").read_bytes()
    assert json.loads(written) == value
    assert "Straße 北京".encode() in written and written.endswith(b"}\n")
    files.write_json(tmp_path / "three", value, indent=None)
    assert (tmp_path / "three").read_bytes().count(b"\n") == 1


def test_a_json_line_is_one_line_for_everybody() -> None:
    value = {"é\x85": ["a\u2028b\u2029c\n", "\x0b\x0c\x1c\x1d\x1e", 1.5, None]}
    line = files.json_line(value)
    assert line.startswith('{"é\\u0085": ["a\\u2028b\\u2029c\\n", ')
    assert line.splitlines() == [line.rstrip("\n")] and json.loads(line) == value


def test_sha256_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(256)) * 4_099)
    assert files.sha256_of_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    value = {"seed": 3, "inner": {"a": [1, 2], "b": None}, "text": "ß"}
    same = {"text": "ß", "inner": {"b": None, "a": [1, 2]}, "seed": 3}
    assert files.fingerprint(value) == files.fingerprint(same)
    others = [
        {**value, "seed": 4},
        {**value, "seed": "3"},
        {**value, "inner": {"a": [2, 1], "b": None}},
        {**value, "inner": {"a": [1, 2]}},
        {**value, "text": "ss"},
    ]
    assert len({files.fingerprint(v) for v in (value, *others)}) == 6


def test_the_fingerprint_is_frozen() -> None:
    # It is stored in manifests and compared with those of later versions of this program.
    canonical = '{"a":[1,2.5,null],"ß":true}'.encode()
    assert files.fingerprint({"ß": True, "a": [1, 2.5, None]}) == (
        hashlib.sha256(canonical).hexdigest()
    )


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    for path in (tmp_path / "missing" / "x.json", tmp_path / "a_file" / "x.json"):
        with pytest.raises(OSError) as caught:
            files.write_json(path, {})
        assert caught.value.filename == str(path)
