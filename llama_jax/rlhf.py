"""SFT, a reward model and PPO by one command: `python -m llama_jax.rlhf`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("rlhf")

from llama_jax import ppo, reward, sft
from llama_jax.pipeline.beginning import check_last_stage, check_stages, with_merged_sft, with_toy_base
from llama_jax.pipeline.config import RlhfConfig
from llama_jax.pipeline.ending import finish
from llama_jax.pipeline.handing_down import for_dry_run, stages_of
from llama_jax.pipeline.stages import Stage, make_stages


def rlhf(config: RlhfConfig) -> None:
    """Make the stages that are not done, each a run directory of its own, and write what came of them: a report and
    a verdict."""
    config = with_toy_base(config)
    if not config.dry_run:
        check_last_stage(config)
        config = with_merged_sft(config)
    told = stages_of(config)
    if config.dry_run:
        told = for_dry_run(config, told)
    stages = [
        Stage("sft", told.sft, sft.sft, config.sft_model),
        Stage("reward", told.reward, reward.reward, config.reward_model),
        Stage("ppo", told.ppo, ppo.ppo, None),
    ]
    if config.dry_run:
        for stage in stages:
            if stage.elsewhere is None:
                print(f"--- {stage.name}", flush=True)
                stage.make(stage.config)
        return
    check_stages(config, told, {"sft": sft.build, "reward": reward.build, "ppo": ppo.build})
    make_stages(config.run_dir, stages)
    finish(config, told.ppo, stages)
