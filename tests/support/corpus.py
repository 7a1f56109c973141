"""Text for the tests: seeded English and Chinese documents of very different lengths."""

import random
from collections.abc import Iterator
from pathlib import Path


def _words(text: str) -> list[str]:
    return text.split()


_NOUNS = _words(
    "harbour lantern orchard kettle bridge letter winter market window river garden mountain"
    " ladder village machine picture station forest captain teacher farmer doctor baker singer"
    " painter child neighbour traveller soldier clerk kitchen meadow cellar tower island valley"
    " engine carriage coat basket mirror candle hammer anchor feather blanket bottle button"
    " clock compass curtain drawer fiddle fountain furnace gate glove hedge jacket journal kite"
    " lamp map needle oven parcel pillow pocket quarry ribbon saddle scarf shelf shovel spoon"
    " stove thread ticket trunk violin wagon well"
)
_VERBS = _words(
    "carried watched repaired followed painted forgot remembered opened closed described"
    " borrowed returned discovered measured polished counted visited admired ignored mended"
    " lifted dropped cleaned covered crossed emptied gathered guarded inspected locked moved"
    " noticed offered packed praised pulled pushed received rescued sketched sold studied traded"
    " warmed washed wrapped"
)
_ADJECTIVES = _words(
    "old quiet green narrow heavy bright broken distant early gentle golden hidden honest"
    " lonely modern patient plain pleasant proud rusty sharp silent silver simple sleepy slender"
    " steady sturdy tall tired warm weary wooden yellow ancient careful cheerful clever crooked"
    " curious empty faded famous"
)
_ADVERBS = _words(
    "slowly quickly carefully often never always seldom gladly quietly suddenly finally gently"
    " together again yesterday tonight afterwards outside upstairs alone"
)
_NAMES = _words(
    "Alice Bruno Clara Daniel Edith Frank Grace Henry Irene Jacob Karen Leo Martha Nora Oscar"
    " Paula Quentin Rosa Simon Teresa Ulric Vera Walter Xenia Yusuf Zelda"
)
_ENGLISH = (
    "The {a} {n} {v} the {n}.",
    "{N} {v} the {a} {n} {d}.",
    "In the {n}, {N} and {N} {v} a {n} with a {a} {n}!",
    "Did {N} say that the {n} was {a}?",
    "Every {n} near the {n} was {a}, and nobody {v} it {d}.",
    "{N} {d} {v} the {n}, because the {a} {n} had {v} the {n} of the {n} before {N} {v} it.",
    "There were {k} {a} {n}s behind the {n}; {N} {v} all of them.",
    "When the {n} {d} {v} the {n}, {N} smiled.",
)
_SUBJECTS = _words("老师 学生 医生 农夫 船长 画家 孩子 邻居 商人 作家 司机 木匠 姑娘 老人 记者")
_OBJECTS = _words(
    "灯笼 果园 茶壶 桥梁 书信 市场 窗户 河流 花园 高山 梯子 村庄 机器 图画 车站 森林 厨房 地图"
)
_ACTIONS = _words(
    "看见 修理 跟随 画出 忘记 打开 关上 描述 借来 归还 发现 测量 数过 参观 称赞 收拾 搬走"
)
_QUALITIES = _words("古老 安静 狭窄 沉重 明亮 遥远 温柔 隐蔽 诚实 孤独 耐心 朴素 愉快 骄傲 清醒")
_CHINESE = (
    "{s}{v}了{q}的{o}。",
    "昨天，{s}在{o}旁边{v}了{o}！",
    "{s}问{s}：这座{o}是不是很{q}？",
    "因为{o}十分{q}，所以{s}没有{v}{o}，也没有{v}{o}。",
    "{q}的{s}和{q}的{s}一起{v}了{k}个{o}。",
)


def english_sentences(count: int, seed: int) -> list[str]:
    """Sentences without abbreviations: what a document's sentences must come out as."""
    rng = random.Random(seed)
    return [_fill(rng.choice(_ENGLISH), rng) for _ in range(count)]


def chinese_sentences(count: int, seed: int) -> list[str]:
    """Chinese sentences."""
    rng = random.Random(seed)
    return [_fill(rng.choice(_CHINESE), rng) for _ in range(count)]


def documents(count: int, seed: int = 0) -> Iterator[list[str]]:
    """Documents as lists of sentences: 1 to some 60, every fifth document Chinese."""
    for number in range(count):
        length = min(60, int(3 * random.Random(f"{seed} {number}").paretovariate(1.1)) - 2)
        make = chinese_sentences if number % 5 == 4 else english_sentences
        yield make(length, seed * 1_000_003 + number)


def write_text_files(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Writes a file a document, in paragraphs of up to five sentences; returns their texts."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for number, sentences in enumerate(documents(count, seed)):
        joint = "" if "。" in sentences[0] + sentences[-1] else " "
        paragraphs = [sentences[i : i + 5] for i in range(0, len(sentences), 5)]
        texts.append("\n\n".join(joint.join(paragraph) for paragraph in paragraphs) + "\n")
        (folder / f"document-{number:04d}.txt").write_text(texts[-1], encoding="utf-8")
    return texts


def _fill(template: str, rng: random.Random) -> str:
    words = {
        "{n}": _NOUNS,
        "{v}": _VERBS,
        "{a}": _ADJECTIVES,
        "{d}": _ADVERBS,
        "{N}": _NAMES,
        "{k}": [str(k) for k in range(2, 40)],
        "{s}": _SUBJECTS,
        "{o}": _OBJECTS,
        "{q}": _QUALITIES,
    }
    if "。" in template or "？" in template or "！" in template:
        words["{v}"] = _ACTIONS
    for slot, choices in words.items():
        while slot in template:
            template = template.replace(slot, rng.choice(choices), 1)
    return template
