"""The rotary settings of a config.json: `rope_theta` and `rope_scaling` of transformers 4, `rope_parameters` of
transformers 5, or both, as files have them that were extended later.

What is said twice must be said alike. transformers 5 takes `rope_scaling` where both are there, and is silent of what
that leaves out; a scaling that does nothing is none here as there."""

from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.core.json_files import JsonFields, agreed, shown
from llama_jax.model.config import RopeScaling

_PLACES = ("rope_scaling", "rope_parameters")
_FACTORS = ("factor", "low_freq_factor", "high_freq_factor")
_TYPES = ("rope_type", "type")
_OF_ANY_TYPE = (*_TYPES, "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


def read_rope(fields: JsonFields) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary frequencies.

    Args:
        fields: of the whole config.json.

    Raises:
        UserError: a setting is missing or makes no sense, is said twice in different ways, or is of a kind that LLaMA
            as it is here does not have.
    """
    fields.one_of("partial_rotary_factor", (1.0,), 1.0)
    places = [place for place in _PLACES if fields.fields(place).values]
    if not places:
        return _base(fields), None
    found = {place: (_base(fields, place), _scaling(fields, place)) for place in places}
    agreed(fields.where, {f"rope_theta of {place}": base for place, (base, _) in found.items()})
    if len({scaling for _, scaling in found.values()}) > 1:
        agreed(fields.where, {place: fields.values[place] for place in places})
    return found[places[0]]


def _base(fields: JsonFields, place: str | None = None) -> float:
    return _either(fields, place, "rope_theta").number("rope_theta", 10000.0, least=1.0)


def _scaling(fields: JsonFields, place: str) -> RopeScaling | None:
    rope = fields.fields(place)
    rope.one_of("partial_rotary_factor", (1.0,), 1.0)
    if _type(rope) == "default":
        return None
    factor, low, high = map(rope.number, _FACTORS)
    if not low < high:
        raise UserError(f"{rope.where}: high_freq_factor is {high}; more than low_freq_factor {low} is expected")
    length = _either(fields, place, "original_max_position_embeddings").whole("original_max_position_embeddings")
    return RopeScaling(factor, low, high, length)


def _type(rope: JsonFields) -> Any:
    """`llama3`, or `default` where nothing is scaled, if only because the factor is 1."""
    kind = agreed(rope.where, {name: rope.values.get(name) for name in _TYPES})
    more = [name for name, value in rope.values.items() if name not in _OF_ANY_TYPE and value is not None]
    if kind == "linear" and more == ["factor"] and rope.number("factor") == 1:
        return "default"
    spelling = "type" if rope.values.get("rope_type") is None else "rope_type"
    kind = rope.one_of(spelling, ("default", "llama3"), None if more else "default")
    for name in more:
        if kind == "default" or name not in _FACTORS:
            value = shown(rope.values[name])
            raise UserError(f"{rope.where}: {shown(name)} is {value}, which rope_type '{kind}' does not have")
    return kind


def _either(fields: JsonFields, place: str | None, name: str) -> JsonFields:
    """A setting that may be within a place, at the top level, or at both alike, as the only one of its fields."""
    if place is None:
        return fields
    rope = fields.fields(place)
    value = agreed(fields.where, {name: fields.values.get(name), f"{name} of {place}": rope.values.get(name)})
    return JsonFields({name: value}, fields.where if rope.values.get(name) is None else rope.where)
