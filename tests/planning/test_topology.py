import importlib.util

import pytest

from llama_jax.core.errors import UserError
from llama_jax.planning.topology import tpu_devices

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu has no wheel here")


@needs_libtpu
@pytest.mark.parametrize(("name", "count", "kind"), [("v5e:2x4", 8, "TPU v5 lite"), ("v4:2x2x2", 8, "TPU v4")])
def test_a_slice_has_a_device_a_chip(name, count, kind):
    devices = tpu_devices(name)
    assert [device.device_kind for device in devices] == [kind] * count


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e", "v5e:3x5", "v99:2x2"])
def test_a_slice_that_does_not_exist_is_the_users_mistake(name):
    with pytest.raises(UserError, match=rf"^topology: '{name}' is no TPU slice such as v5e:2x4[^\n]*$"):
        tpu_devices(name)
