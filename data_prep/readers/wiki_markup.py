r"""Converts wiki markup to plain text, with one paragraph, heading or list item per line.

    markup -cut--> without notes and tables -mwparserfromhell--> tree -render--> lines -join--> text

Tables, galleries, formulas and templates are removed, as in WikiExtractor and gensim; templates
whose arguments are words of the surrounding sentence are kept. Lists are kept. Not for: dumps
(`data_prep.readers.mediawiki`).
"""

import dataclasses
import gc
import html
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Elements without prose: notes, formulas, pictures, source code, code of pages.
_CUT_TAGS = (
    "ref|references|math|chem|ce|gallery|timeline|score|graph|imagemap|templatedata|templatestyles"
    "|section|inputbox|categorytree|hiero|syntaxhighlight|source|includeonly|mapframe|maplink"
    "|indicator"
)
# Matched from left to right, so that nothing inside an element is taken for the beginning of
# another; `raw` is kept. An element ends before the next one of its name: if its end is missing, it
# would otherwise extend to the end of another and remove the text between them.
_CUT = re.compile(
    r"(?P<raw><(nowiki|pre)\b[^<>]*(?<!/)>.*?</\2\s*>)"
    r"|^[ \t]*(?>(?:<!--.*?-->[ \t]*)+)\n"  # with its line, which would otherwise end a paragraph
    r"|<!--.*?-->"
    rf"|<(?P<name>{_CUT_TAGS})\b"
    r"(?:[^<>]*/>|[^<>]*>[^<]*+(?:<(?!/?(?P=name)\b)[^<]*+)*+</(?P=name)\s*>)",
    re.DOTALL | re.IGNORECASE | re.MULTILINE,
)
_TABLE_BEGIN = re.compile(r"[ \t:*]*\{\|")
_TABLE_END = re.compile(r"[ \t]*\|\}(?!\})(.*)")

# -{zh-hans:...; zh-hant:...}- has a word in several scripts, -{...}- a word to keep unchanged.
_SCRIPT = r"[a-z]{2,3}(?:-\w+)?"
_VARIANTS = re.compile(rf"-\{{(?:([A-Z;-]+|{_SCRIPT}(?:;{_SCRIPT})*)\|)?([^{{}}]*)\}}-")
_VARIANT = re.compile(rf"(?:^|;)\s*{_SCRIPT}\s*:(.*?)(?=;\s*{_SCRIPT}\s*:|;?\s*$)", re.DOTALL)
_HIDING_FLAGS = frozenset("HTD-")

_INTERLANGUAGE = re.compile(r"(?:[a-z]{2,3}(?:-[a-z]+)*|simple)\s*:")
_FILE_NAME = re.compile(
    r"[^:]+:.*\.(?:jpe?g|png|svg|gif|tiff?|webp|og[agv]|webm|djvu|pdf)\s*$", re.I
)

# Temporary marks in the text, of characters that XML cannot contain: for a line that begins with a
# list item or a heading, and for removed elements.
_ITEM, _HEADING, _GAP = "\x01", "\x02", "\x03"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
# Characters from an entity or <nowiki> look like markup but are text.
_AS_LITERAL = {ord(mark): chr(0x0E + i) for i, mark in enumerate("'<>[]{}|_")}
_FROM_LITERAL = {ord(literal): mark for mark, literal in _AS_LITERAL.items()}
_NO_PROSE_TAGS = frozenset({"table", *_CUT_TAGS.split("|")})
_LINE_TAGS = frozenset({"br", "li", "dt", "dd", "tr", "caption"})
_BLOCK_TAGS = frozenset(
    {"p", "div", "center", "blockquote", "poem", "pre", "hr", "ul", "ol", "dl"}
    | {"h1", "h2", "h3", "h4", "h5", "h6"}
)

# Remains of wrong markup: ends of elements without their beginnings.
_LEFT_OVER = re.compile(
    rf"</?(?:{_CUT_TAGS}|{'|'.join(_BLOCK_TAGS | _LINE_TAGS)}|table|t[dh]|nowiki|noinclude"
    r"|onlyinclude|span|font|small|big|su[bp]|tt|code|em|strong|cite|abbr|[bius])\b[^<>]*>"
    r"|<!--|-->",
    re.IGNORECASE,
)
_SWITCH = re.compile(r"__[^\W\d_a-z]+__")  # __TOC__; names of Python methods are lower case
_QUOTES = re.compile("'{2,}")
_GAPS = (
    (re.compile(rf"[(（][\s,;:、，；：/–{_GAP}-]*{_GAP}[\s,;:、，；：/–{_GAP}-]*[)）]"), _GAP),
    (re.compile(rf"((?:^|[(（])\s*){_GAP}[\s.,;:、，；：{_GAP}]*"), r"\1"),
    (re.compile(rf"[,;、，；]\s*{_GAP}[\s{_GAP}]*(?=[,;.)、，；。）])"), ""),
    (re.compile(rf"\s*{_GAP}[\s{_GAP}]*(?=[,;.)])"), ""),
    (re.compile(_GAP), ""),
)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split(","))


# Templates replaced by an argument, which is part of the surrounding sentence.
_WORDS_FIRST = _names(
    "abbr,angbr,as written,big,bigger,blockquote,bquote,bracket,circa,columns-list,cquote,em,flag,"
    "flagcountry,hover,ill,large,larger,linktext,midsize,nihongo,no italic,nobold,nobr,noitalic,"
    "not a typo,nowrap,poemquote,quotation,quote,railgauge,sc,sic,small,smallcaps,smaller,strong,"
    "tooltip,val,vanchor,visible anchor,vr"
)
_WORDS_LAST = _names("lang,rtl-lang,script,transl,transliteration")
_MARKS = {
    "!": "|",
    "'": "'",
    "'s": "'s",
    "=": "=",
    "mdash": "—",
    "mdashb": " — ",
    "nbsp": " ",
    "ndash": "–",
    "snd": " – ",
    "sp": " ",
    "spaced ndash": " – ",
    "spaces": " ",
    "thinsp": " ",
}
_RANGES = {  # between the two numbers of {{convert|1|to|2|km}}
    "-": "–",
    "–": "–",
    "to": " to ",
    "to(-)": " to ",
    "and": " and ",
    "and(-)": " and ",
    "or": " or ",
    "by": " by ",
    "x": " × ",
    "+/-": " ± ",
}


class MarkupError(Exception):
    """A page that cannot be parsed."""


@dataclasses.dataclass(frozen=True)
class Site:
    """Properties that differ between wikis."""

    language: str = ""  # code, empty = unknown
    # In lower case: a link to such a page shows a picture or nothing.
    hidden_prefixes: frozenset[str] = frozenset(
        {"file", "image", "category", "文件", "檔案", "图像", "圖像", "分类", "分類"}
    )


def load_parser() -> Callable[..., Any]:
    """The function that parses markup.

    Raises:
        ModuleNotFoundError: mwparserfromhell is not installed.
    """
    import mwparserfromhell

    return mwparserfromhell.parse


def plain_text(markup: str, site: Site, parse: Callable[..., Any]) -> str:
    """The prose of a page, with blank lines between paragraphs, headings and list items.

    Args:
        markup: of the page.
        site: source of the page.
        parse: from `load_parser`.

    Raises:
        MarkupError: mwparserfromhell cannot parse the page.
    """
    markup = _without_tables(_CUT.sub(_kept_of_cut, markup))
    if "-{" in markup:
        markup = _VARIANTS.sub(_first_variant, markup)
    try:
        text = _render(_parsed(markup, parse), site)
    except RecursionError as error:
        raise MarkupError(str(error)) from None
    return "\n\n".join(_without_empty_sections(_paragraphs(text)))


def _kept_of_cut(found: re.Match[str]) -> str:
    return found["raw"] or (_GAP if found["name"] else "")  # comments leave no gap


def _parsed(markup: str, parse: Callable[..., Any]) -> Any:
    was_enabled = gc.isenabled()
    gc.disable()  # 1.5 times as fast: the tree is many small objects without cycles
    try:
        return parse(markup, skip_style_tags=True)  # '' and ''' are handled per line
    except RecursionError:
        raise
    except Exception as error:  # any error of third-party code is due to the page
        raise MarkupError(f"{type(error).__name__}: {error}") from None
    finally:
        if was_enabled:
            gc.enable()


def _without_tables(markup: str) -> str:
    """Markup without tables; their marks only count at the start of a line."""
    if "{|" not in markup:
        return markup
    kept: list[str] = []
    table: list[str] = []  # the lines of an open table
    depth = 0
    for line in markup.split("\n"):
        depth += bool(_TABLE_BEGIN.match(line))
        (table if depth else kept).append(line)
        if depth and (end := _TABLE_END.match(line)):
            depth -= 1
            if not depth:
                table = []
                kept += ["", end[1].strip()]
    # A table that never ends would remove the rest of the page.
    kept += [line for line in table if not re.match(r"[ \t:*]*(?:\{\||[|!])", line)]
    return "\n".join(kept)


def _first_variant(found: re.Match[str]) -> str:
    flags, body = found.groups()
    if flags and flags[0].isupper() and _HIDING_FLAGS & set(flags):
        return ""
    values = [value.strip() for value in _VARIANT.findall(body)]
    return next(filter(None, values), "") if values else body


def _render(code: Any, site: Site) -> str:
    """Text of a tree, with `_ITEM` and `_HEADING` before what starts a separate line."""
    return "".join(_RENDERERS[type(node).__name__](node, site) for node in code.nodes)


def _nothing(node: Any, site: Site) -> str:
    return ""


def _text(node: Any, site: Site) -> str:
    text: str = node.value
    return text


def _entity(node: Any, site: Site) -> str:
    return _literal(str(node))


def _literal(markup: str) -> str:
    return _CONTROL.sub("", html.unescape(markup)).translate(_AS_LITERAL)


def _heading(node: Any, site: Site) -> str:
    return f"\n{_HEADING}{node.level}{_render(node.title, site)}\n"


def _argument(node: Any, site: Site) -> str:
    return "" if node.default is None else _render(node.default, site)


def _external_link(node: Any, site: Site) -> str:
    if not node.brackets:
        return str(node.url)
    return "" if node.title is None else _render(node.title, site)


def _link(node: Any, site: Site) -> str:
    title = str(node.title).strip()
    prefix, colon, _ = title.partition(":")
    if colon and (
        prefix.strip().lower() in site.hidden_prefixes
        or _INTERLANGUAGE.match(title)
        or _FILE_NAME.match(title)
    ):
        return ""
    shown = "" if node.text is None else _render(node.text, site)
    return shown or _render(node.title, site).strip().removeprefix(":")


def _tag(node: Any, site: Site) -> str:
    name = str(node.tag).strip().lower()
    if node.wiki_markup and name in _LINE_TAGS:
        return f"\n{_ITEM}"
    if name in _NO_PROSE_TAGS:
        return "\n\n" if name == "table" else _GAP
    if node.self_closing or node.contents is None:
        shown = ""
    elif name in ("nowiki", "pre"):
        shown = _literal(str(node.contents))
    else:
        shown = _render(node.contents, site)
    if name in _LINE_TAGS:
        return f"\n{_ITEM}{shown}"
    if name in ("pre", "poem"):
        shown = shown.replace("\n", f"\n{_ITEM}")
    return f"\n\n{shown}\n\n" if name in _BLOCK_TAGS else shown


def _template(node: Any, site: Site) -> str:
    name = " ".join(str(node.name).replace("_", " ").split()).lower()
    if name in _MARKS:
        return _MARKS[name]
    arguments = {str(p.name).strip(): p.value for p in node.params}

    def shown(key: str | int) -> str:
        key = str(key)
        return _render(arguments[key], site).strip() if key in arguments else ""

    num_words = sum(key.isdigit() for key in arguments)
    if name in _WORDS_FIRST:
        return shown(1) or shown("text") or shown("quote")
    if name in _WORDS_LAST:
        return shown(num_words)
    if name.startswith("lang-"):
        return shown(1) or shown("text")
    if name in ("convert", "cvt"):
        between = _RANGES.get(shown(2))
        return f"{shown(1)}{between}{shown(3)} {shown(4)}" if between else f"{shown(1)} {shown(2)}"
    if name == "as of":
        return f"{'as' if 'lc' in arguments else 'As'} of {shown(1)}"
    if name in ("frac", "sfrac"):
        return "/".join(map(shown, range(1, num_words + 1))) if num_words > 1 else f"1/{shown(1)}"
    return "".join(map(shown, range(1, num_words + 1))) if name == "chem" else _GAP


_RENDERERS: dict[str, Callable[[Any, Site], str]] = {
    "Argument": _argument,
    "Comment": _nothing,
    "ExternalLink": _external_link,
    "HTMLEntity": _entity,
    "Heading": _heading,
    "Tag": _tag,
    "Template": _template,
    "Text": _text,
    "Wikilink": _link,
}


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Level of the heading, 0 for text, and the line; wrapped lines are joined."""
    paragraph: list[str] = []
    for line in text.split("\n"):
        mark = line[:1]
        stands_alone = mark in (_ITEM, _HEADING, " ")  # a space begins preformatted text
        cleaned = _clean_line(line[2:] if mark == _HEADING else line.lstrip(_ITEM))
        if paragraph and (stands_alone or not cleaned):
            yield 0, " ".join(paragraph)
            paragraph = []
        if not cleaned:
            continue
        if stands_alone:
            yield int(line[1]) if mark == _HEADING else 0, cleaned
        else:
            paragraph.append(cleaned)
    if paragraph:
        yield 0, " ".join(paragraph)


def _clean_line(line: str) -> str:
    """A rendered line without remains of markup and the gaps of removed elements."""
    line = " ".join(line.split()).removeprefix("|}")
    if line.startswith(("|", "{|")):
        return ""  # of a table without its start or end
    if "''" in line:
        line = _without_quotes(line)
    if "<" in line or "__" in line:
        line = _SWITCH.sub("", _LEFT_OVER.sub("", line))
    for opening, closing in ("[]", "{}"):
        if line.count(opening) != line.count(closing):
            line = line.replace(opening * 2, "").replace(closing * 2, "")
    if _GAP in line:
        for pattern, replacement in _GAPS:
            line = pattern.sub(replacement, line)
    return " ".join(line.split()).translate(_FROM_LITERAL)


def _without_quotes(line: str) -> str:
    """A line without the marks of italics (2), bold (3) or both (5), as MediaWiki's `doQuotes`."""
    lengths = [len(run) for run in _QUOTES.findall(line)]
    num_bold = sum(length >= 3 for length in lengths)
    num_italic = sum(length == 2 or length >= 5 for length in lengths)
    pending = num_bold % 2 and num_italic % 2  # L'''amour'': an apostrophe and italics

    def literal(found: re.Match[str]) -> str:
        nonlocal pending
        length = len(found[0])
        if length == 3 and pending and line[found.start() - 1 : found.start()].strip():
            pending = 0
            return "'"
        return "'" * (length - 5 if length > 5 else length == 4)

    return _QUOTES.sub(literal, line)


def _without_empty_sections(paragraphs: Iterable[tuple[int, str]]) -> list[str]:
    """Lines without headings of empty sections, such as a list of notes."""
    kept: list[str] = []
    covered = 0  # reading upwards: headings above this level have text below them
    for level, line in reversed(list(paragraphs)):
        if level and level >= covered:
            continue
        covered = level or 7
        kept.append(line)
    return kept[::-1]
