"""Errors as clients see them: one JSON object in OpenAI's form, with the right status. Nothing here logs or raises for us."""

from __future__ import annotations

import re

import msgspec

INVALID = "invalid_request_error"
SERVER = "server_error"


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: the HTTP status.
        message: one sentence: what was expected, and what came.
        param: the request's field at fault.
        code: a short name for programs; None when the status says it all.
        kind: OpenAI's `type`.
        headers: more response headers.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, kind: str = INVALID, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind
        self.headers = headers or {}

    def body(self) -> bytes:
        """The JSON object a client gets."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request can never work as it stands."""
    return ApiError(400, message, param, code)


def unsupported(param: str, message: str) -> ApiError:
    """400: a feature that exists elsewhere but not here; the message says what is supported."""
    return ApiError(400, message, param, "unsupported")


def too_large(limit_bytes: int) -> ApiError:
    return ApiError(413, f"The request body is larger than this server's limit of {limit_bytes} bytes.", code="body_too_large")


def unavailable(why: str) -> ApiError:
    """503: the engine does not serve now; `why` is its own reason."""
    return ApiError(503, f"The engine cannot serve this request: {why}.", code="engine_unavailable", kind=SERVER)


def engine_failed(why: str) -> ApiError:
    """500: the engine gave this request up while it ran."""
    return ApiError(500, f"The engine failed while it served this request: {why or 'it gave no reason'}.", code="engine_error", kind=SERVER)


def overloaded(why: str, retry_after_s: int) -> ApiError:
    """429: not now."""
    text = why or "too many requests are waiting"
    return ApiError(429, f"The server is overloaded: {text}.", None, "overloaded", "overloaded_error", {"Retry-After": str(retry_after_s)})


def undecodable(error: Exception, body: bytes) -> ApiError:
    """400 for what msgspec said about a body: bad JSON, or a field of the wrong type."""
    if isinstance(error, RecursionError):
        return bad("The request body is nested too deeply.", code="invalid_json")
    if isinstance(error, msgspec.ValidationError):
        return _wrong_type(str(error))
    if re.search(rb"\\u[dD][89a-fA-F]", body):
        return bad("The request body is not valid JSON, or a string in it holds half a surrogate pair, which is not text.", code="invalid_json")
    return bad(f"The request body is not valid JSON: {error}.", code="invalid_json")


def _wrong_type(said: str) -> ApiError:
    """`Expected `int`, got `str` - at `$.stop[2]`` as a sentence, with the field as `param`."""
    what, _, path = said.partition(" - at `$")
    what = what[0].lower() + what[1:]
    field = path.rstrip("`").lstrip(".")
    if not field or field.startswith("[...]"):
        return bad(f"The request body is wrong: {what}.", code="wrong_type")
    return bad(f"'{field}' is wrong: {what}.", re.split(r"[.\[]", field)[0], "wrong_type")
