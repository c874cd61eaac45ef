"""Text to token ids and back: tokenizers, chat templates, the streaming decoder. The public face."""

from wootz.core.errors import MissingExtraError

try:
    import tokenizers as _  # noqa: F401
except ImportError:
    raise MissingExtraError("tokenization", "engine", "tokenizers") from None

from wootz.tokenization.built_in_templates import built_in_template
from wootz.tokenization.byte_tokenizer import ByteTokenizer
from wootz.tokenization.chat_encoding import EncodedChat
from wootz.tokenization.chat_template import ChatTemplate
from wootz.tokenization.fingerprint import check_fingerprint, write_fingerprint
from wootz.tokenization.load import load_tiktoken, load_tokenizer
from wootz.tokenization.ranks import Encoding
from wootz.tokenization.stop import StopMatcher
from wootz.tokenization.stream import StreamDecoder
from wootz.tokenization.tokenizer import Tokenizer

__all__ = [
    "ByteTokenizer",
    "ChatTemplate",
    "EncodedChat",
    "Encoding",
    "StopMatcher",
    "StreamDecoder",
    "Tokenizer",
    "built_in_template",
    "check_fingerprint",
    "load_tiktoken",
    "load_tokenizer",
    "write_fingerprint",
]
