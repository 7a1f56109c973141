"""Micro-batches as tensors: sequences without padding equal padded ones unpadded."""

import torch

from dist_bert.model.micro_batches import from_padded, from_sequences


def test_the_encoders_input_is_that_of_padded_texts() -> None:
    sequences = [[2, 7, 8, 3], [2, 3], [2, 9, 3]]
    padded = torch.tensor([ids + [0] * (5 - len(ids)) for ids in sequences])
    expected = from_padded(padded, padded != 0, torch.zeros_like(padded))
    got = from_sequences(sequences, torch.device("cpu"))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, int):
            assert got[name] == value
        else:
            assert torch.equal(got[name], value) and got[name].dtype == value.dtype, name
