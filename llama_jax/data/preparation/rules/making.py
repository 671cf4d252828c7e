"""From settings to the rules they ask for, and to what decides their verdicts."""

import hashlib
from typing import Any

from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.data.preparation.rules.contamination import Contamination
from llama_jax.data.preparation.rules.languages import Languages, library_version
from llama_jax.data.preparation.rules.perplexity import Perplexity, PerplexityOf
from llama_jax.data.preparation.rules.quality import SETS, C4Rules, GopherRules, listed_words, rule_names
from llama_jax.data.preparation.rules.rule import Rule
from llama_jax.data.sources.opening import errors_of, open_records

RULES_VERSION = 1
"""Raise it when a quality or contamination rule comes to judge the same text differently."""


def rules_of(config: PrepareConfig, perplexity: PerplexityOf | None = None) -> tuple[Rule, ...]:
    """The rules in the order in which they judge; the first that drops a document is the reason.

    Args:
        perplexity: the model that the settings name, if they do.
    """
    rules: list[Rule] = []
    if config.languages.keep:
        rules.append(Languages(config.languages.keep, config.languages.threshold))
    names = rule_names(config.quality.rules)
    if not set(names).isdisjoint((*SETS["gopher"], *SETS["gopher_repetition"])):
        rules.append(GopherRules(names))
    if not set(names).isdisjoint(SETS["c4"]):
        rules.append(C4Rules(names, config.quality.bad_words))
    if perplexity is not None:
        rules.append(Perplexity(perplexity, config.perplexity.least, config.perplexity.most))
    if config.contamination.files:
        wanted = config.contamination
        rules.append(Contamination(wanted.files, wanted.fields, wanted.ngram, drop=wanted.action == "drop"))
    return tuple(rules)


def rule_settings(config: PrepareConfig, perplexity: PerplexityOf | None = None) -> dict[str, Any]:
    """What decides the verdicts of the rules, section by section, as JSON has it; sections out of use are left out.

    Raises:
        UserError: a file that is named cannot be read.
    """
    settings: dict[str, Any] = {}
    if config.languages.keep:
        settings["languages"] = {
            "keep": sorted(config.languages.keep),
            "threshold": config.languages.threshold,
            "py3langid": library_version(),
        }
    if names := rule_names(config.quality.rules):
        words = config.quality.bad_words
        listed = None if words is None else "\n".join(listed_words(words))
        settings["quality"] = {
            "rules": names,
            "bad_words": None if listed is None else hashlib.sha256(listed.encode()).hexdigest(),
            "version": RULES_VERSION,
        }
    if perplexity is not None:
        settings["perplexity"] = {
            "model": perplexity.identity,
            "most": config.perplexity.most,
            "least": config.perplexity.least,
            "tokens": config.perplexity.tokens,
        }
    if wanted := config.contamination.files:
        with errors_of("--contamination.files"):
            identities = [open_records(source).identity() for source in wanted]
        settings["contamination"] = {
            "files": identities,
            "fields": list(config.contamination.fields),
            "ngram": config.contamination.ngram,
            "action": config.contamination.action,
            "version": RULES_VERSION,
        }
    return settings
