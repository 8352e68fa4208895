"""Octets to text: declared charset, then UTF-8, then windows-1252, and no character that breaks JSON, a log or a database.

Labels are those browsers and mail programs agree on (WHATWG Encoding Standard, s4.2), so ``iso-8859-1`` means
windows-1252. Two differences: ``us-ascii`` is strict here, since mail that says it and holds 8-bit octets is UTF-8 far
more often than windows-1252; and what WHATWG replaces whole (ISO-2022-KR, HZ) or leaves out on purpose (UTF-7: a second
spelling for every character) is unknown here, which is a defect and no error.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

FALLBACK = "windows-1252"
"""What octets are read as when nothing else fits; its five holes become U+FFFD."""

LABEL_OCTETS_MAX = 64
"""Longer charset labels are unknown; the longest of WHATWG has 19 characters."""

# Canonical name -> (Python codec, labels beside the name itself).
_CHARSETS: dict[str, tuple[str, str]] = {
    "us-ascii": ("ascii", "ascii ansi_x3.4-1968 iso-ir-6 us iso646-us 646"),
    "utf-8": ("utf-8", "utf8 unicode-1-1-utf-8 unicode11utf8 unicode20utf8 x-unicode20utf8"),
    "windows-1252": (
        "cp1252",
        "cp1252 cp819 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 iso_8859-1 iso_8859-1:1987 l1 latin1 latin-1 csisolatin1 x-cp1252",
    ),
    "iso-8859-2": ("iso8859-2", "csisolatin2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2"),
    "iso-8859-3": ("iso8859-3", "csisolatin3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3"),
    "iso-8859-4": ("iso8859-4", "csisolatin4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4"),
    "iso-8859-5": ("iso8859-5", "csisolatincyrillic cyrillic iso-ir-144 iso8859-5 iso88595 iso_8859-5 iso_8859-5:1988"),
    "iso-8859-6": ("iso8859-6", "arabic asmo-708 csisolatinarabic ecma-114 iso-8859-6-e iso-8859-6-i iso-ir-127 iso8859-6"),
    "iso-8859-7": ("iso8859-7", "csisolatingreek ecma-118 elot_928 greek greek8 iso-ir-126 iso8859-7 iso88597 iso_8859-7 sun_eu_greek"),
    "iso-8859-8": ("iso8859-8", "csisolatinhebrew hebrew iso-8859-8-e iso-8859-8-i iso-ir-138 iso8859-8 logical visual"),
    "iso-8859-10": ("iso8859-10", "csisolatin6 iso-ir-157 iso8859-10 iso885910 l6 latin6"),
    "iso-8859-13": ("iso8859-13", "iso8859-13 iso885913"),
    "iso-8859-14": ("iso8859-14", "iso8859-14 iso885914"),
    "iso-8859-15": ("iso8859-15", "csisolatin9 iso8859-15 iso885915 iso_8859-15 l9 latin9 latin-9"),
    "iso-8859-16": ("iso8859-16", ""),
    "windows-1250": ("cp1250", "cp1250 x-cp1250"),
    "windows-1251": ("cp1251", "cp1251 x-cp1251"),
    "windows-1253": ("cp1253", "cp1253 x-cp1253"),
    "windows-1254": ("cp1254", "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 l5 latin5 x-cp1254"),
    "windows-1255": ("cp1255", "cp1255 x-cp1255"),
    "windows-1256": ("cp1256", "cp1256 x-cp1256"),
    "windows-1257": ("cp1257", "cp1257 x-cp1257"),
    "windows-1258": ("cp1258", "cp1258 x-cp1258"),
    "windows-874": ("cp874", "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620"),
    "koi8-r": ("koi8-r", "cskoi8r koi koi8 koi8_r"),
    "koi8-u": ("koi8-u", "koi8-ru"),
    "ibm866": ("cp866", "866 cp866 csibm866"),
    "macintosh": ("mac-roman", "csmacintosh mac x-mac-roman"),
    "x-mac-cyrillic": ("mac-cyrillic", "x-mac-ukrainian"),
    "gbk": ("gb18030", "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 iso-ir-58 x-gbk cp936"),
    "gb18030": ("gb18030", ""),
    "big5": ("big5hkscs", "big5-hkscs cn-big5 csbig5 x-x-big5 cp950"),
    "euc-jp": ("euc-jp", "cseucpkdfmtjapanese x-euc-jp"),
    "iso-2022-jp": ("iso2022-jp-ext", "csiso2022jp iso-2022-jp-1 iso-2022-jp-ms"),
    "shift_jis": ("cp932", "csshiftjis ms932 ms_kanji shift-jis sjis windows-31j x-sjis cp932"),
    "euc-kr": ("cp949", "cseuckr csksc56011987 iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 windows-949 cp949"),
    "utf-16be": ("utf-16-be", "unicodefffe"),
    "utf-16le": ("utf-16-le", "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16"),
}
_NAMES: dict[str, str] = {label: name for name, (_, labels) in _CHARSETS.items() for label in (name, *labels.split())}

# C0 but TAB, LF and CR; DEL; C1; surrogates (no strict codec yields them; some Chinese ones have been known to).
_FORBIDDEN_IN_BODY = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_FORBIDDEN_IN_LINE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ASCII_FORBIDDEN_IN_BODY = bytes(set(range(32)) - set(b"\t\n\r")) + b"\x7f"
_LINE_BREAKS = re.compile("[\r\n]+")
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Decoded(NamedTuple):
    """Text and how it came about.

    Attributes:
        text: as decoded; not scrubbed yet.
        used: canonical name of the charset that gave the text.
        lossy: the text may not be what was written: the declared charset was unknown or did not fit, or octets were replaced.
        unknown: the declared label names no charset we know.
    """

    text: str
    used: str
    lossy: bool
    unknown: bool


@lru_cache(maxsize=256)
def canonical(label: str) -> str | None:
    """Return the canonical name of charset *label*, or ``None`` when it is unknown."""
    if len(label) > LABEL_OCTETS_MAX:
        return None
    return _NAMES.get(label.strip(" \t\r\n\f'\"").lower())


def decode(octets: bytes, declared: str | None) -> Decoded:
    """Return the text of *octets*: by the *declared* label, else strict UTF-8, else windows-1252. Never raises."""
    name = canonical(declared) if declared else None
    unknown = bool(declared) and name is None
    if name is not None:
        text = _strictly(octets, _CHARSETS[name][0])
        if text is not None:
            return Decoded(text, name, lossy=False, unknown=False)
    text = _strictly(octets, "utf-8")
    if text is not None:
        return Decoded(text, "utf-8", lossy=name is not None and name != "us-ascii", unknown=unknown)
    return Decoded(octets.decode("cp1252", "replace"), FALLBACK, lossy=True, unknown=unknown)


def _strictly(octets: bytes, codec: str) -> str | None:
    try:
        return octets.decode(codec)
    except UnicodeError:
        return None


def scrub_line(text: str) -> str:
    """Return *text* fit for one line: line breaks become a space, other controls but TAB become U+FFFD."""
    if text.isprintable():
        return text
    return _FORBIDDEN_IN_LINE.sub("\ufffd", _LINE_BREAKS.sub(" ", text))


def scrub_body(text: str) -> str:
    """Return *text* with controls but TAB, CR and LF replaced by U+FFFD."""
    if text.isascii() and len(text.encode().translate(None, _ASCII_FORBIDDEN_IN_BODY)) == len(text):
        return text  # the common case, at a third of the cost
    return _FORBIDDEN_IN_BODY.sub("\ufffd", text)


def scrub_address(text: str) -> str:
    """Return *text* fit for an address or the name beside it: as ``scrub_line``, and nothing in it turns the reading direction.

    A right-to-left override makes one mailbox look like another (Unicode TR 36 s2.5).
    """
    return scrub_line(text) if text.isascii() else _BIDI.sub("\ufffd", scrub_line(text))
