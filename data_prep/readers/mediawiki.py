"""Reads the pages of MediaWiki XML dumps, as published by Wikipedia, in bounded memory.

A part of a multistream dump is a run of whole pages without the root element; the reader adds one.
Format: https://www.mediawiki.org/xml/export-0.11.xsd and all earlier ones. Not for: the markup of a
page (`data_prep.readers.wiki_markup`).
"""

import contextlib
import dataclasses
import re
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple
from xml.etree import ElementTree

from data_prep.inputs import whole_file
from data_prep.readers import wiki_markup
from data_prep.readers.source import Document, Source, missing_package, too_long, whole_characters
from dist_bert.common.errors import UserError

_CHUNK_BYTES = 1 << 16
# MediaWiki allows 2 MiB per page by default; escaped in XML, it may be six times as much. A parsed
# page takes about a hundred times its text in memory.
_MAX_PAGE_BYTES, _MAX_PAGE_CHARACTERS = 16 << 20, 4 << 20
_MOST_ELEMENTS = 100_000  # of a revision or around pages; a dump has fifteen
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_FILES, _CATEGORIES = "6", "14"  # numbers of namespaces
_REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)  # dumps before 2008 mark redirects only so


class _Page(NamedTuple):
    title: str
    namespace: str | None  # a number; dumps before export-0.6 give none
    is_redirect: bool
    model: str | None  # of the newest revision: mostly "wikitext"
    text: str  # likewise


@dataclasses.dataclass(frozen=True)
class _Wiki:
    site: wiki_markup.Site
    namespaces: frozenset[str]  # names in lower case, without the empty one of articles


def mediawiki(source: Source) -> Iterator[Document]:
    """The newest revision of each article; redirects and pages other than articles are counted."""
    try:
        parse = wiki_markup.load_parser()
    except ModuleNotFoundError:
        raise missing_package(source.path, "a MediaWiki dump", "mwparserfromhell") from None
    wiki = _wiki(source)
    tally = source.tally
    for page in _pages(source):
        tally.num_records += 1
        if not _is_article(page, wiki):
            tally.drops["other_namespace"] += 1
        elif page.is_redirect:
            tally.drops["redirect"] += 1
        elif page.model not in (None, "wikitext"):
            tally.drops["not_wikitext"] += 1
        elif len(page.text) > _MAX_PAGE_CHARACTERS:
            tally.count_bad(
                "too_long",
                f"page {page.title!r}: is longer than {_MAX_PAGE_CHARACTERS >> 20} MiB, unlike any"
                " page of Wikipedia",
            )
        else:
            try:
                text = wiki_markup.plain_text(page.text, wiki.site, parse)
            except wiki_markup.MarkupError as error:
                tally.count_bad(
                    "not_parsable", f"page {page.title!r}: its markup cannot be parsed ({error})"
                )
            else:
                yield Document(whole_characters(text), wiki.site.language)


def begins_with_page(head: bytes) -> bool:
    """Whether unpacked bytes begin with a page: such a part of a dump can be read by itself."""
    return head.lstrip().startswith(b"<page>")


def _is_article(page: _Page, wiki: _Wiki) -> bool:
    if page.namespace is not None:
        return page.namespace == "0"
    prefix, colon, _ = page.title.partition(":")
    return not (colon and prefix.lower() in wiki.namespaces)


def _wiki(source: Source) -> _Wiki:
    """Properties of the wiki from the head of the file, which parts do not have."""
    language, names = "", {_FILES: {"file", "image"}, _CATEGORIES: {"category"}}
    head = Source(whole_file(source.path), source.tally)
    with contextlib.closing(_events(head)) as events:
        for number, (event, element) in enumerate(events):
            name = _name(element)
            if number == 0:
                if name != "mediawiki":
                    raise UserError(f"{source.path}: is not a MediaWiki dump, its root is <{name}>")
                language = element.get(_LANGUAGE, "")
            if name == "page" or (name, event) == ("siteinfo", "end"):
                break
            if (name, event) == ("namespace", "end") and element.text:
                names.setdefault(element.get("key", ""), set()).add(element.text.lower())
    default = wiki_markup.Site()
    hidden = default.hidden_prefixes | names[_FILES] | names[_CATEGORIES]
    return _Wiki(wiki_markup.Site(language, hidden), frozenset().union(*names.values()))


def _pages(source: Source) -> Iterator[_Page]:
    root = None
    text: str | None = None
    model: str | None = None
    for event, element in _events(source):
        if root is None:
            root = element
        if event == "start":
            continue
        name = _name(element)
        if name == "revision":  # the newest is the last
            text, model = element.findtext("{*}text"), element.findtext("{*}model")
            element.clear()  # a page of a dump with all revisions can be larger than memory
        elif name == "page":
            text = text or ""
            is_redirect = element.find("{*}redirect") is not None or _REDIRECT.match(text)
            yield _Page(
                element.findtext("{*}title") or "",
                element.findtext("{*}ns"),
                bool(is_redirect),
                model,
                text,
            )
            text = model = None
            root.clear()


def _events(source: Source) -> Generator[tuple[str, ElementTree.Element], None, None]:
    """Starts and ends of elements, as they are read; the XML parser handles the encoding."""
    part = source.part
    num_bytes = num_events = 0  # since the last revision ended and its elements were cleared
    parser: Any = ElementTree.XMLPullParser(("start", "end"))
    with source.open() as file:
        try:
            if part.start:
                parser.feed(b"<mediawiki>")
            while chunk := file.read(_CHUNK_BYTES):
                parser.feed(chunk)
                num_bytes += len(chunk)
                for event, element in parser.read_events():
                    num_events += 1
                    if event == "end" and _name(element) in ("revision", "page"):
                        num_bytes = num_events = 0
                    yield event, element
                if num_bytes > _MAX_PAGE_BYTES or num_events > _MOST_ELEMENTS:
                    raise too_long(source.path, "a page of it", _MAX_PAGE_BYTES)
            if not source.ends_file:
                parser.feed(b"</mediawiki>")
            parser.close()  # raises if an element has not ended
            yield from parser.read_events()
        except ElementTree.ParseError as error:
            place = f" of the part at byte {part.start:,}" if part.start else ""
            raise UserError(
                f"{source.path}: is cut off or not well-formed XML: {error}{place}; fetch it again"
            ) from None


def _name(element: ElementTree.Element) -> str:
    """Name of an element without its XML namespace, which is the version of the format."""
    return element.tag.rpartition("}")[2]
