"""Record the ids and the masks that Hugging Face transformers gives conversations, into `transformers_chats.json`.

pip install transformers && python tests/oracle/record_chats.py
"""

import json
from pathlib import Path

import tokenizers
import transformers
from small_chats import CONVERSATIONS, TEMPLATES, TOOL_CHAT, TOOL_TEMPLATE, TOOLS, tokenizer_json

if __name__ == "__main__":
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_buffer(tokenizer_json()), bos_token="<|bos|>", eos_token="<|eos|>"
    )
    recorded = {}
    for name, template in TEMPLATES.items():
        recorded[name] = []
        for messages in CONVERSATIONS:
            made.chat_template = template
            whole = made.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
            asked = made.apply_chat_template(
                messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=False
            )
            on = made.apply_chat_template(messages, continue_final_message=True, tokenize=True, return_dict=False)
            recorded[name].append(
                {
                    "ids": whole["input_ids"],
                    "answers": whole["assistant_masks"],
                    "prompt": list(asked),
                    "goes_on": list(on),
                }
            )
    asked = made.apply_chat_template(
        TOOL_CHAT,
        tools=TOOLS,
        chat_template=TOOL_TEMPLATE,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    recorded["tools"] = list(asked)
    target = Path(__file__).with_name("transformers_chats.json")
    lines = [f" {json.dumps(name)}: {json.dumps(chats)}" for name, chats in recorded.items()]
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{target}: transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
