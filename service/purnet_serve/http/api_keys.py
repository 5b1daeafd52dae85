"""API keys: known by their sha256 digests, read from a file, checked in constant time."""

from __future__ import annotations

import codecs
import hashlib
import hmac
import re
from pathlib import Path

from starlette.datastructures import Headers

from purnet_serve.errors import ApiKeysError, KeyMissingError, KeyUnknownError

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


class ApiKeys:
    """The keys that are accepted. Without a file no key is asked for."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._digests: tuple[bytes, ...] = ()

    def load(self) -> None:
        """Read the file and use it. Raises `ApiKeysError`, changing nothing, if it is unusable."""
        self._digests = self._read()

    def _read(self) -> tuple[bytes, ...]:
        """The digests in the file. Raises `ApiKeysError`."""
        if self._file is None:
            return ()
        try:
            text = _decoded(self._file.read_bytes())
        except OSError as error:
            raise ApiKeysError(f"cannot read the API keys in {self._file}: {error}") from error
        except UnicodeDecodeError as error:
            raise ApiKeysError(f"{self._file} is not text; save it as UTF-8") from error
        digests = []
        for number, line in enumerate(text.lower().splitlines(), 1):
            digest = line.strip()
            if not digest or digest.startswith("#"):
                continue
            if not _SHA256_HEX.fullmatch(digest):
                raise ApiKeysError(f"{self._file}, line {number}: not a sha256 in hex")
            digests.append(bytes.fromhex(digest))
        if not digests:
            raise ApiKeysError(f"{self._file} names no key, which would lock everybody out")
        return tuple(digests)

    def check(self, key: str | None) -> None:
        """Raises `KeyMissingError` or `KeyUnknownError`. Its time does not depend on the key.

        `key` is as Starlette decodes headers: a character a byte (Latin-1). The bytes count as they
        were sent, so a key in UTF-8 is known by the digest that `sha256sum` gives of it.
        """
        if self._file is None:
            return
        if not key:
            raise KeyMissingError("Send an API key as `X-Api-Key` or `Authorization: Bearer`.")
        offered = hashlib.sha256(key.encode("latin-1")).digest()
        matches = [hmac.compare_digest(offered, digest) for digest in self._digests]
        if not any(matches):
            raise KeyUnknownError("This API key is not known here.")


def _decoded(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 with a byte order mark, as Windows' tools write it."""
    utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if utf_16 else "utf-8-sig"
    text = content.decode(encoding)
    if "\0" in text:
        raise UnicodeDecodeError(encoding, content, 0, 1, "not text in this encoding")
    return text


def offered_key(headers: Headers) -> str | None:
    """The key in `X-Api-Key` or, failing that, in `Authorization: Bearer`."""
    if (key := headers.get("x-api-key")) is not None:
        return key
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
