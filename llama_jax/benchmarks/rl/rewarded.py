"""The reward function of both sides of `benchmark grpo`: it takes no time, and differs within a group."""


def remainder(completion_ids: list[list[int]], **rest: object) -> list[float]:
    """Between 0 and 1, of no meaning."""
    del rest
    return [sum(ids) % 97 / 97 for ids in completion_ids]
