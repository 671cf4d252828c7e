"""One server for all tests of the server."""

from collections.abc import Iterator

import pytest
from served import Server, opened_model, running


@pytest.fixture(scope="session")
def opened():
    return opened_model(128)


@pytest.fixture(scope="session")
def server(opened) -> Iterator[Server]:
    with running(opened, slots=2, max_queue=12, max_answers=4, max_body_bytes=2**17) as made:
        yield made
