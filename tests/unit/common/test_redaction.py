"""Which parts of a text are credentials, and which are not."""

import pickle

import pytest

from dist_bert.common.errors import NodeError
from dist_bert.common.redaction import is_secret, redacted, redacted_values
from dist_bert.data.remote import OriginError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:geheim@host:8080/a/b", "https://***@host:8080/a/b"),
        ("https://geheim@host/a", "https://***@host/a"),
        ("s3://AKIA:ge/he+im@bucket/a", "s3://***@bucket/a"),  # as the keys of S3 are
        ("s3://me:ge@he?im#@bucket/a", "s3://***@bucket/a"),
        ("https://me:12/ge@host/a@b", "https://me:12/ge@host/a@b"),  # 12 may be a port
        ("https://h/a?X-Amz-Signature=geheim&b=c/manifest.json", "https://h/a?***"),
        ("https://h/a#access_token=geheim", "https://h/a#***"),
        ("az://me@c/a?sig=g%3D: is missing", "az://***@c/a?***: is missing"),
        ("(URL('https://me:x@h/a?sig=geheim'), 403).", "(URL('https://***@h/a?***'), 403)."),
        ("s3://a:b@c/d -> s3://e:f@g/h?i", "s3://***@c/d -> s3://***@g/h?***"),
    ],
)
def test_credentials_of_urls_are_hidden(text: str, expected: str) -> None:
    assert redacted(text) == expected
    assert redacted(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a@b/c",
        "https://host: is missing, ask me@there",
        "s3://bucket/shards, s3://other",
        "me@host:a?b#c",
        "what is this?! https://host/. Who knows?",
        "tcp://10.0.0.1:29500",
    ],
)
def test_all_else_stays(text: str) -> None:
    assert redacted(text) == text


def test_values_are_redacted_wherever_they_are() -> None:
    value = {"a?b://c@": ["s3://u:p@b", {"d": "x://y?z"}], "n": 1.5, "t": ("://e@f",), "no": None}
    assert redacted_values(value) == {
        "a?b://***@": ["s3://***@b", {"d": "x://y?***"}],
        "n": 1.5,
        "t": ["://***@f"],
        "no": None,
    }


def test_names_of_secrets() -> None:
    secrets = "NCCL_AUTH MPI_PASSWD DB_PWD ds_pass FI_CREDENTIALS SLURM_JOB_COMMENT SLURM_JWT A_KEY"
    assert all(is_secret(name) for name in secrets.split())
    others = "NCCL_DEBUG SLURM_JOB_ID OMP_NUM_THREADS MASTER_ADDR GLOO_SOCKET_IFNAME CUDA_HOME"
    assert not any(is_secret(name) for name in others.split())


@pytest.mark.parametrize("kind", [NodeError, OriginError])
def test_errors_hold_no_credentials_also_on_other_ranks(kind: type[Exception]) -> None:
    error = kind("https://me:geheim@host/a: is missing")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "https://***@host/a: is missing"
