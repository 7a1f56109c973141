"""Readers of dumps and crawls: MediaWiki XML, WET, tar; and what zstd packs."""

import bz2
import gzip
import html
import io
import itertools
import json
import lzma
import random
import re
import sys
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
import warcio.utils
import zstandard

from data_prep.inputs import InputPart, whole_file
from data_prep.readers import read_documents, wiki_markup
from data_prep.readers.mediawiki import begins_with_page
from data_prep.readers.source import Document, RecordTally, Source
from dist_bert.common.errors import UserError

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"  # real text, where there is any
DUMPS = SHARED_DATA / "wikidump-sample"
SAMPLES = SHARED_DATA / "format-samples"
needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason="the shared data are not on this machine"
)
MAX_BAD_SHARE = 0.0


def read(
    path: Path | str,
    layout: str,
    part: tuple[int, int] | None = None,
    text_field: str = "",
    max_bad_share: float = MAX_BAD_SHARE,
) -> tuple[list[Document], RecordTally]:
    """Documents of a file, or of the part of it from one byte to before another."""
    whole = whole_file(str(path))
    start, stop = part or (0, whole.bytes)
    tally = RecordTally(str(path), max_bad_share)
    source = Source(
        InputPart(whole.path, start, stop - start, whole.modified_ns), tally, text_field=text_field
    )
    return list(read_documents(source, layout)), tally


def texts(path: Path | str, layout: str, **how: Any) -> list[str]:
    return [document.text for document in read(path, layout, **how)[0]]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# MediaWiki

SITEINFO = """  <siteinfo>
    <sitename>Wikipedia</sitename>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Diskussion</namespace>
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""


def page(title: str, *revisions: str, ns: str = "<ns>0</ns>", extra: str = "") -> str:
    """A page with its revisions, oldest first, as they stand in a dump."""
    history = "".join(
        f"""    <revision>
      <id>{number}</id>
      <contributor><username>A &amp; B</username><id>7</id></contributor>
      <comment>[[no]] text</comment>
      <model>wikitext</model>
      <text bytes="3" xml:space="preserve">{escape(text)}</text>
    </revision>
"""
        for number, text in enumerate(revisions)
    )
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    {ns}\n    <id>1</id>\n{extra}{history}"
        "  </page>\n"
    )


def head(version: str = "0.10") -> str:
    return (
        f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-{version}/"'
        f' version="{version}" xml:lang="de">\n{SITEINFO}'
    )


END = "</mediawiki>\n"
PAGES = (
    page("Erste", "Alt.", "Neu [[Datei:B.jpg|mini|Ein [[Bild]]]] & gut."),
    page("Umleitung", "#REDIRECT [[Erste]]", extra='    <redirect title="Erste" />\n'),
    page("Alte Umleitung", "#redirect [[Erste]]"),
    page("Diskussion:Erste", "Gerede.", ns="<ns>1</ns>"),
    page("Modul", "return 1").replace("wikitext", "Scribunto"),
    page("Ünïcode 中文", "Zweite 中文。[[Kategorie:X]]"),
    page("Leer", ""),
    page("Letzte", "Dritte.\n\n== Leer ==\n"),
)
TEXTS = ["Neu & gut.", "Zweite 中文。", "", "Dritte."]
DROPS = {"redirect": 2, "other_namespace": 1, "not_wikitext": 1}


@pytest.mark.parametrize("version", ["0.6", "0.10", "0.11"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_dump_gives_the_newest_text_of_its_articles(
    tmp_path: Path, version: str, pack: Callable[[bytes], bytes]
) -> None:
    dump = head(version) + "".join(PAGES) + END
    documents, tally = read(write(tmp_path / "dump", pack(dump.encode())), "mediawiki")
    assert documents == [Document(text, "de") for text in TEXTS]
    assert tally.drops == DROPS
    assert tally.num_records == len(PAGES)
    assert not tally.bad


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
def test_the_xml_parser_finds_the_encoding(tmp_path: Path, encoding: str) -> None:
    declaration = f'<?xml version="1.0" encoding="{encoding}"?>\n' if "1" in encoding else ""
    if encoding == "utf-8-sig":
        declaration = ""
    text = "Grüße, viel Text. " * 5_000  # longer than what is read at once
    dump = declaration.replace("-be", "") + head() + page("Ä", text) + END
    path = write(tmp_path / "dump.xml", dump.encode(encoding))
    assert texts(path, "mediawiki") == [text.strip()]


def test_dumps_of_old_name_the_namespace_in_the_title_only(tmp_path: Path) -> None:
    dump = (
        head("0.3")
        + page("Diskussion:Erste", "Gerede.", ns="")
        + page("2001: Odyssee", "Ein Film.", ns="")
        + END
    )
    documents, tally = read(write(tmp_path / "old.xml", dump.encode()), "mediawiki")
    assert [document.text for document in documents] == ["Ein Film."]
    assert tally.drops == {"other_namespace": 1}


def test_only_the_main_slot_of_a_revision_is_read(tmp_path: Path) -> None:
    slot = "<content><role>x</role><model>json</model><text>{}</text></content>\n    </revision>"
    dump = head("0.11") + page("A", "Alt.", "Neu.").replace("</revision>", slot) + END
    assert texts(write(tmp_path / "slots.xml", dump.encode()), "mediawiki") == ["Neu."]


def multistream(groups: Sequence[str]) -> tuple[bytes, list[int]]:
    """A multistream dump and the first bytes of its streams."""
    streams = [bz2.compress(group.encode()) for group in groups]
    starts = list(itertools.accumulate(map(len, streams), initial=0))
    return b"".join(streams), starts[:-1]


def test_parts_of_a_multistream_dump_give_what_the_whole_gives(tmp_path: Path) -> None:
    groups = [head(), *("".join(PAGES[i : i + 2]) for i in range(0, len(PAGES), 2)), END]
    data, starts = multistream(groups)
    path = write(tmp_path / "pages-articles-multistream.xml.bz2", data)
    whole, tally = read(path, "mediawiki")
    assert [document.text for document in whole] == TEXTS
    borders = starts[2:-1]  # behind the first pages; the last stream is the closing tag
    for cuts in itertools.chain.from_iterable(
        itertools.combinations(borders, n) for n in range(len(borders) + 1)
    ):
        documents: list[Document] = []
        drops: Counter[str] = Counter()
        num_records = 0
        for part in itertools.pairwise([0, *cuts, len(data)]):
            found, counts = read(path, "mediawiki", part)
            documents += found
            drops += counts.drops
            num_records += counts.num_records
        assert documents == whole
        assert drops == tally.drops
        assert num_records == tally.num_records


def test_parts_of_a_plain_dump_give_what_the_whole_gives(tmp_path: Path) -> None:
    dump = (head() + "".join(PAGES) + END).encode()
    path = write(tmp_path / "dump.xml", dump)
    starts = [found.start() for found in re.finditer(b"<page>", dump)]
    cuts = [0, *starts[2::3], len(dump)]
    assert len(cuts) == 4
    parts = [read(path, "mediawiki", part)[0] for part in itertools.pairwise(cuts)]
    assert list(itertools.chain(*parts)) == read(path, "mediawiki")[0]


def test_a_part_must_hold_whole_pages(tmp_path: Path) -> None:
    dump = (head() + "".join(PAGES) + END).encode()
    path = write(tmp_path / "dump.xml", dump)
    starts = [found.start() for found in re.finditer(b"<page>", dump)]
    for part in ((0, starts[3] + 9), (starts[2], starts[4] + 40), (starts[5], len(dump) - 3)):
        with pytest.raises(UserError, match=r"dump\.xml: is cut off or not well-formed XML"):
            read(path, "mediawiki", part)
    with pytest.raises(UserError, match=rf"line \d+, column \d+ of the part at byte {starts[2]:,}"):
        read(path, "mediawiki", (starts[2], starts[4] + 40))


def test_a_dump_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    groups = [head(), PAGES[0], PAGES[-1], END]
    dump = "".join(groups).encode()
    for length in (0, 5, *range(40, len(dump) - len(END), 97), len(dump) - 2):
        path = write(tmp_path / "dump.xml", dump[:length])
        with pytest.raises(UserError, match=r"dump\.xml: is cut off .*line \d+, column \d+"):
            read(path, "mediawiki")
    data, starts = multistream(groups)
    for length in (*starts[1:], starts[2] + 20, len(data) - 1):
        path = write(tmp_path / "dump.bz2", data[:length])
        with pytest.raises(UserError, match=r"dump\.bz2: is (damaged or )?cut off"):
            read(path, "mediawiki")


@pytest.mark.parametrize(
    ("dump", "problem"),
    [
        (head() + "<page></revision></page>" + END, "mismatched tag: line 11, column"),
        (head() + page("A", "a") + "& " + END, r"not well-formed \(invalid token\): line"),
        (head() + page("A", "a") + END + "<more/>", "junk after document element"),
        ("<feed><doc/></feed>", "is not a MediaWiki dump, its root is <feed>"),
        ("plain text", "syntax error: line 1, column 0"),
    ],
)
def test_what_is_no_dump_is_named(tmp_path: Path, dump: str, problem: str) -> None:
    path = write(tmp_path / "dump.xml", dump.encode())
    with pytest.raises(UserError, match=rf"dump\.xml: .*{problem}") as raised:
        read(path, "mediawiki")
    assert "\n" not in str(raised.value)


def test_a_page_that_cannot_be_parsed_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = wiki_markup.load_parser()

    def failing(markup: str, **how: Any) -> Any:
        if "Zweite" in markup:
            raise KeyError("deep inside")
        return parse(markup, **how)

    monkeypatch.setattr(wiki_markup, "load_parser", lambda: failing)
    path = write(tmp_path / "dump.xml", (head() + "".join(PAGES) + END).encode())
    documents, tally = read(path, "mediawiki", max_bad_share=0.2)
    assert [document.text for document in documents] == ["Neu & gut.", "", "Dritte."]
    assert tally.bad == {"not_parsable": 1}
    with pytest.raises(UserError, match=r"dump\.xml: page 'Ünïcode 中文': .*KeyError.*1 of 8 rec"):
        read(path, "mediawiki")


def test_dumps_are_read_in_bounded_memory(tmp_path: Path) -> None:
    text = "Wort " * 20_000
    history = page("A", *[text] * 150)  # 15 MB
    redirects = page("R", "#REDIRECT [[B]]") * 5_000
    dump = head() + history + redirects + page("B", text) * 50 + END
    path = write(tmp_path / "dump.xml", dump.encode())
    source = Source(whole_file(str(path)), RecordTally(str(path), 0.0))
    del dump, history, redirects
    tracemalloc.start()
    try:
        assert sum(len(document.text) for document in read_documents(source, "mediawiki")) == (
            51 * (len(text) - 1)
        )
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_where_a_part_may_begin() -> None:
    assert begins_with_page(b"  <page>\n    <title>")
    assert begins_with_page(b"\n<page>")
    assert not begins_with_page(b"<mediawiki xmlns='x'>\n <page>")
    assert not begins_with_page(b"</mediawiki>")
    assert not begins_with_page(b"")


def plain(markup: str) -> str:
    return wiki_markup.plain_text(markup, wiki_markup.Site(), wiki_markup.load_parser())


ARTICLE = """{{Infobox book
| name = ''Foo''
| text = {{nested|[[a]]}}
}}
[[File:Foo.jpg|thumb|upright|A ''caption'' with [[links|a link]] and {{a|b}}.]]
'''Foo''' ({{IPAc-en|f|uː}}; {{lang|el|φου}}) is a [[metasyntactic variable|variable]]s
of ''many'' [[programmer]]s.<ref name="x">{{cite web|url=http://x.org}}</ref> It is&nbsp;used<ref
name="y" /> in examples.<!-- not this -->

{| class="wikitable"
! head
|-
| cell || {{c|d}}
{|
| inner
|}
|}
== Use ==
{{main|Usage}}
It has:
* one [http://example.org item],
** ''another''
# a number <small>small</small>
; term : definition
: indented

=== Formula ===
<math>a < b</math>

=== Sources ===
See <math>x^2</math>, and {{convert|5|to|7|km|mi}}.
<gallery>
File:A.jpg|caption
</gallery>
== References ==
{{reflist}}
=== Notes ===
<references>
<ref name="z">note</ref>
</references>
__NOTOC__
[[Category:Variables|Foo]]
[[de:Foo]]
"""


def test_an_article_as_a_whole() -> None:
    assert plain(ARTICLE).split("\n\n") == [
        "Foo (φου) is a variables of many programmers. It is used in examples.",
        "Use",
        "It has:",
        "one item,",
        "another",
        "a number small",
        "term",
        "definition",
        "indented",
        "Sources",
        "See, and 5 to 7 km.",
    ]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        # Elements
        ("a<ref>1</ref><ref>lost <ref>2</ref> end", "alost end"),
        ("a <ref>[[b]] is kept when its end is missing", "a b is kept when its end is missing"),
        ("a<br>b<br />c", "a\n\nb\n\nc"),
        ("<blockquote>q</blockquote><div class='x'>d</div>e", "q\n\nd\n\ne"),
        ("H<sub>2</sub>O <small>s</small> <code>f()</code> </i>x<tt>", "H2O s f() x"),
        ("<syntaxhighlight lang=c>int a;</syntaxhighlight>a <source>b</source>", "a"),
        ("<poem>\none\ntwo\n</poem>", "one\n\ntwo"),
        # What looks like markup and is none
        ("<nowiki>''[[x]]'' {{y}}</nowiki> &lt;b&gt; &#39;&#39;", "''[[x]]'' {{y}} <b> ''"),
        ("<nowiki><!--</nowiki> kept <!-- no -->", "<!-- kept"),
        ("<pre>#include <x>\n  a[b[0]];</pre>", "#include <x>\n\na[b[0]];"),
        ("a[b[0]] and __init__ and &mdash;&#2;&amp;", "a[b[0]] and __init__ and —&"),
        # Links
        ("[[a]]s [[b|c]]d [[e (f)|]] [[#g|h]]", "as cd e (f) h"),
        ("[[:Category:A]] [[Talk:b|c]] [[wikt:d|e]]", "Category:A c e"),
        ("x [[Bild:Y.svg|mini|[[z]]]] [[fr:A]] [[zh-min-nan:B]] [[simple:C]] y", "x y"),
        ("[http://a.org b ''c''] [http://d.org] http://e.org [mailto:f@g h]", "b c http://e.org h"),
        # Quotes
        ("'''b''' ''i'' '''''bi''''' '''open", "b i bi open"),
        ("L'''amour'' and '''b'''", "L'amour and b"),
        ("''''quoted'''' ''''''six''''''", "'quoted' 'six'"),
        # Lines
        ("wrapped\nline\n\n typed\n twice\nend", "wrapped line\n\ntyped\n\ntwice\n\nend"),
        ("a\n<!-- a line -->\nb <!-- in\nit --> c", "a b c"),
        ("== A ==\n== B ==\n=== C ===\nd\n=== E ===\n== F ==", "B\n\nC\n\nd"),
        ("!Kung\n#1\n:2\n", "!Kung\n\n1\n\n2"),
        # Tables
        ("a\n{|\n|-\n| b\n|} c\nd", "a\n\nc d"),
        ("a\n:{| x\n| {{y\n|z\n|}}\n|}\nb", "a\n\nb"),
        ("a\n{| never ends\n|-\n! b\n| c\nText.\n\nMore.", "a Text.\n\nMore."),
        ("<table><tr><td>a</td></tr></table>b", "b"),
        # Templates
        ("{{quote|''A'' [[b]].|Author}}", "A b."),
        ("{{blockquote|text=A.}}{{nowrap|1=b=c}} {{Lang|fr|d}} {{lang-de|e}}", "A.b=c d e"),
        ("{{convert|5|km}} {{cvt|1|x|2|m}} {{As of|2010}} {{frac|1|2}} {{frac|3}}",
         "5 km 1 × 2 m As of 2010 1/2 1/3"),
        ("{{Transl|ar|ALA|x}} A{{'s}}{{spaced ndash}}{{chem|NH|4|+}} {{!}}", "x A's – NH4+ |"),
        ("a {{b|c=d}} e{{{f|g}}}", "a eg"),
        ("{{unclosed|a [[b]] c", "unclosed|a b c"),
        # Gaps
        ("A ({{x}}), B ({{x}}; c), D (e; {{x}}), f() {{x}}.", "A, B (c), D (e), f()."),
        ("甲（{{x}}，{{lang|en|A}}）乙（{{x}}）丙", "甲（A）乙丙"),
        ("* {{cite book|x}}.\n* {{cite book|x}}. Vol. 2", "Vol. 2"),
        ("a <ref>b</ref>, c", "a, c"),
        # Chinese scripts
        ("-{zh-hans:计算机; zh-hant:電腦;}-与-{A|zh-cn:软件;zh-tw:軟體}-", "计算机与软件"),
        ("甲-{T|zh:題}-乙-{丙}--{zh-hans;zh-hant|丁}-", "甲乙丙丁"),
        ("", ""),
    ],
)  # fmt: skip
def test_markup_becomes_text(markup: str, text: str) -> None:
    assert plain(markup) == text


@pytest.mark.parametrize(
    "markup",
    [
        "[[a|" * 2_000,
        "{{a|" * 2_000 + "}}" * 2_000,
        "<b>" * 2_000,
        "<ref>" * 2_000,
        "<!--" * 2_000,
        "-{abcdefghijklmnopqrstuvwxyz" * 3_000,
        "{|\n" * 2_000,
        "(" * 2_000 + "{{x}}" + " " * 2_000 + "{{x}}",
        "'" * 5_000,
        "*:#;" * 2_000,
        "[http://x " * 2_000,
    ],
    ids=lambda markup: markup[:6],
)
def test_no_markup_takes_for_ever(markup: str) -> None:
    try:
        plain(markup + " words")
    except wiki_markup.MarkupError:
        return


ENGLISH = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
# What no text has, but for articles about markup or programs; URLs are no markup.
LEFT_OVER = re.compile(
    r"thumb\||\{\||\|-|\|\}|\[\[|\]\]|\{\{|\}\}|''|</?[a-zA-Z][^<>\n]*>|==|__[A-Z]+__|&[a-z]+;"
    r"|<!--|-->|\d+px|colspan|style=|^[*#;|]|\n\n\n",
    re.MULTILINE,
)


@needs_shared_data
def test_real_dumps_give_their_articles() -> None:
    documents, tally = read(DUMPS / ENGLISH, "mediawiki")
    assert tally.num_records == 206
    assert tally.drops == {"other_namespace": 1, "redirect": 99}, "the 100th is in namespace 4"
    assert len(documents) == 106
    assert {document.language for document in documents} == {"en"}
    assert documents[0].text.startswith(
        "Anarchism is a political philosophy that advocates self-governed societies based on"
        " voluntary institutions. These are often described as stateless societies,"
    )
    assert not tally.bad

    documents, tally = read(DUMPS / "enwiki-table-markup.xml.bz2", "mediawiki")
    assert (len(documents), tally.num_records, dict(tally.drops)) == (5, 5, {})

    path = DUMPS / "bgwiki-latest-pages-articles-shortened.xml.bz2"
    dump = bz2.decompress(path.read_bytes()).decode("utf-16")
    documents, tally = read(path, "mediawiki")
    assert tally.num_records == len(re.findall(r"<page>", dump)) == 3
    assert len(documents) == len(re.findall(r"<ns>0</ns>", dump)) == 1
    assert documents[0].text.startswith("Григорианският календар (понякога наричан и Грегориански")
    assert documents[0].language == "bg"


def articles(path: Path) -> list[str]:
    """Markup of a dump's articles, by regular expressions."""
    data = bz2.decompress(path.read_bytes())
    dump = data.decode("utf-16" if data.startswith(b"\xff\xfe") else "utf-8")
    pages = re.findall(r"<page>.*?</page>", dump, re.DOTALL)
    found = [p for p in pages if "<ns>0</ns>" in p and "<redirect" not in p]
    return [html.unescape(re.search(r"<text[^>]*>(.*)</text>", p, re.DOTALL)[1]) for p in found]  # type: ignore[index]


def phrases(markup: str) -> Iterator[str]:
    """Runs of words of a page that every reader sees: by another way than the library's."""
    markup = re.sub(r"<!--.*?-->|<ref[^<>]*/>|<ref[^<>]*>.*?</ref>", "", markup, flags=re.DOTALL)
    markup = re.sub(r"<(math|gallery|timeline)\b.*?</\1>", "|", markup, flags=re.DOTALL)
    nested = 1
    while nested:
        markup, nested = re.subn(r"\{\{[^{}]*\}\}", "|", markup)
    markup = re.sub(r"^[: ]*\{\|.*?^ *\|\}", "|", markup, flags=re.DOTALL | re.MULTILINE)
    markup = re.sub(r"\[\[(?:[^][|:]*\|)?([^][|:]*)\]\]", r"\1", markup)
    while "[[" in markup and (after := re.sub(r"\[\[[^][]*\]\]", "|", markup)) != markup:
        markup = after  # pictures, categories, links to other wikis
    markup = re.sub(r"'{2,}", "", re.sub(r"https?:\S+", "|", markup))
    return (phrase for phrase in re.split(r"[][{}|<>&=*#:;()\n]", markup) if phrase.count(" ") > 5)


@needs_shared_data
@pytest.mark.parametrize("path", sorted(DUMPS.glob("*.bz2")), ids=lambda path: path.name[:12])
def test_no_text_of_real_articles_is_lost_and_no_markup_left(path: Path) -> None:
    markups = articles(path)
    documents, _ = read(path, "mediawiki")
    assert len(documents) == len(markups) > 0
    num_phrases, lost, left = 0, [], []
    for markup, (text, _) in zip(markups, documents, strict=True):
        letters = re.sub(r"\W", "", text)
        for phrase in phrases(markup):
            num_phrases += 1
            if re.sub(r"\W", "", phrase) not in letters:
                lost.append(phrase)
        left += [found[0] for found in LEFT_OVER.finditer(text)]
    assert num_phrases > 60 * len(markups) or len(markups) == 1
    # Captions with brackets of their own, and headings above tables.
    assert len(lost) <= num_phrases // 500, lost
    assert not left


# WET


def record(kind: str, content: bytes, **headers: str) -> bytes:
    lines = ["WARC/1.0", f"WARC-Type: {kind}", "WARC-Record-ID: <urn:uuid:1>"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += ["Content-Type: text/plain", f"Content-Length: {len(content)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content + b"\r\n\r\n"


WET_RECORDS = [
    record("warcinfo", b"Software-Info: test\r\n"),
    record(
        "conversion", "Erste\r\nZeile: ä.\n".encode(), WARC_Identified_Content_Language="deu,eng"
    ),
    record("metadata", b"languages-cld2: {}"),
    record("conversion", "WARC/1.0\r\n\r\n中文。".encode(), WARC_Identified_Content_Language="zho"),
    record("conversion", b"", WARC_Target_URI="http://x.org/a b"),
    record("conversion", b"Last one, of no language."),
]
WET_DOCUMENTS = [
    Document("Erste\nZeile: ä.\n", "deu"),
    Document("WARC/1.0\n\n中文。", "zho"),
    Document("", ""),
    Document("Last one, of no language.", ""),
]


@pytest.mark.parametrize(
    "pack",
    [
        b"".join,
        lambda records: b"".join(map(gzip.compress, records)),  # as Common Crawl does
        lambda records: gzip.compress(b"".join(records)),
        lambda records: zstandard.compress(b"".join(records)),
    ],
    ids=["plain", "members", "gzip", "zstd"],
)
def test_wet_records_are_documents(
    tmp_path: Path, pack: Callable[[list[bytes]], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    documents, tally = read(write(tmp_path / "a.warc.wet", pack(WET_RECORDS)), "wet")
    assert documents == WET_DOCUMENTS
    assert tally.num_records == len(WET_RECORDS)
    assert tally.drops == {"other_record": 1}, "metadata; the head of a file is no record left out"
    assert capfd.readouterr() == ("", "")


def test_a_wet_file_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    """Unless only the line ends behind the last record are missing: it is whole."""
    records = [r for r in WET_RECORDS if b"Length: 0" not in r]
    expected = [document for document in WET_DOCUMENTS if document.text]
    data = b"".join(records)
    ends = list(itertools.accumulate(map(len, records)))
    num_errors = 0
    for length in range(len(data)):
        path = write(tmp_path / "cut.wet", data[:length])
        try:
            documents, _ = read(path, "wet")
        except UserError as error:
            assert re.match(rf"{path}: is cut off or not a WET file: .*fetch it again$", str(error))
            num_errors += 1
        else:
            assert any(end - 4 <= length <= end for end in ends), length
            num_whole = sum(end - 4 <= length for end in ends)
            assert documents == expected[: sum(n <= num_whole for n in (2, 4, 5))]
    assert num_errors > 0.9 * len(data)
    packed = b"".join(map(gzip.compress, WET_RECORDS))
    members = set(itertools.accumulate(len(gzip.compress(r)) for r in WET_RECORDS))
    for length in range(1, len(packed)):
        if length not in members:
            with pytest.raises(UserError, match=r"cut\.wet: is (damaged or )?cut off"):
                read(write(tmp_path / "cut.wet", packed[:length]), "wet")


@pytest.mark.parametrize("header_bytes", [2, 11, 40, 90])
def test_a_wet_file_that_is_cut_off_where_warcio_reads_a_header(
    tmp_path: Path, header_bytes: int
) -> None:
    """There it takes the error of gzip for the end of the file."""
    empty = record("conversion", b"")
    first = b"x" * (warcio.utils.BUFF_SIZE - header_bytes - len(empty) - 4)  # of five digits
    data = record("conversion", first) + record("conversion", random.Random(3).randbytes(9_999))
    assert data.index(b"WARC/1.0", 9) == warcio.utils.BUFF_SIZE - header_bytes
    packed = gzip.compress(data)
    with pytest.raises(UserError, match=r"cut\.wet: is damaged or cut off"):
        read(write(tmp_path / "cut.wet", packed[: len(packed) // 2]), "wet")


def test_bad_wet_records_are_named(tmp_path: Path) -> None:
    good = WET_RECORDS[0] + WET_RECORDS[1]
    bad = record("conversion", b"abc\xffdef")
    offset = len(good) + bad.index(b"\xff")
    for data in (good + bad, gzip.compress(good) + gzip.compress(bad)):
        path = write(tmp_path / "bad.wet", data)
        with pytest.raises(UserError, match=rf"bad\.wet: byte {offset} is not UTF-8"):
            read(path, "wet")
        assert texts(path, "wet", max_bad_share=0.5)[1] == "abc\ufffddef"
    for wrong in (
        good + bad.replace(b"Length: 7", b"Length: 5"),
        good + bad.replace(b"Length: 7", b"Length: x"),
        good + bad.replace(b"WARC-Type: conversion\r\n", b""),
        b"<html>no WET file</html>",
        b"",
    ):
        with pytest.raises(UserError, match=r"bad\.wet: is cut off or not a WET file"):
            read(write(tmp_path / "bad.wet", wrong), "wet")


@needs_shared_data
def test_a_real_wet_file_loses_no_word() -> None:
    path = SAMPLES / "CC-MAIN-sample.warc.wet.gz"
    documents, tally = read(path, "wet")
    assert (len(documents), tally.num_records) == (100, 101)
    data = gzip.decompress(path.read_bytes())
    contents = []
    while data:  # lengths and blank lines, nothing else
        header, _, data = data.partition(b"\r\n\r\n")
        length = int(header.rpartition(b"Content-Length: ")[2].split(b"\r\n")[0])
        contents.append((b"WARC-Type: conversion" in header, data[:length].decode()))
        data = data[length + 4 :]
    expected = [content.split() for is_text, content in contents if is_text]
    assert [document.text.split() for document in documents] == expected
    assert Counter(d.language for d in documents) == {"eng": 60, "zho": 40}


# tar


def tar_of(members: Sequence[tuple[str, bytes]], **how: Any) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", **how) as writer:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        writer.addfile(folder)
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            writer.addfile(info, io.BytesIO(data))
    return archive.getvalue()


LONG_NAME = "long/" * 40 + "name.txt"
TAR_MEMBERS = [
    ("a/000.json", b'{"text": "is about 000.txt", "license": "x"}'),
    ("a/000.jpg", b"\xff\xd8"),
    ("a/000.txt", "Erster\r\nText ä.".encode()),
    ("a/001.json", json.dumps({"content": "Zweiter.", "lang": "de"}).encode()),
    ("a/002.json", b'{"width": 5}'),
    ("a/._003.txt", b"\x00\x05\x16\x07"),
    ("a/mr. smith.TXT", b"\xef\xbb\xbfThird."),
    ("a/004.text", b""),
    (LONG_NAME, "长的。".encode()),
]
TAR_DOCUMENTS = [
    Document("Erster\nText ä."),
    Document("Zweiter.", "de"),
    Document("Third."),
    Document(""),
    Document("长的。"),
]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, zstandard.compress])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_a_tar_are_documents(
    tmp_path: Path, pack: Callable[[bytes], bytes], form: int
) -> None:
    members = TAR_MEMBERS[: -1 if form == tarfile.USTAR_FORMAT else None]
    documents, tally = read(write(tmp_path / "a", pack(tar_of(members, format=form))), "tar")
    assert documents == TAR_DOCUMENTS[: len(members) - 4]
    assert tally.drops == {"other_member": 4}, "json of a text, picture, json and file of no text"
    assert tally.num_records == len(members) - 3


def test_the_text_field_of_a_json_member_can_be_named(tmp_path: Path) -> None:
    members = [("a.json", b'{"body": "Named.", "text": "no"}'), ("b.json", b'{"text": "b"}')]
    path = write(tmp_path / "a.tar", tar_of(members))
    assert texts(path, "tar", text_field="body") == ["Named."]


def test_a_tar_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    data = tar_of(TAR_MEMBERS)
    end = len(data.rstrip(b"\0"))
    assert read(write(tmp_path / "a.tar", data[: end + 1024 - end % 512]), "tar")[0]
    for length in {0, 7, *range(0, end, 512), *range(300, end, 512), end, end + 100}:
        with pytest.raises(UserError, match=r"cut\.tar: is cut off or not a tar file: .*again$"):
            read(write(tmp_path / "cut.tar", data[:length]), "tar")
    packed = gzip.compress(data)
    for length in (len(packed) // 3, len(packed) // 2, len(packed) - 9):
        with pytest.raises(UserError, match=r"cut\.tgz: is damaged or cut off"):
            read(write(tmp_path / "cut.tgz", packed[:length]), "tar")


def test_a_damaged_tar_is_an_error(tmp_path: Path) -> None:
    data = tar_of(TAR_MEMBERS)
    header = data.index(b"a/001.json")
    for wrong in (
        data[:header] + b"X" + data[header + 1 :],
        data[:header] + bytes(512) + data[header + 512 :],
        data + data,
        b"no tar " * 500,
    ):
        with pytest.raises(UserError, match=r"bad\.tar: is cut off or not a tar file"):
            read(write(tmp_path / "bad.tar", wrong), "tar")


def test_bad_members_are_named(tmp_path: Path) -> None:
    data = tar_of([("good.txt", b"good"), ("b/bad.txt", b"abc\xffdef"), ("x.json", b"{no json}")])
    path = write(tmp_path / "bad.tar", data)
    offset = data.index(b"\xff")
    with pytest.raises(UserError, match=rf"bad\.tar: byte {offset} is not UTF-8.*2 of 3 records"):
        read(path, "tar")
    documents, tally = read(path, "tar", max_bad_share=0.7)
    assert [document.text for document in documents] == ["good", "abc\ufffddef"]
    assert tally.bad == {"not_utf8": 1, "not_json": 1}
    only_json = write(tmp_path / "bad.tar", tar_of([("x.json", b"{no json}")]))
    with pytest.raises(UserError, match=r"bad\.tar: member x\.json: is not JSON"):
        read(only_json, "tar")


# zstd

ZSTD_TEXT = "Zeile eins.\nZeile zwei: 中文。\n" * 3
SKIPPED_FRAME = b"\x5e\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"


def frame(text: str, **how: int) -> bytes:
    """One without the size of its content, as `zstd` makes of a pipe."""
    parameters = zstandard.ZstdCompressionParameters(write_content_size=0, **how)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(text.encode()) + packer.flush()


@pytest.mark.parametrize(
    "data",
    [
        frame(ZSTD_TEXT),
        zstandard.compress(ZSTD_TEXT.encode()),
        frame(ZSTD_TEXT[:7]) + frame("") + frame(ZSTD_TEXT[7:], write_checksum=1),
        SKIPPED_FRAME + frame(ZSTD_TEXT[:7]) + SKIPPED_FRAME + frame(ZSTD_TEXT[7:]) + SKIPPED_FRAME,
        b"".join(map(frame, ZSTD_TEXT)),
        frame(ZSTD_TEXT, window_log=28, enable_ldm=1),  # 27 is what is read without asking for more
    ],
    ids=["no size", "size", "frames", "skipped", "many", "window"],
)
def test_zstd_is_told_by_its_bytes(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path / "no_suffix", data)
    assert texts(path, "text") == [ZSTD_TEXT]
    assert texts(path, "auto") == [ZSTD_TEXT]


def test_long_zstd_files_are_read_in_pieces(tmp_path: Path) -> None:
    numbers = "".join(f"{n * n}\n" for n in range(300_000))
    path = write(tmp_path / "a.zst", frame(numbers[:777_777]) + frame(numbers[777_777:]))
    with Source(whole_file(str(path)), RecordTally(str(path), 0.0)).open() as file:
        assert file.read(5) == numbers[:5].encode()
        assert file.tell() == 5
        assert file.read().decode() == numbers[5:]
        assert (file.tell(), file.read(), file.tell()) == (len(numbers), b"", len(numbers))


def test_zstd_that_is_cut_off_or_damaged_is_an_error(tmp_path: Path) -> None:
    frames = [frame(ZSTD_TEXT), SKIPPED_FRAME, frame(ZSTD_TEXT, write_checksum=1)]
    data = b"".join(frames)
    borders = set(itertools.accumulate(map(len, frames)))
    for length in range(4, len(data)):
        if length not in borders:
            with pytest.raises(UserError, match=r"cut\.zst: is damaged or cut off after unpacked"):
                read(write(tmp_path / "cut.zst", data[:length]), "text")
    for wrong in (data + b"more", data[:-1] + b"x"):  # the last frame has a checksum
        with pytest.raises(UserError, match=r"bad\.zst: is damaged .*zstd decompress.*again$"):
            read(write(tmp_path / "bad.zst", wrong), "text")


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "num_documents"), [("oscar-zh_meta_part_1.jsonl.zst", 40), ("pile-00.jsonl.zst", 60)]
)
def test_real_zstd_files(name: str, num_documents: int) -> None:
    with open(SAMPLES / name, "rb") as file:
        data = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    rows = [json.loads(line) for line in data.splitlines()]
    assert len(rows) == num_documents
    assert texts(SAMPLES / name, "jsonl") == [row.get("text", row.get("content")) for row in rows]


# What is not installed


@pytest.mark.parametrize(
    ("package", "layout", "data", "what"),
    [
        ("zstandard", "text", frame(ZSTD_TEXT), "packed by zstd"),
        ("mwparserfromhell", "mediawiki", (head() + END).encode(), "a MediaWiki dump"),
        ("warcio", "wet", b"".join(WET_RECORDS), "a WET file"),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    layout: str,
    data: bytes,
    what: str,
) -> None:
    path = write(tmp_path / "a", data)
    read(path, layout)
    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as raised:
        read(path, layout)
    assert str(raised.value) == (
        f"{path}: is {what}, which needs the package {package}; install it: pip install {package}"
    )
