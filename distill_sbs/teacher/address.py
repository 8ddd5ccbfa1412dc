"""The endpoint's address: what `--base_url` says, checked before anything is asked.

Enters: `--base_url`, or `$OPENAI_BASE_URL`. Leaves: an `Address`, whose query goes with every
request and whose secrets reach no message; or one line that says what to give instead.
"""

from __future__ import annotations

import base64
import dataclasses
import re
import urllib.parse

from distill_sbs.errors import UserError

_AZURE_HOSTS = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")
_CALLS = ("/chat/completions", "/completions", "/chat", "/responses", "/messages", "/embeddings")
# Ends a URL for nobody, and is cut out of it by Python's parser without a word.
_BLANK = re.compile(r"[\s\x00-\x20\x7f-\x9f\\]")


@dataclasses.dataclass(frozen=True)
class Address:
    """Where an endpoint is.

    Attributes:
      base_url: scheme, host and path; user and password too where they were given.
      query: goes with every request.
      is_azure: whether it is one of Azure's deployments, which take another header for the key.
      host: host and port, for messages.
      user: whether a user or password stands in the address.
      secrets: what no message may hold.
    """

    base_url: str
    query: dict[str, str]
    is_azure: bool
    host: str
    user: bool
    secrets: tuple[str, ...]


def parse_address(url: str, name: str = "--base_url") -> Address:
    """Reads an address.

    Args:
      url: such as http://localhost:8000/v1.
      name: where it was given, for messages.

    Raises:
      UserError: it is none, or one that requests could not be sent to as it stands.
    """
    shown = f"{name}={_hide_secrets(url)}"
    if _BLANK.search(url):
        raise UserError(f"{shown!r} holds a blank, a backslash or a control character; take it out")
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        if "@" in url:  # the error would quote what may be half of a password
            raise UserError(
                f"{shown} is no address; in a user or password, write / as %2F, ? as %3F and # as "
                "%23"
            ) from None
        raise UserError(f"{shown} is no address ({error}); expected http://HOST:PORT/v1") from None
    if parts.path.startswith("//") and parts.hostname in ("http", "https"):
        raise UserError(f"{shown} begins with http:// twice; give it once")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise UserError(
            f"{shown} is no http:// or https:// address; local servers are mostly "
            "http://localhost:8000/v1"
        )
    if "#" in url:
        raise UserError(f"{shown} has a part after '#', which no server gets to see; leave it out")
    for call in _CALLS:
        if parts.path.rstrip("/").lower().endswith(call):
            raise UserError(
                f"{shown} names the call as well; leave {call} out, it is added to every request"
            )
    pairs = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
    query = dict(pairs)
    if len(query) < len(pairs):
        raise UserError(f"{shown} gives a key of its query twice; give each once")
    host = parts.hostname if port is None else f"{parts.hostname}:{port}"
    path = parts.path.rstrip("/")
    is_azure = "api-version" in query and (
        "/deployments/" in f"{path}/"
        or (parts.hostname.endswith(_AZURE_HOSTS) and not path.endswith("/v1"))
    )
    if is_azure and not path:
        path = "/openai"
    base_url = urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, "", ""))
    secrets = [value for key, value in query.items() if key != "api-version"]
    if parts.password:
        password = urllib.parse.unquote(parts.password)
        pair = f"{urllib.parse.unquote(parts.username or '')}:{password}"
        secrets += [parts.password, password, base64.b64encode(pair.encode()).decode()]
    return Address(base_url, query, is_azure, host, "@" in parts.netloc, tuple(secrets))


def _hide_secrets(url: str) -> str:
    """The address without user, password and the values of its query."""
    url = re.sub(r"(?<=//).*@", "[user]@", url, flags=re.DOTALL)
    return re.sub(r"(?<==)[^&#]+", "…", url) if "?" in url else url
