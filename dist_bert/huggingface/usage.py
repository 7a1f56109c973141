"""Functions shown in model cards, where transformers has no pipeline, or one that differs.

Each is self-contained, because cards contain its source; the export calls it and reports how often
its answers equal the run's. Not for: our own models (`dist_bert.finetuning.predict`).
"""

from typing import Any


def tag_words(words: list[str], model: Any, tokenizer: Any) -> list[str]:
    """The tag of each word: that of its first piece, in the likeliest valid sequence."""
    import re

    import numpy as np
    import torch

    ids, places = [tokenizer.cls_token_id], []
    cjk = r"[\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # without spaces
    for before, word in zip(["", *words], words, strict=False):
        is_spaced = not (re.match(cjk, before[-1:]) and re.match(cjk, word))
        # After a mask, no space is added; one that is there changes nothing but byte-level BPE.
        text = " " * bool(before) + word if is_spaced else tokenizer.mask_token + word
        pieces = tokenizer(text, add_special_tokens=False)["input_ids"][0 if is_spaced else 1 :]
        if len(ids) + max(1, len(pieces)) >= tokenizer.model_max_length:
            break
        places.append(len(ids))
        ids += pieces or [tokenizer.unk_token_id]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*ids, tokenizer.sep_token_id]])).logits[0]
    steps = logits.double().log_softmax(1).numpy()[places]
    tags = [model.config.id2label[i] for i in range(model.config.num_labels)]
    may_follow = np.array([[t[:2] != "I-" or t[2:] == b[2:] for t in tags] for b in tags])
    paths = np.where([t[:2] != "I-" for t in tags], 0.0, -np.inf)
    origins: list[Any] = []  # for each word's tags: the best previous tag
    for step in steps:
        best = np.where(may_follow, paths[:, None], -np.inf) if origins else paths[None]
        origins.append(best.argmax(0))
        paths = best.max(0) + step
    found = [int(paths.argmax())]
    for origin in origins[:0:-1]:
        found.append(int(origin[found[-1]]))
    told = [tags[i] for i in reversed(found)][: len(places)]
    return told + ["O"] * (len(words) - len(told))  # words after the longest input


def find_answer(
    question: str,
    context: str,
    model: Any,
    tokenizer: Any,
    doc_stride: int,
    max_question_tokens: int,
    max_answer_tokens: int,
    null_score_threshold: float | None,  # margin for no answer; None = always answer
) -> str:
    """The answer as spelled in the context; empty if the model finds none."""
    import numpy as np
    import torch

    asked = tokenizer(question, add_special_tokens=False)["input_ids"][:max_question_tokens]
    read = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    known = tokenizer.model_input_names  # without segments where the model has none
    prefix = [tokenizer.cls_token_id, *asked, tokenizer.sep_token_id]
    room = tokenizer.model_max_length - len(prefix) - 1
    stride, length = min(room, doc_stride), len(read["input_ids"])
    begins = np.arange(0, max(1, length - room + stride), stride)
    ends = np.minimum(begins + room, length)
    tokens = np.arange(length)
    # Each answer is searched in the window with the most context around its first token.
    around = np.minimum(tokens - begins[:, None], ends[:, None] - 1 - tokens) * 100
    window_of_token = (around + (ends - begins)[:, None]).argmax(0)
    stretches = [
        (begin + len(context[begin:end]) - len(context[begin:end].lstrip()), end)
        for begin, end in read["offset_mapping"]
    ]
    is_blank = np.array([begin >= end for begin, end in stretches], bool)
    best_score, best, null_score = -np.inf, "", np.inf
    for window, (first, last) in enumerate(zip(begins, ends, strict=True)):
        ids = [*prefix, *read["input_ids"][first:last], tokenizer.sep_token_id]
        segments = [0] * len(prefix) + [1] * (len(ids) - len(prefix))
        given = {"input_ids": torch.tensor([ids]), "token_type_ids": torch.tensor([segments])}
        with torch.no_grad():
            out = model(**{name: given[name] for name in given if name in known})
        if "start_logits" in out:  # AutoModelForQuestionAnswering
            start, end = out.start_logits[0].double(), out.end_logits[0].double()
            null = start[0] + end[0]
            start, end = start[len(prefix) : -1], end[len(prefix) : -1]
            single = start + end
        else:  # AutoModelForTokenClassification of OTHER, START and END
            p = out.logits[0, len(prefix) : -1].double().softmax(1)
            start, end = p[:, 1].log(), p[:, 2].log()
            single = start + (p[:, 1] - p[:, 2]).sum().clamp(2.3e-308, 1.0).log()
            null = torch.log1p(-p[:, 1]).sum() + torch.log1p(-p[:, 2]).sum()
        null_score = min(null_score, float(null))
        size = np.arange(last - first)
        spans = (start[:, None] + end).numpy()
        spans[size, size] = single.numpy()
        tokens_between = size - size[:, None]
        spans[(tokens_between < 0) | (tokens_between >= max_answer_tokens)] = -np.inf
        spans[window_of_token[first:last] != window] = -np.inf
        spans[is_blank[first:last]] = -np.inf
        spans[:, is_blank[first:last]] = -np.inf
        if spans.size and spans.max() > best_score:
            best_score = spans.max()
            i, j = np.unravel_index(spans.argmax(), spans.shape)
            best = context[stretches[first + i][0] : stretches[first + j][1]]
    if null_score_threshold is not None and null_score - best_score > null_score_threshold:
        return ""
    return best
