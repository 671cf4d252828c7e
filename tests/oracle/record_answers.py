"""Record what Hugging Face transformers writes with one of the small LLaMAs, how likely it finds it, and the
distributions that it samples from, into `transformers_answers.npz`.

pip install torch transformers && python tests/oracle/record_answers.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from record_transformers import small_llama
from small_answers import MODEL, NEW_TOKENS, PROMPTS, SETTINGS, TOP


def written(prompt: list[int], **settings: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """New ids, log-probabilities [T, V] of the raw distributions, and of those after penalties and filters."""
    model = small_llama(MODEL)
    with torch.no_grad():
        found = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=NEW_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            output_scores=True,
            **settings,
        )
    raw, shaped = (torch.log_softmax(torch.cat(scores), dim=-1).numpy() for scores in (found.logits, found.scores))
    return found.sequences[0, len(prompt) :].numpy(), raw, shaped


if __name__ == "__main__":
    torch.manual_seed(0)
    recorded = {}
    for number, prompt in enumerate(PROMPTS):
        ids, raw, _ = written(prompt, do_sample=False)
        order = np.argsort(-raw, axis=-1, kind="stable")[:, :TOP]
        recorded |= {f"greedy_{number}": ids, f"logprobs_{number}": np.take_along_axis(raw, ids[:, None], axis=1)[:, 0]}
        recorded |= {f"top_{number}": order, f"top_logprobs_{number}": np.take_along_axis(raw, order, axis=1)}
    for name, settings in SETTINGS.items():
        ids, _, shaped = written(PROMPTS[-1], do_sample=True, **settings)
        recorded |= {f"ids_{name}": ids, f"shaped_{name}": shaped}
    target = Path(__file__).with_name("transformers_answers.npz")
    np.savez_compressed(target, **recorded)
    print(f"{target}: transformers {transformers.__version__}, torch {torch.__version__}")
    for name, array in recorded.items():
        print(name, array.shape, array.dtype)
