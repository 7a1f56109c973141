"""What an embedding refuses before anything is loaded."""

import pytest

from dist_bert.common.errors import UserError
from dist_bert.inference.embed_config import EmbedConfig


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (EmbedConfig(head=3), r"--head 3: is for --attention FILE\.png"),
        (EmbedConfig(word="lamp", pooling="cls"), "--pooling cls: is for sentences"),
        (EmbedConfig(word="lamp", pooling="all"), "--pooling all: is for sentences"),
        (EmbedConfig(json="no/a.json"), r"--json no/a\.json: its folder does not exist"),
        (EmbedConfig(npz="no/a.npz"), r"--npz no/a\.npz: its folder does not exist"),
        (EmbedConfig(picture="a.svg"), r"--picture a\.svg: must end in \.png: pictures"),
    ],
)
def test_what_does_not_go_together_is_refused(config: EmbedConfig, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        config.check()


def test_attention_leaves_no_room_for_others() -> None:
    pytest.importorskip("matplotlib")
    EmbedConfig(attention="a.png", head=3).check()
    with pytest.raises(UserError, match="leave out --npz"):
        EmbedConfig(attention="a.png", npz="a.npz").check()


def test_the_defaults_go_together() -> None:
    EmbedConfig().check()
    EmbedConfig(word="lamp", json="a.json", npz="a.npz", projector="p").check()
