"""What an embedding is asked for: the settings of `launch/embed.py`; torch is not imported."""

import dataclasses

from dist_bert.common.cli import check_output_file
from dist_bert.common.errors import UserError
from dist_bert.common.settings import setting


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """Which vectors of which layer, and where they are written or drawn."""

    word: str | None = setting(None, "embed this word, which every sentence must have")
    pooling: str = setting(
        "mean",
        "a sentence is the mean of its tokens, of all with [CLS] and [SEP], or the vector of [CLS]",
        ("mean", "all", "cls"),
    )
    layer: int = setting(-1, "0 = embeddings, 1 = first; negative from the end")
    json: str | None = setting(None, "write vectors and similarities here", metavar="FILE")
    npz: str | None = setting(None, "write the vectors here, for numpy", metavar="FILE")
    projector: str | None = setting(None, "write the vectors for TensorBoard", metavar="DIR")
    picture: str | None = setting(None, "draw the similarities", metavar="FILE.png")
    attention: str | None = setting(
        None, "draw who attends to whom in one sentence", metavar="FILE.png"
    )
    head: int | None = setting(None, "of --attention, from 1 (default: mean of all)")

    def check(self) -> None:
        """Refuses what does not go together, and files that cannot be written or drawn.

        Raises:
            UserError: names the flags.
        """
        for flag, path in (("--picture", self.picture), ("--attention", self.attention)):
            if path:
                from dist_bert.common.pictures import check_picture  # imports numpy

                check_picture(path, flag)
        for name in ("json", "npz", "picture", "attention"):
            check_output_file(getattr(self, name), f"--{name}")
        if self.head is not None and not self.attention:
            raise UserError(f"--head {self.head}: is for --attention FILE.png")
        if self.word is not None and self.pooling != "mean":
            raise UserError(
                f"--pooling {self.pooling}: is for sentences; a --word is the mean of its pieces"
            )
        names = ("word", "json", "npz", "projector", "picture")
        others = [name for name in names if getattr(self, name)]
        if self.attention and others:
            raise UserError(f"--attention: draws one sentence and no more; leave out --{others[0]}")
