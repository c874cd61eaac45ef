r"""How a byte-level vocabulary cuts text into words before merging, by the name a GGUF file gives it.

``tokenizer.ggml.pre`` names the cut instead of describing it, so the descriptions live here: those of the
``tokenizer.json`` files that the names stand for. Two of them also normalise to NFC or take whole words from the
vocabulary before trying merges.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from wootz.core.errors import ModelFileError


@dataclass(frozen=True)
class Cut:
    """``patterns`` split one after the other, each inside the pieces that the one before left."""

    patterns: tuple[str, ...] = ()
    single_digits: bool = False
    gpt2_words: bool = False
    nfc: bool = False
    whole_words_first: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        steps: list[PreTokenizer] = [Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        if self.single_digits:
            steps.append(Digits(individual_digits=True))
        return Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=self.gpt2_words)])


_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENGLISH_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

_GPT2 = Cut(gpt2_words=True)
_STARCODER = Cut(single_digits=True, gpt2_words=True)
_LLAMA3 = Cut(
    (rf"{_ENGLISH_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_PUNCTUATION_AND_SPACE}",), whole_words_first=True, adds_bos=True
)
_DBRX = Cut(_LLAMA3.patterns)
_QWEN2 = Cut((rf"{_ENGLISH_SUFFIX}|{_WORD}|\p{{N}}|{_PUNCTUATION_AND_SPACE}",), nfc=True)

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = Cut(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    whole_words_first=True,
    adds_bos=True,
)
_O200K = Cut(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENGLISH_SUFFIX}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENGLISH_SUFFIX}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    whole_words_first=True,
)
_DEEPSEEK_CODER = Cut(
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+"),
    single_digits=True,
)
_CASED_LETTERS = (  # Latin, Greek, Cyrillic and their like, as DeepSeek LLM's file spells them out
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄ"
    "ῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲"
    "𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK_LLM = Cut(
    (
        r"[\r\n]",
        rf"\s?[{_CASED_LETTERS}]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        "[一-龥\u0800-一가-\ud7ff]+",
    ),
    single_digits=True,
)
_DEEPSEEK_V3 = Cut(
    (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        # The line ends themselves, as in DeepSeek's file: the fast encoder knows a cut by its exact spelling.
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+".replace(r"\r\n", "\r\n"),
    )
)

PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": _LLAMA3.patterns[0],
    "qwen": _QWEN2.patterns[0],
    "o200k": _O200K.patterns[0],
    "code": r" {2,}|\t+|" + _LLAMA3.patterns[0],
}
"""Cuts for a vocabulary of one's own. ``code`` is cl100k's, but a run of spaces or of tabs is a word by itself, so that
an indentation becomes one token and the word behind it is the word that it is elsewhere."""

_CUTS = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "mpt", "olmo"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _STARCODER),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _DBRX),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4"), _O200K),
    "tekken": _TEKKEN,
    "deepseek-coder": _DEEPSEEK_CODER,
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-v3": _DEEPSEEK_V3,
}


def cut_named(name: str) -> Cut:
    """Raises `ModelFileError` for a name we don't know: to guess would be to feed the model wrong tokens in silence."""
    if name not in _CUTS:
        raise ModelFileError(f'pre-tokenizer "{name}" is not supported (supported: {", ".join(_CUTS)})')
    return _CUTS[name]
