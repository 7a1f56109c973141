"""Files of vectors, read back: numpy's, and TensorBoard's projector by its own code."""

from pathlib import Path

import numpy as np
import pytest

from dist_bert.inference.embed import Embedded, write_npz, write_projector

ITEMS = [
    Embedded(
        text=f"text\t{number}",
        label=f"a «text»\t{number}",
        tokens=["a", "b"],
        vector=np.array([number / 3, -1e-7, 5.0], np.float32),
        static_vector=np.array([1.0, 2.0, number], np.float32),
    )
    for number in range(4)
]


def test_npz_gives_back_the_vectors(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", ITEMS)
    with np.load(tmp_path / "a.npz") as found:
        assert found["vectors"].dtype == np.float32
        np.testing.assert_array_equal(found["vectors"], [item.vector for item in ITEMS])
        np.testing.assert_array_equal(found["static_vectors"], [i.static_vector for i in ITEMS])
        assert found["texts"].tolist() == [item.text for item in ITEMS]
    write_npz(tmp_path / "b.npz", ITEMS)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_tensorboards_projector_finds_vectors_and_labels(tmp_path: Path) -> None:
    projector = pytest.importorskip("tensorboard.plugins.projector.projector_plugin")
    text_format = pytest.importorskip("google.protobuf.text_format")
    write_projector(tmp_path / "p", 'the "word", layer 2 of 3', ITEMS)
    config = projector.ProjectorConfig()
    text_format.Parse((tmp_path / "p/projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    assert embedding.tensor_name == 'the "word", layer 2 of 3'
    vectors = projector._read_tensor_tsv_file(str(tmp_path / "p" / embedding.tensor_path))
    np.testing.assert_array_equal(np.asarray(vectors, np.float32), [item.vector for item in ITEMS])
    labels = (tmp_path / "p" / embedding.metadata_path).read_text().splitlines()
    assert labels == [f"a «text» {number}" for number in range(4)]
