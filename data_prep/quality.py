"""Filters documents and repairs their text; everything is off by default."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from data_prep.prepare_config import TextConfig
from data_prep.readers.source import Document
from dist_bert.common.errors import UserError


def kept(
    documents: Iterable[Document], config: TextConfig, drops: Counter[str]
) -> Iterator[Document]:
    """Yields the documents that pass the filters, with repaired text if configured.

    Args:
        documents: as a reader yields them.
        config: languages, lengths (in characters, after the repair) and whether to repair.
        drops: counts skipped documents, by reason.

    Raises:
        UserError: ftfy is needed but not installed.
    """
    languages = tuple(name.strip().lower() for name in config.languages.split(",") if name.strip())
    repair = _repairer() if config.repair_unicode else None
    for document in documents:
        if languages and not _is_one_of(document.language, languages):
            drops["other_language"] += 1
            continue
        if repair:
            document = document._replace(text=repair(document.text))
        if len(document.text) < config.min_characters:
            drops["too_short"] += 1
        elif 0 < config.max_characters < len(document.text):
            drops["too_long"] += 1
        else:
            yield document


def _is_one_of(language: str, wanted: tuple[str, ...]) -> bool:
    """Whether a language is wanted: "en" matches "en", "EN", "en-US" and "en_XX"."""
    language = language.lower()
    return any(language == name or language.startswith((f"{name}-", f"{name}_")) for name in wanted)


def _repairer() -> Callable[[str], str]:
    try:
        import ftfy
    except ImportError:
        raise UserError(
            "repair_unicode: needs the package ftfy; install it: pip install ftfy"
        ) from None
    # Repairs wrongly decoded text and removes invisible characters. The other fixes of ftfy would
    # change correct text: curly quotes and ligatures are good typography, full-width forms are
    # Chinese punctuation, entities (`&lt;`) are the subject of a text on HTML, and U+2028 is a
    # line break. The tokenizer's own normalisation (NFKC) composes letters.
    config = ftfy.TextFixerConfig(
        unescape_html=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        normalization=None,
        explain=False,
    )
    return lambda text: ftfy.fix_text(text, config)
