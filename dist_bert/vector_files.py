"""Vectors of texts as files: numpy's npz, and a folder that TensorBoard's projector opens."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dist_bert import files
from dist_bert.embed import Embedded

_CONFIG_NAME, _VECTORS_NAME, _METADATA_NAME = (
    "projector_config.pbtxt",  # the name that TensorBoard looks for
    "vectors.tsv",
    "metadata.tsv",
)


def write_npz(path: str | Path, embedded: Sequence[Embedded]) -> None:
    """Writes `vectors` and `static_vectors` (B, H) in float32 and `texts` (B,) for np.load."""
    with files.whole_file(path) as file:
        np.savez(
            file,
            vectors=np.stack([item.vector for item in embedded]),
            static_vectors=np.stack([item.static_vector for item in embedded]),
            texts=np.array([item.text for item in embedded]),
        )


def write_projector(folder: str | Path, name: str, embedded: Sequence[Embedded]) -> None:
    """Writes what `tensorboard --logdir FOLDER` shows under Projector.

    Args:
        folder: made if it is missing.
        name: of the set of vectors, as TensorBoard shows it.
        embedded: the points; their labels stand beside them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ("\t".join(f"{value:.9g}" for value in item.vector) for item in embedded)
    labels = (" ".join(item.label.split()) for item in embedded)  # a tab would be a new column
    files.write_bytes(folder / _VECTORS_NAME, "".join(f"{row}\n" for row in rows).encode())
    files.write_bytes(folder / _METADATA_NAME, "".join(f"{row}\n" for row in labels).encode())
    config = (
        "embeddings {\n"
        f"  tensor_name: {json.dumps(name, ensure_ascii=False)}\n"
        f'  tensor_path: "{_VECTORS_NAME}"\n'
        f'  metadata_path: "{_METADATA_NAME}"\n'
        "}\n"
    )
    files.write_bytes(folder / _CONFIG_NAME, config.encode())
