"""Guesses a text's language from its script and its commonest words; in microseconds.

Made to choose between models, so it says nothing rather than something doubtful: short technical
phrases belong to no language. Any function from text to a code or None can take its place.
"""

from __future__ import annotations

from typing import Final

_CHARACTERS_READ: Final = 200
_TURKISH_LETTERS: Final = frozenset("ğşıĞŞİ")

_ENGLISH: Final = """
    a about after all also an and any are as at be because been but by can cannot could did do does
    for from get had has have he her his how i i'm if in into is it its just me my no not of on one
    or our out please she should so some than that the their them then there these they this those
    to up was we were what when where which who why will with would you your
"""
_TURKISH: Final = """
    acaba ama ancak bana bazı belki ben beni benim bir biraz biri biz bizim bu buna bunu bunun böyle
    çok çünkü da daha de değil diye en fakat gibi hangi hangisi hem hep her hiç için ile ise kadar
    kaç ki kim kimse mi mı mu mü nasıl ne neden nerede nereye niçin niye o olan olarak oldu olduğu
    olur onlar onu onun sen seni senin siz sizin şey şu tüm var ve veya ya yani yok yapmak istiyorum
    edebilir miyim lütfen
"""
_ENGLISH_WORDS: Final = frozenset(_ENGLISH.split())
_TURKISH_WORDS: Final = frozenset(_TURKISH.split())
_LETTER_WEIGHT: Final = 2  # a letter that Turkish alone has counts as two stop words

# A script that mostly one language uses stands for it. First and last code point.
_SCRIPTS: Final[tuple[tuple[int, int, str], ...]] = (
    (0x0370, 0x03FF, "el"),
    (0x0400, 0x052F, "ru"),
    (0x0590, 0x05FF, "he"),
    (0x0600, 0x06FF, "ar"),
    (0x0900, 0x097F, "hi"),
    (0x0E00, 0x0E7F, "th"),
    (0x3040, 0x30FF, "ja"),
    (0x4E00, 0x9FFF, "zh"),
    (0xAC00, 0xD7AF, "ko"),
)


def detect_language(text: str) -> str | None:
    """Return an ISO 639-1 code, or None when the text does not tell.

    Latin script is told apart for English and Turkish only, by stop words and by the letters that
    Turkish alone has; other scripts stand for the language that uses them most.
    """
    text = text[:_CHARACTERS_READ]
    if text.isascii():
        words = text.lower().split()
        turkish = 0
    else:
        language = _by_script(text)
        if language is not None:
            return language
        words = text.replace("İ", "i").lower().split()
        turkish = 0 if _TURKISH_LETTERS.isdisjoint(text) else _LETTER_WEIGHT
    turkish += len(_TURKISH_WORDS.intersection(words))
    english = len(_ENGLISH_WORDS.intersection(words))
    if english == turkish:
        return None
    return "en" if english > turkish else "tr"


def _by_script(text: str) -> str | None:
    """Return the language of the script that holds most of the letters outside of Latin."""
    if max(text) < "\u0370":
        return None  # all Latin
    counts: dict[str, int] = {}
    letters = 0
    for character in text:
        point = ord(character)
        if point < 0x0370:
            letters += character.isalpha()
            continue
        for first, last, language in _SCRIPTS:
            if first <= point <= last:
                counts[language] = counts.get(language, 0) + 1
                break
    if not counts:
        return None
    if "ja" in counts and "zh" in counts:
        return "ja"  # Japanese mixes both
    language = max(counts, key=counts.__getitem__)
    return language if counts[language] * 2 >= letters else None
