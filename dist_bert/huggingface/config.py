"""The settings of an export and of an import. Not for: what they do with them."""

import dataclasses

from dist_bert.common.errors import UserError
from dist_bert.common.settings import setting


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """How a run is exported."""

    best: bool = setting(
        False,
        "export the checkpoint of the lowest validation loss, not the latest (of a fine-tuned run"
        " there is only the best)",
    )
    average: bool = setting(
        False, "export the average of the weights, of a pretrained run with average_decay"
    )
    sample_text: str | None = setting(
        None,
        "texts, one a line, whose token ids are compared (default: those of the run's shards; of a"
        " fine-tuned run, besides its examples)",
        metavar="FILE",
    )
    allow_differences: bool = setting(
        False, "export although some texts have other token ids in transformers"
    )
    onnx: bool = setting(False, "write model.onnx too, which runs without PyTorch")
    sentence_transformers: str | None = setting(
        None,
        "write the files of sentence-transformers too: a text's vector is the mean of all tokens"
        " with [CLS] and [SEP] (--pooling all of launch/embed.py), or that of [CLS]",
        ("mean", "cls"),
    )
    normalize: bool = setting(False, "with sentence_transformers: vectors have length 1")

    def check(self, is_finetuned: bool) -> None:
        """Refuses what does not go together.

        Raises:
            UserError: names the flags.
        """
        if self.normalize and self.sentence_transformers is None:
            raise UserError("--normalize true: is for --sentence_transformers; give that, too")
        if is_finetuned and self.sentence_transformers is not None:
            raise UserError(
                f"--sentence_transformers {self.sentence_transformers}: is for pretrained runs; a"
                " fine-tuned run answers its task and gives no vectors"
            )


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """How a published model is imported."""

    sample_text: str | None = setting(
        None,
        "texts, one a line, whose token ids are compared, too (always: odd texts, and lines in"
        " which every piece of the vocabulary stands once)",
        metavar="FILE",
    )
    allow_differences: bool = setting(
        False, "import although some texts have other token ids in transformers"
    )
