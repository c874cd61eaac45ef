"""Values that nobody told us of: keys by the format their makers gave them, and random text where a secret belongs.

The formats are those that the makers publish so that scanners find them. The second kind is a name that says secret
(``password``, ``api_key``, ``--master-key``, ``Bearer``), and after it a text as random as a key. References,
placeholders and code are none.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

FORMATS: tuple[tuple[str, str, re.Pattern[str]], ...] = tuple(
    (name, hint, re.compile(pattern, re.ASCII))
    for name, hint, pattern in (
        ("private key", "PRIVATE KEY", r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----\s*(?:\\n)?[A-Za-z0-9+/=\\\s]{32}"),
        ("Anthropic key", "sk-ant-", r"\bsk-ant-[\w-]{20,}"),
        ("API key", "sk-", r"\bsk-(?!ant-)(?:proj-|or-v1-|svcacct-|wootz-)?[\w-]{20,}"),
        ("Stripe key", "k_", r"\b[srp]k_(?:live|test)_[0-9A-Za-z]{16,}"),
        ("AWS access key id", "IA", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
        ("Alibaba Cloud access key id", "LTAI", r"\bLTAI[0-9A-Za-z]{16,26}\b"),
        ("Google API key", "AIza", r"\bAIza[\w-]{35}"),
        ("GitHub token", "gh", r"\bgh[pousr]_[0-9A-Za-z]{30,}"),
        ("GitHub token", "github_pat_", r"\bgithub_pat_\w{30,}"),
        ("GitLab token", "glpat-", r"\bglpat-[\w-]{20,}"),
        ("Slack token", "xox", r"\bxox[abprs]-[\w-]{20,}"),
        ("Hugging Face token", "hf_", r"\bhf_[0-9A-Za-z]{30,}"),
        ("npm token", "npm_", r"\bnpm_[0-9A-Za-z]{36}"),
        ("PyPI token", "pypi-", r"\bpypi-[\w-]{40,}"),
        ("Vault token", "hv", r"\bhv[sb]\.[\w-]{20,}"),
        ("SendGrid key", "SG.", r"\bSG\.[\w-]{16,}\.[\w-]{16,}"),
        ("JSON web token", "eyJ", r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{16,}"),
        ("password in a URL", "@", r"://[^\s/@:\"'<>{}]{0,64}:[^\s/@\"'<>{}$]{8,128}@"),
    )
)
"""Name, what every text with one contains (quick to look for), and the pattern."""

SECRET_NAME = (
    r"(?:pass(?:word|wd|phrase)|secret|token|(?:api|access|private|master|account|signing)[_-]?key|credential)s?"
)
_ASSIGNED = re.compile(
    rf"(?:{SECRET_NAME}\w{{0,20}}\\?[\"']?\s{{0,4}}(?:=>|:=|[:=])\s{{0,4}}(?:bearer\s)?"
    rf"|--[\w-]{{0,30}}(?:key|token|secret|password)\s{{1,4}}|\b(?:bearer|basic)\s{{1,2}})"
    r"\\?[\"']?(?P<value>[^\s\"'`,;<>(){}\[\]$&\\|*]{12,512})",
    re.ASCII | re.IGNORECASE,
)
_REFERENCE = re.compile(r"(?:env|file|store|vault|aws|transit|arn|sha256|https?|data|path):")
_PLACEHOLDER = re.compile(
    r"\.\.\.|…|x{4}|example|change.?me|placeholder|your[-_]|dummy|redacted|not[-_]a|secret[-_]|test[-_]|0123456|1234567|abcdefg"
    r"|(.)\1{5}|qwerty",
    re.IGNORECASE,
)
PRAGMA = "wootz: no secret"


def find(text: str) -> Iterator[tuple[int, int, str]]:
    """Begin, end and kind of what looks like a secret. Lines with the pragma are passed over."""
    taken = 0
    for name, hint, pattern in FORMATS:
        for match in pattern.finditer(text) if hint in text else ():
            if not _PLACEHOLDER.search(match[0]) and not _pragma(text, match.start()):
                yield match.start(), match.end(), name
    for match in _ASSIGNED.finditer(text):
        start, value = match.start("value"), match["value"]
        if start >= taken and is_random(value) and not _pragma(text, start):
            taken = match.end()
            yield start, match.end(), "random text where a secret belongs"


def is_random(value: str) -> bool:
    """Whether it has a piece that is neither a word, a number, a date nor a version, but drawn by a machine."""
    if _REFERENCE.match(value) or _PLACEHOLDER.search(value):
        return False
    piece = max(re.split(r"[-_./:+=%@~#?!]", value), key=len)
    letters, digits = sum(map(str.isalpha, piece)), sum(map(str.isdigit, piece))
    if len(piece) >= 12 and letters >= 2 and digits >= 2:
        return entropy(piece) >= 3.0
    mixed = not piece.islower() and not piece.isupper()
    return len(piece) >= 20 and mixed and entropy(piece) >= (4.0 if digits else 4.2)  # Names of classes stay below.


def entropy(text: str) -> float:
    """Shannon's, in bits a character."""
    return -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values())


def _pragma(text: str, place: int) -> bool:
    end = text.find("\n", place)
    return PRAGMA in text[text.rfind("\n", 0, place) + 1 : end if end >= 0 else None]
