"""Every error that a client can be answered with. Each class owns its HTTP status and its code.

ServiceError
├── BadRequestError             400  bad_request
│   ├── ParameterError          400  bad_parameter
│   ├── EmptyBodyError          400  empty_body
│   ├── MalformedBodyError      400  malformed_body
│   ├── MissingImageError       400  missing_image
│   ├── UrlRefusedError         400  url_refused
│   └── FetchError              400  fetch_failed
├── KeyMissingError             401  key_missing
├── KeyUnknownError             403  key_unknown
├── NotFoundError               404  not_found
├── MethodNotAllowedError       405  method_not_allowed
├── UploadTimeoutError          408  upload_timeout
├── BodyTooLargeError           413  body_too_large
├── UnsupportedMediaError       415  unsupported_media
│   └── ContentEncodingError    415  unsupported_content_encoding
├── ImageError                  422  broken_image
│   ├── TooManyPixelsError      422  too_many_pixels
│   ├── SideTooLongError        422  side_too_long
│   ├── TooManyScansError       422  too_many_scans
│   └── NothingFoundError       422  nothing_found
├── BusyError                   429  too_many_requests
│   ├── TooManyBytesError       429  too_many_bytes
│   └── WouldBeLateError        429  would_be_late
├── InternalError               500  internal
│   ├── WorkerError             500  worker_failed
│   └── NonFiniteError          500  non_finite
├── NotReadyError               503  not_ready
├── DrainingError               503  draining
└── DeadlineError               504  deadline

OperatorError, for the person who runs the service; no client sees it
├── ApiKeysError                the file of API keys cannot be used
├── ReloadError                 the new checkpoint was refused; the old one stays in use
└── StartupError                the service cannot start at all

`purnet_serve.http.problem_details` turns any ServiceError into an RFC 9457 problem document. The
first line of each docstring is the "when" of the table in docs/api.md.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """Base of every error that reaches a client.

    `detail` says what was wrong in one sentence that any client understands; `limit` and `actual`
    are the bound and the value where there is one; `retry_after_s` becomes `Retry-After`.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    setting: ClassVar[str | None] = None
    """The setting that is the `limit`, if one is."""

    def __init__(
        self,
        detail: str,
        *,
        limit: int | float | str | None = None,
        actual: int | float | str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.limit = limit
        self.actual = actual
        self.retry_after_s = retry_after_s


class BadRequestError(ServiceError):
    """The request is malformed in a way no other code names."""

    status, code, title = 400, "bad_request", "Bad request"


class ParameterError(BadRequestError):
    """A parameter or form field is unknown, or it or `X-Timeout-Ms` given twice or out of range."""

    code, title = "bad_parameter", "Bad parameter"

    def __init__(self, parameter: str, detail: str, *, actual: str | None = None) -> None:
        super().__init__(detail, actual=actual)
        self.parameter = parameter


class EmptyBodyError(BadRequestError):
    """The body, or the `image` field in it, has no bytes."""

    code, title = "empty_body", "Empty body"


class MalformedBodyError(BadRequestError):
    """The body, or its length, is not what its headers announce: a form, JSON, so many bytes."""

    code, title = "malformed_body", "Malformed body"


class MissingImageError(BadRequestError):
    """The multipart form has no field `image`, or more than one image."""

    code, title = "missing_image", "Missing image"


class UrlRefusedError(BadRequestError):
    """A photo's URL is not fetched: it is switched off, not https, or not on the public internet.

    Only `/api/remove` and `/v1.0/removebg` take URLs.
    """

    code, title = "url_refused", "URL refused"


class FetchError(BadRequestError):
    """The photo at a URL did not arrive: no valid answer, nothing there, too large or too slow."""

    code, title = "fetch_failed", "Photo not fetched"


class KeyMissingError(ServiceError):
    """The service asks for an API key and the request carries none."""

    status, code, title = 401, "key_missing", "API key missing"


class KeyUnknownError(ServiceError):
    """The request carries an API key that the service does not know."""

    status, code, title = 403, "key_unknown", "API key unknown"


class NotFoundError(ServiceError):
    """There is nothing at this path."""

    status, code, title = 404, "not_found", "Not found"


class MethodNotAllowedError(ServiceError):
    """The path exists but not for this method; `Allow` names those it takes."""

    status, code, title = 405, "method_not_allowed", "Method not allowed"


class UploadTimeoutError(ServiceError):
    """The body did not arrive within the time for uploads."""

    status, code, title = 408, "upload_timeout", "Upload too slow"
    setting = "upload_timeout_s"


class BodyTooLargeError(ServiceError):
    """The body is larger than the limit, as announced or as counted."""

    status, code, title, setting = 413, "body_too_large", "Body too large", "max_body_bytes"


class UnsupportedMediaError(ServiceError):
    """The bytes are not an image of a format that is taken; `detail` says what they are."""

    status, code, title = 415, "unsupported_media", "Not an image we take"


class ContentEncodingError(UnsupportedMediaError):
    """The body is compressed by a Content-Encoding."""

    code, title = "unsupported_content_encoding", "Content-Encoding not supported"


class ImageError(ServiceError):
    """The image is truncated or broken."""

    status, code, title = 422, "broken_image", "Broken image"


class TooManyPixelsError(ImageError):
    """The image has more pixels than the limit, by its header."""

    code, title, setting = "too_many_pixels", "Too many pixels", "max_pixels"


class SideTooLongError(ImageError):
    """The image is wider or higher than the limit, by its header."""

    code, title, setting = "side_too_long", "Side too long", "max_side"


class TooManyScansError(ImageError):
    """The progressive JPEG has more scans than any camera or editor writes."""

    code, title = "too_many_scans", "Too many scans"


class NothingFoundError(ImageError):
    """Nothing stands out in the photo, and an answer must show something (`/v1.0/removebg`)."""

    code, title = "nothing_found", "Nothing found"


class BusyError(ServiceError):
    """As many requests as the service holds are in flight; retry after `Retry-After` seconds."""

    status, code, title = 429, "too_many_requests", "Too many requests in flight"
    setting = "max_requests_in_flight"


class TooManyBytesError(BusyError):
    """The service holds as many bytes of uploads as it may; retry after `Retry-After` seconds."""

    code, title, setting = "too_many_bytes", "Too many bytes in flight", "max_bytes_in_flight"


class WouldBeLateError(BusyError):
    """The answer would take longer than `X-Timeout-Ms`, or without one than the target latency."""

    code, title, setting = "would_be_late", "No answer in time", "target_latency_s"


class InternalError(ServiceError):
    """The service failed; its log has the reason under the request's id."""


class WorkerError(InternalError):
    """The process that holds the model failed on this image, twice."""

    code, title = "worker_failed", "Worker failed"


class NonFiniteError(InternalError):
    """The network's output for this image was not a number."""

    code, title = "non_finite", "Output not finite"


class NotReadyError(ServiceError):
    """The model is not loaded (yet, or any more); retry after `Retry-After` seconds."""

    status, code, title = 503, "not_ready", "Not ready"


class DrainingError(ServiceError):
    """The service is shutting down; retry after `Retry-After` seconds."""

    status, code, title = 503, "draining", "Shutting down"


class DeadlineError(ServiceError):
    """The request's time (`X-Timeout-Ms`) was over before its answer was ready."""

    status, code, title, setting = 504, "deadline", "Deadline passed", "timeout_s"


class OperatorError(Exception):
    """Base of the errors for the person who runs the service; the text is one sentence."""


class ApiKeysError(OperatorError):
    """The file of API keys cannot be used; the keys read before stay valid."""


class ReloadError(OperatorError):
    """The new checkpoint was refused; nothing has changed."""


class StartupError(OperatorError):
    """The service cannot start: a device is not there, or a checkpoint does not load."""


def all_errors(base: type[ServiceError] = ServiceError) -> list[type[ServiceError]]:
    """Every class below `base`, by status, then in order of definition."""
    found = [kind for child in base.__subclasses__() for kind in (child, *all_errors(child))]
    return sorted(found, key=lambda kind: kind.status)


def description_of(kind: type[ServiceError]) -> str:
    """In one line, when this error is answered: the first line of its docstring."""
    return (kind.__doc__ or "").strip().splitlines()[0]
