"""What a client is told when something is wrong, in OpenAI's form."""

import re
from collections.abc import Mapping
from typing import Any

from llama_jax.core.errors import UserError

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request cannot be answered.

    Args:
        message: one line that names the field, the value found and what would be right.
        param: the field, as `messages[0].content`.
        code: what a program can tell it by.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of an answer, or of an event in a stream."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def wrong(path: str, problem: str, code: str | None = None) -> ApiError:
    """The error of a field: a 400 that names it."""
    return ApiError(f"{path}: {problem}", param=path, code=code)


def of_user_error(error: UserError) -> ApiError:
    """What the rest of the package refuses, as a 400. Its messages begin with the field."""
    field = re.match(r"([\w.\[\]]+): ", str(error))
    return ApiError(str(error), param=field[1] if field else None)
