"""The date that a chat template asks for. A model is asked as it was trained, so the date of a run stays with it: it is
written into the template, which then means the same on any day, on any host and in any program."""

import re
from datetime import date, datetime, time

from llama_jax.core.errors import UserError
from llama_jax.core.processes.distributed import from_main_process
from llama_jax.data.tokenizers import Tokenizer

_CLOCK = "strftime_now"
_CODES = "aAbBcCdDeFgGhHIjklmMpPrRSTuUVwWxXyY"
"""Of `strftime`, those that a date decides; the time of the day is 00:00."""


def today() -> str:
    """The date of process 0, on every process, as 2026-11-27; all of them call it together."""
    return from_main_process(lambda: date.today().isoformat().encode()).decode()


def with_date(tokenizer: Tokenizer, day: str | None) -> Tokenizer:
    """A tokenizer whose chat template finds this date where it asks for the clock, as Llama 3.2's does; the same one if
    its template does not ask, or has a date of its own already. All processes call this together.

    Args:
        day: as 2026-11-27; None: today.
    """
    try:
        template = tokenizer.chat_template
    except UserError:
        return tokenizer  # of several none is chosen, which is said to whoever asks for it
    if template is None or _CLOCK not in template or re.search(rf"macro\s+{_CLOCK}\b", template):
        return tokenizer
    return tokenizer.with_chat_template(dated(template, day or today()))


def dated(template: str, day: str) -> str:
    """A template before which `strftime_now` is defined as a macro of this date, which every engine of chat templates
    prefers to a function that it brings along.

    Args:
        day: as 2026-11-27.
    """
    moment = datetime.combine(date.fromisoformat(day), time.min)
    codes = [*sorted(set(re.findall(f"%-?[{_CODES}]", template))), "%%"]
    replaced = "".join(f".replace('{code}', '{moment.strftime(code)}')" for code in codes)
    # The end of line is that of the tag, which engines drop: what follows begins a line as it did.
    return f"{{%- macro {_CLOCK}(format) %}}{{{{- format{replaced} }}}}{{%- endmacro %}}\n{template}"
