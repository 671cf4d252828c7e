"""Following instructions: answers compared with references by ROUGE-L, and by a judge that the user brings."""

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

from llama_jax.core.errors import UserError, nearest
from llama_jax.core.text import rouge_l
from llama_jax.data.instructions.templates import alpaca_prompt
from llama_jax.evals.tasks import Question, Sample, text_of

Judge: TypeAlias = Callable[[str, str, str, str], float]
"""(instruction, input, reference, answer) -> a number, the higher the better."""


def read_instructions(record: Mapping[str, Any], chat: bool) -> list[Question]:
    """The instances of a record of Self-Instruct's, {"instruction", "instances": [{"input", "output"}]}, or the one of
    a record of Alpaca's, {"instruction", "input", "output"}.

    Args:
        chat: ask with a message, the input below the instruction; else with Stanford Alpaca's template, to the letter.

    Raises:
        ValueError: a field is missing or is not text.
    """
    instruction = text_of(record, "instruction")
    instances = record.get("instances", [record])
    if not isinstance(instances, list) or not all(isinstance(instance, dict) for instance in instances):
        raise ValueError("field 'instances' must be a list of objects with input and output")
    questions = []
    for instance in instances:
        parts = {"instruction": instruction, "input": text_of({"input": ""} | instance, "input")}
        prompt = "\n\n".join(filter(None, parts.values())) if chat else alpaca_prompt(**parts)
        questions.append(Question(prompt, text_of(instance, "output"), chat, parts))
    return questions


def load_judge(name: str) -> Judge:
    """Import the judge named `package.module:function`; what it is and does is the user's.

    Raises:
        UserError: there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UserError(f"--judge {name}: write package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"--judge {name}: {error}") from None
    judge = getattr(module, function_name, None)
    if callable(judge):
        return cast(Judge, judge)
    raise UserError(f"--judge {name}: {module_name} has no such function{nearest(function_name, dir(module))}")


def instruction_sample(document: Question, answer: str, judge: Judge | None) -> Sample:
    """The answer, its ROUGE-L F1 against the reference, and what the judge gives it.

    Raises:
        UserError: the judge gives something else than a finite number.
    """
    answer = answer.strip()
    sample: Sample = {**document.shown, "reference": document.reference, "answer": answer}
    sample["rouge_l"] = rouge_l(document.reference, answer)
    if judge is not None:
        grade = judge(sample["instruction"], sample["input"], document.reference, answer)
        if not isinstance(grade, int | float) or not math.isfinite(grade):
            raise UserError(f"--judge: gave {grade!r} for an answer; it must give a finite number")
        sample["judge"] = float(grade)
    return sample
