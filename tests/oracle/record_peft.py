"""Record what PEFT computes for the small adapters, into `peft_gradients.npz`: logits, and the gradients of the mean
next-token loss by the factors and DoRA's magnitudes.

pip install torch transformers peft && python tests/oracle/record_peft.py
"""

from pathlib import Path

import numpy as np
import peft
import torch
from record_transformers import small_llama
from small_adapters import ADAPTERS, MODULES, factors, stretch
from small_llamas import TOKENS


def recorded(name: str) -> dict[str, np.ndarray]:
    """Logits [2, 48, V], the loss, and each gradient in our layout under `<module>/<layer>/<leaf>`."""
    settings = ADAPTERS[name]
    config = peft.LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        target_modules=[MODULES[module].rsplit(".", 1)[-1] for module in settings["modules"]],
        use_rslora=settings.get("rank_stabilized", False),
        use_dora=settings.get("dora", False),
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(small_llama("grouped_query"), config).eval()
    leaves = {}
    for number, layer in enumerate(model.base_model.model.model.layers):
        for module in settings["modules"]:
            linear = layer.get_submodule(MODULES[module])
            own = {"a": linear.lora_A["default"].weight, "b": linear.lora_B["default"].weight}
            a, b = factors(module, number, linear.in_features, linear.out_features, settings["rank"])
            with torch.no_grad():
                own["a"].copy_(torch.from_numpy(a.T.copy()))
                own["b"].copy_(torch.from_numpy(b.T.copy()))
                if config.use_dora:
                    own["magnitude"] = linear.lora_magnitude_vector["default"].weight
                    own["magnitude"].mul_(torch.from_numpy(stretch(module, number, linear.out_features)))
            leaves |= {f"{module}/{number}/{leaf}": parameter for leaf, parameter in own.items()}
    tokens = torch.from_numpy(TOKENS)
    result = model(tokens, labels=tokens)
    result.loss.backward()
    gradients = {path: parameter.grad.numpy().T for path, parameter in leaves.items()}
    return {"logits": result.logits.detach().numpy(), "loss": result.loss.detach().numpy(), **gradients}


if __name__ == "__main__":
    arrays = {f"{name}/{key}": value for name in ADAPTERS for key, value in recorded(name).items()}
    target = Path(__file__).with_name("peft_gradients.npz")
    np.savez_compressed(target, **arrays)
    print(f"{target}: peft {peft.__version__}, torch {torch.__version__}, {len(arrays)} arrays")
    for name in ADAPTERS:
        print(name, float(arrays[f"{name}/loss"]), arrays[f"{name}/logits"].dtype)
