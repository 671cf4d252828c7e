"""A small byte-level tokenizer, chat templates and conversations, for the recordings of `record_chats.py`."""

import json

CONTROL = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_MERGES = ["h e", "l l", "Ġ t", "Ġt he", "a n", "Ċ Ċ", "Ġ Ġ", "Ġ a", "s t", "Ċ he", "! Ċ", "e r"]
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_TURN = "{{ '<|im_start|>' + message['role'] + '\\n' }}"
_HEADER = "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
TEMPLATES = {
    "chatml": "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    + _TURN
    + "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
    + _TURN
    + "{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}"
    "{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}",
    "llama3": "{{ bos_token }}{% for message in messages %}" + _HEADER + "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
}
"""ChatML, and Llama 2's and Llama 3's as published for transformers, with the answers marked for its masks."""


def _said(*contents: str) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


CONVERSATIONS = [
    _said("hello", "the hall"),
    [{"role": "system", "content": "an ant"}, *_said("hello the", "hell", "and then?", "the  stall!")],
    _said(" hello ", "  the\n\nhall\n"),
    _said("a\nb", "\nhe", "c", "\n\nhe"),
    _said("日本語 🙂?", "é中 the 🙂"),
    _said("12 + 34", "46", "12 - 34", "-22", "hello!\n", "!\nhello"),
]

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "hall",
            "description": "the <hall> & 'the' \"stall\" 日本",
            "parameters": {"type": "object", "properties": {"é": {"type": "string", "enum": ["a\n", "<b>"]}}},
        },
    }
]
_CALL = {"type": "function", "id": "1", "function": {"name": "hall", "arguments": {"é": "a\n", "n": [1, 2.5, None]}}}
TOOL_CHAT = [
    {"role": "user", "content": "hello the"},
    {"role": "assistant", "content": "", "tool_calls": [_CALL, _CALL]},
    {"role": "tool", "content": "12", "tool_call_id": "1", "name": "hall"},
]
"""A conversation with calls, in the manner of Hermes 2 Pro."""


def tokenizer_json() -> bytes:
    """Control tokens, all bytes, and a few merges, some of which span the border of prompt and answer."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    characters = [chr(byte) for byte in plain] + [chr(256 + number) for number in range(len(others))]
    tokens = [*CONTROL, *characters, *(merge.replace(" ", "") for merge in _MERGES)]
    added = [
        {
            "id": number,
            "content": name,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for number, name in enumerate(CONTROL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": _MERGES,
        },
    }
    return json.dumps(content).encode()
