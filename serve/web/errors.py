"""Errors in OpenAI's form, which the labelling page reads as well."""

from __future__ import annotations

from typing import Any

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
RETRY_SECS = 1      # after which a full or closing server may be asked again


class WebError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: for the client, on one line.
        code: a word that programs compare.
        param: the field that is wrong.
    """

    def __init__(self, status: int, message: str, code: str | None = None, *,
                 param: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        kind = TYPES.get(self.status) or (
            "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param,
                          "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Those of the response."""
        if self.status in (429, 503):
            return {"Retry-After": str(RETRY_SECS)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}


def wrong(param: str, rule: str) -> WebError:
    """The error of a field that breaks a rule, a predicate."""
    return WebError(400, f"{param} {rule}", param=param, code="invalid_value")
