"""Language codes of test sets as BCP-47 tags: `eng_Latn`, `cat`, `zho-TW`, `cs_CZ` -> en, ca, zh-TW, cs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dragoman.corpora.languages import SCRIPT_SUBTAGS, TABLE, normalise_tag
from dragoman.errors import DataError

# ISO 639-3 -> ISO 639-1; the second block names the member of a macrolanguage that test sets use for the whole.
SHORT = dict(
    re.findall(
        r"(\w+):(\w+)",
        """
aar:aa abk:ab afr:af aka:ak amh:am ara:ar arg:an asm:as ava:av aym:ay aze:az bak:ba bam:bm bel:be ben:bn bis:bi bod:bo
bos:bs bre:br bul:bg cat:ca ces:cs cha:ch che:ce chu:cu chv:cv cor:kw cos:co cre:cr cym:cy dan:da deu:de div:dv dzo:dz
ell:el eng:en epo:eo est:et eus:eu ewe:ee fao:fo fas:fa fij:fj fin:fi fra:fr fry:fy ful:ff gla:gd gle:ga glg:gl glv:gv
grn:gn guj:gu hat:ht hau:ha heb:he her:hz hin:hi hmo:ho hrv:hr hun:hu hye:hy ibo:ig ido:io iii:ii iku:iu ile:ie ina:ia
ind:id ipk:ik isl:is ita:it jav:jv jpn:ja kal:kl kan:kn kas:ks kat:ka kau:kr kaz:kk khm:km kik:ki kin:rw kir:ky kom:kv
kon:kg kor:ko kua:kj kur:ku lao:lo lat:la lav:lv lim:li lin:ln lit:lt ltz:lb lub:lu lug:lg mah:mh mal:ml mar:mr mkd:mk
mlg:mg mlt:mt mon:mn mri:mi msa:ms mya:my nau:na nav:nv nbl:nr nde:nd ndo:ng nep:ne nld:nl nno:nn nob:nb nor:no nya:ny
oci:oc oji:oj ori:or orm:om oss:os pan:pa pli:pi pol:pl por:pt pus:ps que:qu roh:rm ron:ro run:rn rus:ru sag:sg san:sa
sin:si slk:sk slv:sl sme:se smo:sm sna:sn snd:sd som:so sot:st spa:es sqi:sq srd:sc srp:sr ssw:ss sun:su swa:sw swe:sv
tah:ty tam:ta tat:tt tel:te tgk:tg tgl:tl tha:th tir:ti ton:to tsn:tn tso:ts tuk:tk tur:tr twi:tw uig:ug ukr:uk urd:ur
uzb:uz ven:ve vie:vi vol:vo wln:wa wol:wo xho:xh yid:yi yor:yo zha:za zho:zh zul:zu

als:sq arb:ar ayr:ay azj:az cmn:zh ekk:et fuv:ff gaz:om gug:gn khk:mn kmr:ku lvs:lv npi:ne ory:or pbt:ps pes:fa plt:mg
quy:qu swh:sw uzn:uz ydd:yi zsm:ms
""",
    )
)


def tag_of(code: str) -> str:
    """The tag of one code; the script is left out where it is the usual one of a language that the table knows.

    Raises DataError for what is no language code.
    """
    first, *rest = code.replace("_", "-").split("-")
    tag = normalise_tag("-".join([SHORT.get(first.lower(), first), *rest]))
    language, *rest = tag.split("-")
    return "-".join([language, *(part for part in rest if not _usual(language, part))])


def _usual(language: str, part: str) -> bool:
    if language == "zh":
        return part in ("Hans", "CN")
    if len(part) != 4 or language not in TABLE:
        return False
    script = SCRIPT_SUBTAGS.get(part)
    return script is None or script in TABLE[language][1].split()


def tags_of(codes: Sequence[str]) -> list[str]:
    """The tags of the codes of one test set: a region goes too where no other column has that language.

    `cs_CZ` is `cs`; beside `por`, `por-BR` stays `pt-BR`, and so does a variant that the language table has by itself.
    """
    tags = [tag_of(code) for code in codes]
    variants = Counter(tag.split("-")[0] for tag in tags)
    return [_without_region(tag) if tag not in TABLE and variants[tag.split("-")[0]] == 1 else tag for tag in tags]


def by_tag(files: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """Language tag -> file, of codes and files. Raises DataError where several files are of one language."""
    found: dict[str, list[Path]] = {}
    for tag, (_, file) in zip(tags_of([code for code, _ in files]), files, strict=True):
        found.setdefault(tag, []).append(file)
    if twice := [f"{tag}: {', '.join(map(str, those))}" for tag, those in found.items() if len(those) > 1]:
        raise DataError(f"several files are of one language ({'; '.join(twice)}); keep one of each")
    return {tag: file for tag, (file,) in found.items()}


def _without_region(tag: str) -> str:
    return "-".join(part for part in tag.split("-") if not (part.isupper() or part.isdigit()))
