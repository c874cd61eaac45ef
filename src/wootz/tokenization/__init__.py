"""Text to token ids and back: tokenizers, chat templates, the streaming decoder. The public face."""

from wootz.core.errors import MissingExtraError

try:
    import tokenizers as _  # noqa: F401
except ImportError:
    raise MissingExtraError("tokenization", "engine", "tokenizers") from None

from wootz.tokenization.chat_template import ChatTemplate
from wootz.tokenization.load import load_tokenizer
from wootz.tokenization.stop import StopMatcher
from wootz.tokenization.stream import StreamDecoder
from wootz.tokenization.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "StopMatcher", "StreamDecoder", "Tokenizer", "load_tokenizer"]
