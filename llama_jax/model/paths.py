"""Paths of parameters, such as `layers/attention/q_proj/kernel`, and what they say: the one place that reads them.

An adapter is a tree beside its base, below `lora`, with the paths of the Linears that it adapts:
`lora/layers/attention/q_proj/a`. A quantised kernel is a subtree: `layers/attention/q_proj/kernel/int8`. All in the
scanned layout, but for `of_layer`."""

TABLE = "embedding/table"
"""The embedding, and the head of a model that ties the two."""
HEAD = "lm_head/kernel"
"""The head of a model that does not."""
SCORE = "score/kernel"
"""The head of a model that gives one number a position."""
SAVED_MODULES = {"embedding": TABLE, "lm_head": HEAD}
"""The parameters that `AdapterConfig.modules_to_save` names."""

_ADAPTER, _LAYERS, _KERNEL = "lora/", "layers/", "/kernel"


def is_adapter(path: str) -> bool:
    """Whether it belongs to an adapter, and not to the base."""
    return path.startswith(_ADAPTER)


def of_adapter(path: str) -> str:
    """The path, beside the base, of what is at `path` in the tree of an adapter."""
    return _ADAPTER + path


def in_layers(path: str) -> bool:
    """Whether it is stacked over the layers, of a base or of an adapter."""
    return path.removeprefix(_ADAPTER).startswith(_LAYERS)


def of_layers(inner: str) -> str:
    """The path of what is at `inner` within a layer, such as `attention/q_proj/kernel`."""
    return _LAYERS + inner


def within_layer(path: str) -> str:
    """The inverse of `of_layers`."""
    return path.removeprefix(_LAYERS)


def of_layer(path: str, layer: int) -> str:
    """The path in the list layout of one layer of what is stacked at `path`, of a base or of an adapter."""
    prefix = _ADAPTER if is_adapter(path) else ""
    return f"{prefix}layers_{layer}/{within_layer(path.removeprefix(_ADAPTER))}"


def is_plain_kernel(path: str) -> bool:
    """Whether it is the matrix of a Linear, or of a head, in one array."""
    return path.endswith(_KERNEL)


_SIDE_BY_SIDE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def side_by_side(path: str) -> tuple[str, ...]:
    """The kernels of the Linears that have the same input as the one whose kernel this is, in their order, it among
    them. In either layout."""
    linear = module_of(path)
    together = next((names for names in _SIDE_BY_SIDE if name_of(linear) in names), (name_of(linear),))
    return tuple(kernel_of(linear.removesuffix(name_of(linear)) + each) for each in together)


def split_kernel(path: str) -> tuple[str, str] | None:
    """Of a kernel in the layers of a base its path, and the name of the array that is meant of a quantised one (else an
    empty one); None: any other parameter."""
    module, kernel, part = path.partition(_KERNEL)
    return (module + kernel, part.removeprefix("/")) if kernel and path.startswith(_LAYERS) else None


def is_quantized(path: str) -> bool:
    """Whether it is one of the arrays of a quantised kernel."""
    return f"{_KERNEL}/" in path


def kernel_of(module: str) -> str:
    """The kernel of a Linear, by the path of that."""
    return module + _KERNEL


def module_of(path: str) -> str:
    """The path of the module that a parameter belongs to."""
    return path.rpartition("/")[0]


def name_of(path: str) -> str:
    """The last part: the name of a parameter or of a module."""
    return path.rpartition("/")[2]
