"""What all entries of a speed run have in common, and what one of them is. No torch.

A track is a JSON in configs/speedrun: text, tokenizer, samples and the loss to reach. An entry is a
recipe, a model and a DeepSpeed JSON. Not for: running them (`dist_bert.tools.speedrun.run`).
"""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_bert.common.errors import UserError
from dist_bert.common.settings import from_dict, raise_all, read_json

CLASSES = {"one_core": 1, "two_cores": 2, "one_gpu": 1, "node": 0}  # ranks; 0 = all GPUs
LEAST_SEEDS = 3
_SHARDS = "data/shards"  # how recipes name the data sets: data/shards_128


@dataclasses.dataclass(frozen=True)
class Track:
    """Text, held-out samples and target of a speed run.

    Attributes:
        name: of its file, without the suffix.
        input: globs of text files; empty = the documentation of the installed packages.
        tokenizer: flags of launch/train_tokenizer.py.
        prepare: flags of launch/prepare_shards.py besides the length.
        sequence_lengths: tokens of a sample, of each data set that a recipe may use.
        evaluation_length: of the data set whose held-out samples, masked as stored, are scored.
        validation_sha256: of those samples; empty = whatever this machine's text gives.
        target_mlm_loss: nats a masked token that the mean over the seeds must not exceed.
        recipe: of the entry that holds the record, as `model` and `deepspeed_config`.
        model: its JSON.
        deepspeed_config: its JSON, with the peak learning rate.
    """

    name: str
    input: list[str]
    tokenizer: dict[str, Any]
    prepare: dict[str, Any]
    sequence_lengths: list[int]
    evaluation_length: int
    validation_sha256: str
    target_mlm_loss: float
    recipe: str
    model: str
    deepspeed_config: str

    @classmethod
    def read(cls, path: Path) -> "Track":
        """Reads a track's JSON.

        Raises:
            UserError: a key is missing, unknown or has a wrong value.
        """
        values = {**read_json(path), "name": path.stem}
        track = from_dict(cls, values, str(path))
        problems = []
        if not all(type(n) is int for n in track.sequence_lengths):
            problems.append(f"sequence_lengths = {track.sequence_lengths}: must be integers")
        elif track.evaluation_length not in track.sequence_lengths:
            problems.append(
                f"evaluation_length = {track.evaluation_length}: must be one of sequence_lengths,"
                f" {track.sequence_lengths}"
            )
        if not track.target_mlm_loss > 0:
            problems.append(f"target_mlm_loss = {track.target_mlm_loss}: must be above 0")
        raise_all(str(path), problems)
        return track

    @property
    def data(self) -> Path:
        """Folder of its tokenizer and data sets."""
        return Path("data/speedrun") / self.name

    @property
    def held_out(self) -> Path:
        """The data set whose validation split is scored."""
        return self.data / f"shards_{self.evaluation_length}"

    def preparation(self) -> list[str]:
        """The commands that make tokenizer and data sets, without the globs of the text."""
        tokenizer = {**self.tokenizer, "output_dir": self.data / "tokenizer"}
        prepare = {
            "tokenizer": self.data / "tokenizer/tokenizer.model",
            "output_dir": self.data / "shards",
            "sequence_length": ",".join(map(str, self.sequence_lengths)),
            **self.prepare,
        }
        return [
            f"python launch/train_tokenizer.py{flags_for(tokenizer)}",
            f"mpiexec -n 2 python -m mpi4py launch/prepare_shards.py{flags_for(prepare)}",
        ]


def flags_for(values: Mapping[str, Any]) -> str:
    """Settings as flags for a shell, with a blank before each."""
    shown = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in values.items()}
    return "".join(f" --{name} {shlex.quote(value)}" for name, value in shown.items())


def with_shards_in(recipe: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe whose data sets data/shards_N are those in a folder.

    Raises:
        UserError: it names a data set otherwise, which would be other text.
    """

    def moved(place: Any) -> str:
        if not isinstance(place, str) or not place.startswith(f"{_SHARDS}_"):
            raise UserError(
                f"shards {place!r}: must be {_SHARDS}_N in a speed run, N the tokens of a sample"
            )
        return str(folder / place.removeprefix("data/"))

    phases = []
    for phase in recipe.get("phases", ()):
        given = phase.get("shards")
        shards = {moved(k): v for k, v in given.items()} if isinstance(given, dict) else given
        phases.append({**phase, "shards": shards if isinstance(given, dict) else moved(given)})
    return {**recipe, "phases": phases}
