"""Settings of `prepare`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.files import absolute
from llama_jax.data.config import DataConfig
from llama_jax.data.preparation.near.config import NearDuplicatesConfig
from llama_jax.data.preparation.rules.config import (
    ContaminationConfig,
    LanguagesConfig,
    PerplexityConfig,
    QualityConfig,
)

_SWITCHES = {
    "near_duplicates": "threshold",
    "languages": "keep",
    "perplexity": "model",
    "contamination": "files",
}
"""Of each section the setting without which its others do nothing."""


@dataclass(frozen=True)
class PrepareConfig:
    """Turn text into shards of token ids for training. Run the same command to resume."""

    output: str = "prepared"
    """Directory to write; name it as `data.source` to train on it."""
    runner: Literal["local", "beam"] = "local"
    """Who does the work: processes of this machine, or Apache Beam, which knows clusters. What is written is the
    same."""
    beam: Mapping[str, Any] = field(default_factory=dict)
    """Options of Apache Beam by their own names, as `--beam.runner DataflowRunner`; for `--runner beam`."""
    workers: int | None = None
    """Processes; None: one for each processor, 0: a thread of this process. What is written is the same."""
    deduplicate: bool = False
    """Leave out every document that differs from an earlier one in nothing but white space. Reads the source twice."""
    near_duplicates: NearDuplicatesConfig = field(default_factory=NearDuplicatesConfig)
    """Leave out documents that are almost the same as another."""
    paragraphs: Literal["none", "shard", "source"] = "none"
    """Leave out paragraphs (lines) that are like an earlier one, in case, accents, digits and punctuation too: of the
    same shard or of the whole source."""
    minimum_characters: int = 1
    """Documents with fewer characters are left out; white space at both ends does not count."""
    maximum_characters: int | None = None
    """Documents with more characters are left out; None: no bound."""
    shard_megabytes: float = 64.0
    """Text in a shard, about. Work that is stopped loses the shards it was at."""
    vocab_size: int = 2048
    """Pieces of the tokenizer that is trained on the text where `data.tokenizer` names none."""
    languages: LanguagesConfig = field(default_factory=LanguagesConfig)
    """Which languages are kept."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """Heuristic rules of quality."""
    perplexity: PerplexityConfig = field(default_factory=PerplexityConfig)
    """A model of ours as a measure of quality."""
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)
    """Documents that hold a part of an evaluation."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text and the tokenizer; `source`, `text_field`, `tokenizer`, `bad_records`, `max_bad_fraction` are used."""

    def __post_init__(self) -> None:
        if self.data.mixture:
            raise UserError("data.mixture: prepare takes one source; prepare each by itself and mix the directories")
        source, output = (absolute(epath.Path(each).expanduser()) for each in (self.data.source, self.output))
        if source in output.parents:
            raise UserError(
                f"--output {self.output}: lies within data.source {self.data.source}, of which it would become a part; "
                "name a place outside"
            )
        if self.beam and self.runner != "beam":
            raise UserError(f"--beam.{next(iter(self.beam))}: needs --runner beam")
        for section, switch in _SWITCHES.items():
            given, unused = getattr(self, section), type(getattr(self, section))()
            if getattr(given, switch) == getattr(unused, switch) and given != unused:
                name = next(each.name for each in fields(given) if vars(given)[each.name] != vars(unused)[each.name])
                raise UserError(f"--{section}.{name}: does nothing without --{section}.{switch}")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"--workers {self.workers}: must be at least 0")
        if not 0 < self.shard_megabytes < 1e6:
            raise UserError(f"--shard_megabytes {self.shard_megabytes}: must be positive and below a million")
        if self.minimum_characters < 0:
            raise UserError(f"--minimum_characters {self.minimum_characters}: must be at least 0")
        if self.maximum_characters is not None and self.maximum_characters < max(1, self.minimum_characters):
            raise UserError(
                f"--maximum_characters {self.maximum_characters}: must be at least 1 and no less than "
                f"--minimum_characters {self.minimum_characters}"
            )
