"""The files of a checkpoint: named fragments of tensors, in one safetensors file for every rank.

    step-000001000/fragments-00000.safetensors    "exp_avg/encoder.layers.0.qkv.weight/589824", ...
                   fragments-00001.safetensors
                   state.json                     position, identity, and what the files hold, with
                                                  sums of the files and of itself

A fragment is a run of the elements of a flattened tensor, named by what it is, the parameter, and
its first element. Which rank wrote it does not matter: any run of elements is put together from
whatever fragments hold it. Needs no DeepSpeed.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dist_bert.checkpoint.run_dir import STATE_NAME, require_average, step_of
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.common.settings import read_json

# What a fragment is, besides the names of the optimizer's state.
WEIGHT, AVERAGE = "weight", "average"
_SUM = "fingerprint"  # of all other contents of a state.json


@dataclasses.dataclass(frozen=True)
class Fragment:
    """A run of the elements of one flattened parameter."""

    name: str  # of the parameter
    start: int  # first element
    tensors: dict[str, Tensor]  # what -> (size,) float32; `WEIGHT`, and what else is kept of it

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.tensors[WEIGHT].numel()


@dataclasses.dataclass(frozen=True)
class FragmentFile:
    """One file of a checkpoint, as `state.json` describes it."""

    file: str
    bytes: int
    sha256: str
    fragments: list[tuple[str, int, int]]  # name, first element, number of elements

    @classmethod
    def write(cls, folder: Path, rank: int, fragments: Iterable[Fragment]) -> "FragmentFile":
        """Writes the fragments of one rank, to last. Leaves the interpreter to other threads.

        Args:
            folder: of the checkpoint.
            rank: that writes.
            fragments: on the CPU, each tensor in memory of its own: safetensors takes no views.

        Raises:
            UserError: the file cannot be written.
        """
        path = folder / f"fragments-{rank:05d}.safetensors"
        tensors, listed = {}, []
        for fragment in fragments:
            listed.append((fragment.name, fragment.start, fragment.size))
            for what, tensor in fragment.tensors.items():
                tensors[_key(what, fragment.name, fragment.start)] = tensor
        try:
            save_file(tensors, path)
            files.allow_as_usual(path)
            files.fsync(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be written ({error})") from None
        return cls(path.name, path.stat().st_size, files.sha256_of_file(path), listed)

    def problem(self, folder: Path) -> str:
        """What is wrong with the file on disk; empty if nothing is."""
        path = folder / self.file
        if not path.exists():
            return f"{self.file} is missing"
        if path.stat().st_size != self.bytes:
            return f"{self.file} has {path.stat().st_size} bytes, was written with {self.bytes}"
        if files.sha256_of_file(path) != self.sha256:
            return f"{self.file} has changed since it was written (sha256)"
        return ""


class CheckpointReader:
    """A checkpoint on disk; tensors come out in any cut."""

    def __init__(self, folder: Path) -> None:
        """Reads what the checkpoint holds.

        Raises:
            UserError: there is no readable `state.json`, it is not what was written there, or it
                has another format.
        """
        self.folder = folder
        self.contents: dict[str, Any] = read_json(folder / STATE_NAME)
        if not self.contents.keys() >= {_SUM, "files"}:
            raise UserError(f"{folder}: was written by another version of this program")
        if self.contents.pop(_SUM) != files.fingerprint(self.contents):
            raise UserError(f"{folder / STATE_NAME} has changed since it was written (fingerprint)")
        step = self.contents["state"]["step"]
        if step != step_of(folder):
            raise UserError(f"{folder / STATE_NAME} is that of step {step:,}")
        self.files = [FragmentFile(**value) for value in self.contents["files"]]
        self._fragments: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for file in self.files:
            for name, start, size in file.fragments:
                self._fragments[name].append((start, size, file.file))
        self._open: dict[str, Any] = {}

    def read(self, what: str, name: str, start: int, size: int) -> Tensor:
        """Some elements of a flattened tensor, (size,) float32.

        Args:
            what: `WEIGHT`, `AVERAGE` or a name of the optimizer's state.
            name: of the parameter.
            start: first element.
            size: number of elements.
        """
        values = torch.empty(size)
        num_found = 0
        for first, count, file in self._fragments[name]:
            begin, end = max(first, start), min(first + count, start + size)
            if begin < end:
                part = self._file(file).get_slice(_key(what, name, first))
                values[begin - start : end - start] = part[begin - first : end - first]
                num_found += end - begin
        assert num_found == size, f"{self.folder}: {what} of {name}: {num_found} of {size} elements"
        return values

    def weights(self, is_average: bool = False) -> dict[str, Tensor]:
        """All weights in float32 and in their shapes, by the parameters' names.

        Args:
            is_average: their average over the steps instead.

        Raises:
            UserError: a file is not what was written, or there is no average.
        """
        if is_average:
            require_average(self.folder)
        for file in self.files:
            if problem := file.problem(self.folder):
                raise UserError(f"{self.folder}: is damaged ({problem}); give another checkpoint")
        shapes: dict[str, list[int]] = self.contents["shapes"]
        what = AVERAGE if is_average else WEIGHT
        return {
            name: self.read(what, name, 0, torch.Size(shape).numel()).view(shape)
            for name, shape in shapes.items()
        }

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, framework="pt")
        return self._open[name]


def write_state(folder: Path, contents: dict[str, Any]) -> None:
    """Writes `state.json`, with a sum of itself."""
    summed = {**contents, _SUM: files.fingerprint(contents)}
    files.write_json(folder / STATE_NAME, summed, indent=None)


def export_weights(checkpoint: Path, path: Path, is_average: bool = False) -> None:
    """Writes a checkpoint's weights, or their average, whole and in float32, as one file."""
    weights = CheckpointReader(checkpoint).weights(is_average)
    with files.whole_path(path) as temporary:
        save_file(weights, temporary)
        files.allow_as_usual(temporary)


def _key(what: str, name: str, start: int) -> str:
    return f"{what}/{name}/{start}"
