"""A small byte-level vocabulary whose ids tell how a text was split into words, and names of splittings. For the
recordings of `record_llama_cpp_words.py`."""

_PLAIN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PLAIN]
_CHARACTERS = [chr(byte) for byte in _PLAIN] + [chr(256 + number) for number in range(len(_OTHERS))]

MERGES = [
    *("1 2", "12 3", "4 5", "3 4", "123 45", "Ġ 1", "Ġ Ġ", "Ġ b", "Ġ .", ". .", "! Ċ", "/ Ċ", "Ċ Ċ", "Ċ Ġ", "Ċ c"),
    *("' s", "' S", "t 's", "I t", "a B", "B a", "o b", "$ 1", "+ +", "c a", "ca t"),
]
"""Each is seen only where its two parts are in one word."""
TOKENS = ["<b>", "<e>", *_CHARACTERS, *(merge.replace(" ", "") for merge in MERGES), "zed"]
"""BOS and EOS first; the last is a word that no merges make."""

TEXTS = [
    "It's 1234567 boats",
    "IT'S 12345 $123 .. ..!\n\nc",
    "aBacat BaB ob zed  zed",
    "  b \n\n b\n cat\t\t b/\n/\n",
    "123 1.5e10 x12345x +++ a_b|c <b> ^~",
    "don't we'll I'm; x='sat'",
]
NAMES = [
    *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    *("smaug-bpe", "dbrx", "glm4", "chatglm-bpe", "gpt-2", "phi-2", "olmo", "exaone4", "mellum", "trillion"),
    *("smollm", "starcoder", "refact", "command-r", "minerva-7b", "qwen2", "megrez", "deepseek-r1-qwen"),
    *("tekken", "gpt-4o", "llama4", "default", "nameless"),
]
"""Values of `tokenizer.ggml.pre`; `nameless`: the key is not there."""
