"""What may stand beside a small byte-level tokenizer: chat templates and names of tokens, and where an answer ends. For
the recordings of `record_settings.py`."""

import json
from typing import Any

TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NAMES = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
WRITES_NAMES = "{{ bos_token }}{{ pad_token }}|{{ unk_token }}|{{ image_token }}|{{ tool_token }}" + TURNS


def files(config: dict[str, Any], **others: Any) -> dict[str, str]:
    """Files beside a tokenizer: its configuration, and others by the beginnings of their names."""
    names = {
        "names": "special_tokens_map.json",
        "template": "chat_template.jinja",
        "default": "additional_chat_templates/default.jinja",
        "chat": "additional_chat_templates/chat.jinja",
    }
    written = {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **NAMES, **config}}
    written |= {names[name]: content for name, content in others.items()}
    return {name: each if isinstance(each, str) else json.dumps(each) for name, each in written.items()}


BESIDE = {
    "pad": files({"pad_token": "<|eot_id|>", "chat_template": WRITES_NAMES}),
    "pad as an object": files({"pad_token": {"content": "<|eot_id|>", "__type": "AddedToken"}}, template=WRITES_NAMES),
    "pad of the older file": files({}, names={"pad_token": "<|eot_id|>"}, template=WRITES_NAMES),
    "two files that differ": files(
        {"pad_token": "<|eot_id|>"}, names={"pad_token": "<|im_end|>"}, template=WRITES_NAMES
    ),
    "unk": files({"unk_token": "<|start_header_id|>", "chat_template": WRITES_NAMES}),
    "extra, by name": files({"extra_special_tokens": {"image_token": "<|end_header_id|>"}}, template=WRITES_NAMES),
    "a name of its own": files({"tool_token": "<|eot_id|>"}, template=WRITES_NAMES),
    "pad is a word": files({"pad_token": "!"}, template=WRITES_NAMES),
    "no bos": files({"bos_token": None}, template=WRITES_NAMES),
    "one": files({"chat_template": TURNS}),
    "a list of one": files({"chat_template": [{"name": "default", "template": TURNS}]}),
    "a list with default": files(
        {"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TURNS}]}
    ),
    "by name": files({"chat_template": {"rag": "x", "default": TURNS}}),
    "a list without default": files(
        {"chat_template": [{"name": "chat", "template": TURNS}, {"name": "rag", "template": "x"}]}
    ),
    "a list and a file": files({"chat_template": [{"name": "chat", "template": "x"}]}, template=TURNS),
    "a file beside the default": files({"chat_template": "x"}, template=TURNS, chat="y"),
    "files alone": files({"chat_template": "x"}, chat=TURNS),
    "a file named default": files({}, default=TURNS, chat="y"),
}
"""Files beside the tokenizer. Those without a template of the name default have no conversation."""

ASK = [{"role": "user", "content": "hello the"}]
THOUGHT = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "the hall", "reasoning_content": "an ant, and then?"},
]

EOS, TURN_END, OTHER = 1, 3, 6
ENDS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "number": ({"eos_token_id": TURN_END}, None),
    "list": ({"eos_token_id": [EOS, TURN_END]}, None),
    "list without eos": ({"eos_token_id": [TURN_END, OTHER]}, None),
    "generation_config wins": ({"eos_token_id": TURN_END}, {"eos_token_id": [EOS, OTHER]}),
    "a number wins": ({"eos_token_id": [EOS, TURN_END]}, {"eos_token_id": OTHER}),
    "generation_config is silent": ({"eos_token_id": [EOS, TURN_END]}, {"bos_token_id": 0}),
    "null": ({"eos_token_id": None}, None),
}
"""What config.json and generation_config.json (None: it is not there) say of where an answer ends."""
