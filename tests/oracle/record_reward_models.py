"""Record what transformers scores with small classifiers of one label, and what PEFT writes for adapters that make such
classifiers of language models, with their scores, into `reward_models.npz`.

pip install torch transformers peft && python tests/oracle/record_reward_models.py
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from record_transformers import small_llama
from small_llamas import weight
from small_rewards import ADAPTERS, CLASSIFIERS, PADDING, ROWS


def classifier(name: str) -> transformers.LlamaForSequenceClassification:
    """One of the small models, with a head of one label in place of its own."""
    config = small_llama(name).config
    config.num_labels, config.pad_token_id = 1, PADDING
    model = transformers.LlamaForSequenceClassification(config).eval()
    with torch.no_grad():
        for each, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weight(each, tuple(parameter.shape))))
    return model


def adapted(base: str, settings: dict) -> peft.PeftModel:
    """The classifier of a base with an adapter that is not the identity, and a head of its own."""
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="SEQ_CLS", **settings)
    model = peft.get_peft_model(classifier(base), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
    return model


def recorded(model: torch.nn.Module, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Files that are written, as bytes, and the scores of all rows in one batch, float32."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        files = {name: np.frombuffer((Path(folder) / name).read_bytes(), np.uint8) for name in names}
        return files | {"scores": model(torch.from_numpy(ROWS)).logits[:, 0].numpy()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    found = {name: recorded(classifier(name), ("config.json",)) for name in CLASSIFIERS}
    files = ("adapter_config.json", "adapter_model.safetensors")
    found |= {name: recorded(adapted(*what), files) for name, what in ADAPTERS.items()}
    target = Path(__file__).with_name("reward_models.npz")
    arrays = {f"{name}/{part}": array for name, parts in found.items() for part, array in parts.items()}
    np.savez_compressed(target, **arrays)
    print(f"{target}: peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    for name, parts in found.items():
        print(name, parts["scores"])
