"""What a run of PPO would refuse when it begins, found before the model is there that it begins with."""

from llama_jax.checkpoints.weight_reading import open_weights
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.model.config import LlamaConfig
from llama_jax.rl.judging import Judge
from llama_jax.rl.learners.reward_model import check_reads, check_reads_ends
from llama_jax.rl.ppo_config import PpoConfig
from llama_jax.rl.prompts import PromptData
from llama_jax.rl.running import check_lengths
from llama_jax.rl.updates import check_rows


def check_beforehand(
    config: PpoConfig, architecture: LlamaConfig, tokenizer: Tokenizer, template: str, reward_model: str | None
) -> PromptData:
    """Read the prompts, and see to it that rows and context hold them with their completions, and that there is who
    judges these; gives the prompts.

    Args:
        template: What the model will have been taught with, for prompts that are to be laid out as that.
        reward_model: That of the run, if it is there already.

    Raises:
        UserError: names the setting of the run.
    """
    own = config.data.template
    data = PromptData(
        config.data, Layout(template if own == "auto" else own, tokenizer), config.seed, lambda line: None
    )
    Judge(config.judged_by, tokenizer, config.rollout.max_new_tokens, data.fields)
    longest = (data.longest, config.rollout.max_new_tokens)
    check_lengths(config, architecture, longest)
    check_rows(config.training.batch_size, config.row_length, longest, config.rollout.completions, config.minibatches)
    if config.reward_model is not None:
        check_reads_ends(config.row_length, longest)
    if reward_model is not None:
        found = open_weights(reward_model, step=config.reward_step, say=lambda line: None)
        check_reads(found.config, found.files, reward_model, config, tokenizer)
    return data
