"""Record the text that Hugging Face transformers gives chat templates that ask for the clock, on some days, into
`transformers_dates.json`; and see that it gives the same, on any day, for the template that we keep with a run.

pip install transformers && python tests/oracle/record_dates.py
"""

import datetime
import json
from pathlib import Path
from unittest import mock

import transformers
from dated_templates import DAYS, MESSAGES, TEMPLATES
from transformers.utils import chat_template_utils

from llama_jax.data.instructions.template_dates import dated


def rendered(template: str) -> str:
    chat_template_utils._compile_jinja_template.cache_clear()
    return chat_template_utils.render_jinja_template([MESSAGES], chat_template=template, bos_token="<s>")[0][0]


def rendered_on(day: str, template: str) -> str:
    clock = mock.Mock(now=lambda: datetime.datetime.fromisoformat(day))
    with mock.patch.object(chat_template_utils, "datetime", clock):
        return rendered(template)


if __name__ == "__main__":
    recorded = {name: {day: rendered_on(day, template) for day in DAYS} for name, template in TEMPLATES.items()}
    for name, texts in recorded.items():
        for day, text in texts.items():
            assert (kept := rendered(dated(TEMPLATES[name], day))) == text, (name, day, kept, text)
    target = Path(__file__).with_name("transformers_dates.json")
    lines = [f" {json.dumps(name)}: {json.dumps(texts)}" for name, texts in recorded.items()]
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{target}: transformers {transformers.__version__}")
