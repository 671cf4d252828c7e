"""Text to token ids and back: the tokenizer files of the LLaMA family, training a new one, changing formats.

Text never turns into a control token: `<s>` written in a document is four ordinary characters. Independent of
conversations, rows and files of text."""

from llama_jax.data.tokenizers.conversion import files_of_vocabulary, hugging_face_files, llama2c_bytes, meta_files
from llama_jax.data.tokenizers.hugging_face import HuggingFaceTokenizer
from llama_jax.data.tokenizers.llama2c import Llama2cTokenizer
from llama_jax.data.tokenizers.loading import has_tokenizer, load_tokenizer, tokenizer_from_files
from llama_jax.data.tokenizers.sentencepiece_model import SentencePieceTokenizer
from llama_jax.data.tokenizers.settings import stop_ids_of, with_named_templates, with_padding_token, with_stop_ids
from llama_jax.data.tokenizers.tiktoken_model import TiktokenTokenizer
from llama_jax.data.tokenizers.tokenizer import Tokenizer
from llama_jax.data.tokenizers.training import train_tokenizer
from llama_jax.data.tokenizers.vocabulary import Vocabulary, vocabulary_of

__all__ = [
    "HuggingFaceTokenizer",
    "Llama2cTokenizer",
    "SentencePieceTokenizer",
    "TiktokenTokenizer",
    "Tokenizer",
    "Vocabulary",
    "files_of_vocabulary",
    "has_tokenizer",
    "hugging_face_files",
    "llama2c_bytes",
    "load_tokenizer",
    "meta_files",
    "stop_ids_of",
    "tokenizer_from_files",
    "train_tokenizer",
    "vocabulary_of",
    "with_named_templates",
    "with_padding_token",
    "with_stop_ids",
]
