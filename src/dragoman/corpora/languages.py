"""Languages by BCP-47 tag: English name, scripts, family, and the label that py3langid gives.

A tag outside the table is allowed where it is well-formed (nothing is then known about its script); a malformed tag is
an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from dragoman.errors import DataError

TAG = re.compile(
    r"(?P<language>[a-z]{2,3})(-[a-z]{3}){0,3}(-(?P<script>[a-z]{4}))?(-(?P<region>[a-z]{2}|\d{3}))?"
    r"(-([a-z0-9]{5,8}|\d[a-z0-9]{3}))*(-[a-wyz0-9](-[a-z0-9]{2,8})+)*(-x(-[a-z0-9]{1,8})+)?",
    re.IGNORECASE,
)

SCRIPT_SUBTAGS = {
    "Latn": "Latin", "Cyrl": "Cyrillic", "Grek": "Greek", "Arab": "Arabic", "Hebr": "Hebrew", "Deva": "Devanagari",
    "Beng": "Bengali", "Hans": "Han", "Hant": "Han", "Hani": "Han", "Mong": "Mongolian", "Tfng": "Tifinagh",
    "Thai": "Thai", "Tglg": "Tagalog", "Tibt": "Tibetan", "Adlm": "Adlam", "Lana": "Tai Tham", "Gran": "Grantha",
    "Java": "Javanese",
}  # fmt: skip

SCRIPT_NAMES = SCRIPT_SUBTAGS | {"Hans": "Simplified", "Hant": "Traditional"}
REGIONS = {
    "AE": "United Arab Emirates", "AO": "Angola", "AR": "Argentina", "AT": "Austria", "AU": "Australia",
    "BE": "Belgium", "BO": "Bolivia", "BR": "Brazil", "CA": "Canada", "CH": "Switzerland", "CL": "Chile",
    "CN": "China", "CO": "Colombia", "CR": "Costa Rica", "CU": "Cuba", "CY": "Cyprus", "DE": "Germany",
    "DO": "Dominican Republic", "DZ": "Algeria", "EC": "Ecuador", "EG": "Egypt", "ES": "Spain", "FR": "France",
    "GB": "United Kingdom", "GR": "Greece", "GT": "Guatemala", "HK": "Hong Kong", "IE": "Ireland", "IN": "India",
    "IQ": "Iraq", "IR": "Iran", "IT": "Italy", "JO": "Jordan", "JP": "Japan", "KR": "South Korea", "LB": "Lebanon",
    "LU": "Luxembourg", "MA": "Morocco", "MD": "Moldova", "ME": "Montenegro", "MO": "Macao", "MX": "Mexico",
    "MY": "Malaysia", "MZ": "Mozambique", "NG": "Nigeria", "NL": "Netherlands", "NO": "Norway", "NZ": "New Zealand",
    "PE": "Peru", "PH": "Philippines", "PK": "Pakistan", "PR": "Puerto Rico", "PT": "Portugal", "PY": "Paraguay",
    "RO": "Romania", "RS": "Serbia", "RU": "Russia", "SA": "Saudi Arabia", "SE": "Sweden", "SG": "Singapore",
    "SY": "Syria", "TN": "Tunisia", "TW": "Taiwan", "UA": "Ukraine", "US": "United States", "UY": "Uruguay",
    "VE": "Venezuela", "ZA": "South Africa", "419": "Latin America",
}  # fmt: skip
"""Names of regions that tags often bear; another one is named by its subtag."""

# The first word of a letter's Unicode name is its script, apart from these.
SCRIPT_OF_NAME = {
    "CJK": "Han", "IDEOGRAPHIC": "Han", "CANADIAN": "Canadian Aboriginal", "TAI": "Tai Tham", "MICRO": "Common",
    "MODIFIER": "Common", "FEMININE": "Latin", "MASCULINE": "Latin", "OHM": "Greek", "KELVIN": "Latin",
    "ANGSTROM": "Latin", "MATHEMATICAL": "Common", "DOUBLE-STRUCK": "Common", "SCRIPT": "Common",
    "KATAKANA-HIRAGANA": "Katakana",
}  # fmt: skip


@dataclass(frozen=True)
class Language:
    """What is known about one tag."""

    tag: str
    name: str
    """With the script or region that the tag bears: Chinese (Traditional), Portuguese (Portugal)."""
    scripts: tuple[str, ...]
    """Unicode scripts that its letters come from; empty where nothing is known."""
    family: str
    langid: str
    """Label of py3langid, "" where it has none."""


# tag: name, scripts, family (branch within Indo-European), label of py3langid
TABLE = {
    "af": ("Afrikaans", "Latin", "Germanic", "af"),
    "am": ("Amharic", "Ethiopic", "Semitic", "am"),
    "ang": ("Old English", "Latin", "Germanic", ""),
    "ar": ("Arabic", "Arabic", "Semitic", "ar"),
    "ast": ("Asturian", "Latin", "Romance", ""),
    "az": ("Azerbaijani", "Latin", "Turkic", "az"),
    "be": ("Belarusian", "Cyrillic", "Slavic", "be"),
    "bg": ("Bulgarian", "Cyrillic", "Slavic", "bg"),
    "bn": ("Bengali", "Bengali", "Indo-Aryan", "bn"),
    "bo": ("Tibetan", "Tibetan", "Sino-Tibetan", ""),
    "br": ("Breton", "Latin", "Celtic", "br"),
    "bs": ("Bosnian", "Latin", "Slavic", "bs"),
    "ca": ("Catalan", "Latin", "Romance", "ca"),
    "cs": ("Czech", "Latin", "Slavic", "cs"),
    "cy": ("Welsh", "Latin", "Celtic", "cy"),
    "da": ("Danish", "Latin", "Germanic", "da"),
    "de": ("German", "Latin", "Germanic", "de"),
    "dz": ("Dzongkha", "Tibetan", "Sino-Tibetan", "dz"),
    "ee": ("Ewe", "Latin", "Niger-Congo", ""),
    "el": ("Greek", "Greek", "Hellenic", "el"),
    "en": ("English", "Latin", "Germanic", "en"),
    "eo": ("Esperanto", "Latin", "Constructed", "eo"),
    "es": ("Spanish", "Latin", "Romance", "es"),
    "et": ("Estonian", "Latin", "Uralic", "et"),
    "eu": ("Basque", "Latin", "Basque", "eu"),
    "fa": ("Persian", "Arabic", "Iranian", "fa"),
    "fi": ("Finnish", "Latin", "Uralic", "fi"),
    "fil": ("Filipino", "Latin", "Austronesian", "tl"),
    "fo": ("Faroese", "Latin", "Germanic", "fo"),
    "fr": ("French", "Latin", "Romance", "fr"),
    "frp": ("Arpitan", "Latin", "Romance", ""),
    "fur": ("Friulian", "Latin", "Romance", ""),
    "fy": ("West Frisian", "Latin", "Germanic", "fy"),
    "ga": ("Irish", "Latin", "Celtic", "ga"),
    "gd": ("Scottish Gaelic", "Latin", "Celtic", "gd"),
    "gl": ("Galician", "Latin", "Romance", "gl"),
    "grc": ("Ancient Greek", "Greek", "Hellenic", "grc"),
    "gu": ("Gujarati", "Gujarati", "Indo-Aryan", "gu"),
    "ha": ("Hausa", "Latin", "Chadic", "ha"),
    "he": ("Hebrew", "Hebrew", "Semitic", "he"),
    "hi": ("Hindi", "Devanagari", "Indo-Aryan", "hi"),
    "hr": ("Croatian", "Latin", "Slavic", "hr"),
    "ht": ("Haitian Creole", "Latin", "Creole", "ht"),
    "hu": ("Hungarian", "Latin", "Uralic", "hu"),
    "hy": ("Armenian", "Armenian", "Armenian", "hy"),
    "ia": ("Interlingua", "Latin", "Constructed", ""),
    "id": ("Indonesian", "Latin", "Austronesian", "id"),
    "ig": ("Igbo", "Latin", "Niger-Congo", "ig"),
    "is": ("Icelandic", "Latin", "Germanic", "is"),
    "it": ("Italian", "Latin", "Romance", "it"),
    "ja": ("Japanese", "Han Hiragana Katakana", "Japonic", "ja"),
    "jv": ("Javanese", "Latin", "Austronesian", "jv"),
    "ka": ("Georgian", "Georgian", "Kartvelian", "ka"),
    "kk": ("Kazakh", "Cyrillic", "Turkic", "kk"),
    "km": ("Khmer", "Khmer", "Austroasiatic", "km"),
    "kn": ("Kannada", "Kannada", "Dravidian", "kn"),
    "ko": ("Korean", "Hangul Han", "Koreanic", "ko"),
    "ku": ("Kurdish", "Latin", "Iranian", "ku"),
    "ky": ("Kyrgyz", "Cyrillic", "Turkic", "ky"),
    "la": ("Latin", "Latin", "Italic", "la"),
    "lb": ("Luxembourgish", "Latin", "Germanic", "lb"),
    "lg": ("Ganda", "Latin", "Niger-Congo", "lg"),
    "ln": ("Lingala", "Latin", "Niger-Congo", "ln"),
    "lo": ("Lao", "Lao", "Kra-Dai", "lo"),
    "lt": ("Lithuanian", "Latin", "Baltic", "lt"),
    "lv": ("Latvian", "Latin", "Baltic", "lv"),
    "mg": ("Malagasy", "Latin", "Austronesian", "mg"),
    "mi": ("Maori", "Latin", "Austronesian", ""),
    "mk": ("Macedonian", "Cyrillic", "Slavic", "mk"),
    "ml": ("Malayalam", "Malayalam", "Dravidian", "ml"),
    "mn": ("Mongolian", "Cyrillic", "Mongolic", "mn"),
    "mr": ("Marathi", "Devanagari", "Indo-Aryan", "mr"),
    "ms": ("Malay", "Latin", "Austronesian", "ms"),
    "mt": ("Maltese", "Latin", "Semitic", "mt"),
    "my": ("Burmese", "Myanmar", "Sino-Tibetan", "my"),
    "nb": ("Norwegian Bokmål", "Latin", "Germanic", "no"),
    "ne": ("Nepali", "Devanagari", "Indo-Aryan", "ne"),
    "nl": ("Dutch", "Latin", "Germanic", "nl"),
    "nn": ("Norwegian Nynorsk", "Latin", "Germanic", "nn"),
    "no": ("Norwegian", "Latin", "Germanic", "no"),
    "ny": ("Chichewa", "Latin", "Niger-Congo", ""),
    "oc": ("Occitan", "Latin", "Romance", "oc"),
    "om": ("Oromo", "Latin", "Cushitic", "om"),
    "or": ("Odia", "Oriya", "Indo-Aryan", "or"),
    "pa": ("Punjabi", "Gurmukhi", "Indo-Aryan", "pa"),
    "pl": ("Polish", "Latin", "Slavic", "pl"),
    "ps": ("Pashto", "Arabic", "Iranian", "ps"),
    "pt": ("Portuguese", "Latin", "Romance", "pt"),
    "pt-BR": ("Brazilian Portuguese", "Latin", "Romance", "pt"),
    "qu": ("Quechua", "Latin", "Quechuan", "qu"),
    "rm": ("Romansh", "Latin", "Romance", ""),
    "ro": ("Romanian", "Latin", "Romance", "ro"),
    "ru": ("Russian", "Cyrillic", "Slavic", "ru"),
    "rw": ("Kinyarwanda", "Latin", "Niger-Congo", "rw"),
    "sc": ("Sardinian", "Latin", "Romance", ""),
    "se": ("Northern Sami", "Latin", "Uralic", "se"),
    "si": ("Sinhala", "Sinhala", "Indo-Aryan", "si"),
    "sk": ("Slovak", "Latin", "Slavic", "sk"),
    "sl": ("Slovenian", "Latin", "Slavic", "sl"),
    "sn": ("Shona", "Latin", "Niger-Congo", "sn"),
    "so": ("Somali", "Latin", "Cushitic", "so"),
    "sq": ("Albanian", "Latin", "Albanian", "sq"),
    "sr": ("Serbian", "Cyrillic", "Slavic", "sr"),
    "st": ("Southern Sotho", "Latin", "Niger-Congo", "st"),
    "su": ("Sundanese", "Latin", "Austronesian", ""),
    "sv": ("Swedish", "Latin", "Germanic", "sv"),
    "sw": ("Swahili", "Latin", "Niger-Congo", "sw"),
    "ta": ("Tamil", "Tamil", "Dravidian", "ta"),
    "te": ("Telugu", "Telugu", "Dravidian", "te"),
    "tg": ("Tajik", "Cyrillic", "Iranian", "tg"),
    "th": ("Thai", "Thai", "Kra-Dai", "th"),
    "ti": ("Tigrinya", "Ethiopic", "Semitic", ""),
    "tl": ("Tagalog", "Latin", "Austronesian", "tl"),
    "tn": ("Tswana", "Latin", "Niger-Congo", ""),
    "tr": ("Turkish", "Latin", "Turkic", "tr"),
    "ug": ("Uyghur", "Arabic", "Turkic", "ug"),
    "uk": ("Ukrainian", "Cyrillic", "Slavic", "uk"),
    "ur": ("Urdu", "Arabic", "Indo-Aryan", "ur"),
    "uz": ("Uzbek", "Latin", "Turkic", "uz"),
    "vi": ("Vietnamese", "Latin", "Austroasiatic", "vi"),
    "wa": ("Walloon", "Latin", "Romance", "wa"),
    "wo": ("Wolof", "Latin", "Niger-Congo", ""),
    "xh": ("Xhosa", "Latin", "Niger-Congo", "xh"),
    "yi": ("Yiddish", "Hebrew", "Germanic", ""),
    "yo": ("Yoruba", "Latin", "Niger-Congo", "yo"),
    "yue": ("Cantonese", "Han", "Sino-Tibetan", "yue"),
    "zh": ("Chinese", "Han", "Sino-Tibetan", "zh"),
    "zh-TW": ("Chinese (Taiwan)", "Han", "Sino-Tibetan", "zh"),
    "zu": ("Zulu", "Latin", "Niger-Congo", "zu"),
}


def normalise_tag(tag: str) -> str:
    """A well-formed tag in its usual casing (`pt_br` -> `pt-BR`); DataError names the nearest known tag otherwise."""
    match = TAG.fullmatch(tag.strip().replace("_", "-"))
    if not match:
        raise DataError(f"{tag!r} is not a BCP-47 language tag such as de or pt-BR; {nearest(tag, TABLE)}")
    subtags = match[0].lower().split("-")
    for i, subtag in enumerate(subtags[1:], 1):
        if len(subtags[i - 1]) == 1:
            break
        if len(subtag) == 4 and subtag.isalpha():
            subtags[i] = subtag.title()
        elif len(subtag) == 2:
            subtags[i] = subtag.upper()
    return "-".join(subtags)


def is_near(a: str, b: str) -> bool:
    """Whether one of two tags says more or less of the same: ca and ca-ES do, pt-PT and pt-BR do not."""
    return f"{a}-".startswith(f"{b}-") or f"{b}-".startswith(f"{a}-")


def normalise_tags(tags: Iterable[str]) -> list[str]:
    """The tags in their usual casing; one DataError for all that are malformed."""
    found, faults = [], []
    for tag in tags:
        try:
            found.append(normalise_tag(tag))
        except DataError as e:
            faults.append(str(e))
    if faults:
        raise DataError("; ".join(faults))
    return found


def is_tag(tag: str) -> bool:
    """Whether a tag is well-formed and in its usual casing."""
    return bool(TAG.fullmatch(tag)) and normalise_tag(tag) == tag


def language(tag: str) -> Language:
    """What the table says of a well-formed tag, of its language where the full tag has no row of its own."""
    match = TAG.fullmatch(tag)
    assert match, tag
    row = TABLE.get(tag) or TABLE.get(match["language"].lower())
    name, scripts, family, langid = row or (tag, "", "", "")
    if row and tag not in TABLE:
        script, region = (match["script"] or "").title(), (match["region"] or "").upper()
        more = [SCRIPT_NAMES.get(script, script), REGIONS.get(region, region)]
        name += f" ({', '.join(filter(None, more))})" if any(more) else ""
    subtag = match["script"] and SCRIPT_SUBTAGS.get(match["script"].title())
    found = (subtag,) if subtag else () if match["script"] else tuple(scripts.split())
    return Language(tag, name, found, family, langid)


def nearest(given: str, known: Iterable[str]) -> str:
    """`did you mean ca (Catalan)?`, by tag or English name; known tags where nothing is near."""
    tags = list(known)
    full = {language(tag).name.lower(): tag for tag in reversed(tags)}
    names = {name.split(" (")[0]: tag for name, tag in full.items()} | full
    by_lower = {tag.lower(): tag for tag in tags}
    wanted = given.strip().lower().replace("_", "-")
    close = difflib.get_close_matches(wanted, [*names, *by_lower], n=1, cutoff=0.6)
    prefixed = [tag for lower, tag in by_lower.items() if lower.split("-")[0] in (wanted.split("-")[0], wanted[:2])]
    tag = (names | by_lower)[close[0]] if close else prefixed[0] if prefixed else None
    return f"did you mean {tag} ({language(tag).name})?" if tag else f"known are {listed(tags)}"


def listed(tags: Sequence[str], most: int = 40) -> str:
    """The tags with commas; where they are very many, the first of them and how many more."""
    more = f" and {len(tags) - most} more" if len(tags) > most else ""
    return ", ".join(tags[:most]) + more


@cache
def script_of(letter: str) -> str:
    """Unicode script of a letter, `Common` for letters that every script uses."""
    words = unicodedata.name(letter, "UNKNOWN").split()
    if words[0] in ("FULLWIDTH", "HALFWIDTH"):
        words = words[1:]
    return SCRIPT_OF_NAME.get(words[0], words[0].title())


def script_shares(texts: Iterable[str]) -> dict[str, float]:
    """Share of each script among the letters of the texts, most frequent first; empty without letters."""
    counts: Counter[str] = Counter()
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    for code, n in zip(*(found.tolist() for found in np.unique(codes, return_counts=True)), strict=True):
        if (letter := chr(code)).isalpha() and (script := script_of(letter)) != "Common":
            counts[script] += n
    total = sum(counts.values())
    return {script: n / total for script, n in counts.most_common()}


def script_share(tag: str, texts: Iterable[str]) -> float | None:
    """Share of letters in the scripts that the tag promises; None where no script is known or there are no letters."""
    expected = language(tag).scripts
    shares = script_shares(texts) if expected else {}
    return sum(shares.get(script, 0.0) for script in expected) if shares else None
