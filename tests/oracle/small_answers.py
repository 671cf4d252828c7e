"""Prompts and settings with which both sides of a comparison let a small LLaMA write."""

MODEL = "grouped_query"
PROMPTS = [[5], [(number**2 * 31 + 7) % 97 for number in range(9)], [(number**2 * 17 + 3) % 97 for number in range(45)]]
NEW_TOKENS = 20
TOP = 5
"""Alternatives beside each token."""
SETTINGS = {
    "plain": {"temperature": 1.0, "top_k": 0},
    "top_k": {"temperature": 0.7, "top_k": 12},
    "top_p": {"temperature": 1.3, "top_k": 0, "top_p": 0.8},
    "min_p": {"temperature": 1.0, "top_k": 0, "min_p": 0.1},
    "all": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.3},
}
"""Sampling settings, in words that both sides use."""
