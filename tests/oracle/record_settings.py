"""Record what Hugging Face transformers makes of the files beside a tokenizer and a model, into
`transformers_settings.json`: the ids of a conversation, and those that end an answer.

pip install transformers torch && python tests/oracle/record_settings.py
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import transformers
from small_chats import tokenizer_json
from small_settings import ASK, BESIDE, ENDS, THINKING, THOUGHT, files


def ids(beside: dict[str, str], messages: list[dict[str, str]], **options: Any) -> list[int] | None:
    """Of a conversation; None where there is no template for it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_bytes(tokenizer_json())
        for name, content in beside.items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_text(content)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        try:
            return list(tokenizer.apply_chat_template(messages, return_dict=False, **options))
        except ValueError as error:
            assert "multiple chat templates with no default" in str(error), error
            return None


def stop_ids(config: dict[str, Any], generation: dict[str, Any] | None) -> list[int] | None:
    sizes = dict.fromkeys(("hidden_size", "intermediate_size"), 8) | {"num_attention_heads": 2, "num_hidden_layers": 1}
    with tempfile.TemporaryDirectory() as folder:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=300, **sizes))
        model.save_pretrained(folder)
        (Path(folder) / "generation_config.json").unlink()
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        if generation is not None:
            (Path(folder) / "generation_config.json").write_text(json.dumps(generation))
        found = transformers.AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
    return [found] if isinstance(found, int) else found


if __name__ == "__main__":
    recorded = {
        "conversations": {name: ids(beside, ASK, add_generation_prompt=True) for name, beside in BESIDE.items()},
        "reasoning": ids(files({}, template=THINKING), THOUGHT),
        "stop_ids": {name: stop_ids(*said) for name, said in ENDS.items()},
    }
    target = Path(__file__).with_name("transformers_settings.json")
    parts = [f" {json.dumps(name)}: {json.dumps(found)}" for name, found in recorded.items()]
    target.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    print(f"{target}: transformers {transformers.__version__}")
