"""Record which choices lm-evaluation-harness prefers, given their log-probabilities, into `lm_eval_choices.json`.

pip install lm_eval==0.4.13 && python tests/oracle/record_lm_eval.py
"""

import importlib.metadata
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

CHOICES = [
    ["Paris", "Лондон", "Tōkyō"],
    ["the sun", "солнце", "太陽"],
    ["yes", "да", "はい", "नहीं"],
    ["a", "é", "🙂", "👨‍👩‍👧"],
    ["grün", "зелёный", "green, as grass is"],
    ["naïve", "naive", "na\u0308ive"],
    ["twelve", "zwölf", "двенадцать", "十二"],
    ["in the morning", "утром", "صباحا"],
    ["water", "水", "νερό"],
    ["no", "nein, niemals", "いいえ"],
    ["north", "south", "east", "west"],
    ["short", "a much longer answer in ASCII", "длинный ответ"],
]
YAML = """task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: '{{{{query}}}}'
doc_to_target: gold
doc_to_choice: choices
metric_list: [{{metric: acc}}, {{metric: acc_norm}}, {{metric: acc_bytes}}]
"""


class Given(LM):
    """Log-probabilities by chance, the longer a choice the lower."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return [(logprob(*request.args), False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> Any:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance]) -> Any:
        raise NotImplementedError


def logprob(context: str, continuation: str) -> float:
    chance = random.Random(f"0{context}{continuation}")
    size = len(continuation) + len(continuation.encode())
    return -round(size * chance.uniform(0.3, 0.6), 3)


if __name__ == "__main__":
    documents = [
        {"query": f"Question {number}:", "choices": choices, "gold": number % len(choices)}
        for number, choices in enumerate(CHOICES * 3)
    ]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.jsonl")
        data.write_text("".join(json.dumps(document) + "\n" for document in documents))
        Path(folder, "choices.yaml").write_text(YAML.format(data=data))
        tasks = TaskManager(include_path=folder, include_defaults=False)
        found: Any = simple_evaluate(Given(), tasks=["choices"], task_manager=tasks, log_samples=True)
    samples = sorted(found["samples"]["choices"], key=lambda sample: sample["doc_id"])
    recorded = [
        sample["doc"]
        | {"logprobs": [logprob(sample["doc"]["query"], f" {choice}") for choice in sample["doc"]["choices"]]}
        | {name: int(sample[name]) for name in ("acc", "acc_norm", "acc_bytes")}
        for sample in samples
    ]
    means = {name: found["results"]["choices"][f"{name},none"] for name in ("acc", "acc_norm", "acc_bytes")}
    target = Path(__file__).with_name("lm_eval_choices.json")
    lines = ",\n".join(f"  {json.dumps(document, ensure_ascii=False)}" for document in recorded)
    target.write_text(f'{{"means": {json.dumps(means)},\n "documents": [\n{lines}\n]}}\n')
    print(f"{target}: lm_eval {importlib.metadata.version('lm_eval')}, {means}")
