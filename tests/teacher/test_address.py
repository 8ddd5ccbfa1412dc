"""address, redaction: what --base_url may say, and what no message says."""

from __future__ import annotations

import pytest

from distill_sbs.errors import UserError
from distill_sbs.teacher.address import parse_address
from distill_sbs.teacher.redaction import Redactor


def test_a_query_is_carried_over() -> None:
    address = parse_address("https://h:8443/deployments/d/?tenant=seven&empty=")
    assert address.base_url == "https://h:8443/deployments/d"
    assert address.query == {"tenant": "seven", "empty": ""}
    assert address.host == "h:8443" and not address.is_azure and not address.user


@pytest.mark.parametrize(
    ("url", "base_url", "is_azure"),
    [
        ("https://h/openai/deployments/d?api-version=1", "https://h/openai/deployments/d", True),
        ("https://r.openai.azure.com/?api-version=1", "https://r.openai.azure.com/openai", True),
        ("https://r.openai.azure.com/openai/v1?api-version=preview", None, False),
        ("https://r.openai.azure.com/openai/v1/", None, False),
        ("https://h/v1?api-version=1", "https://h/v1", False),
        ("http://localhost:8000/v1//", "http://localhost:8000/v1", False),
        ("HTTP://LOCALHOST/v1?", "http://LOCALHOST/v1", False),
        ("http://[::1]:80/v1", "http://[::1]:80/v1", False),
    ],
)
def test_which_addresses_are_azures(url: str, base_url: str | None, is_azure: bool) -> None:
    address = parse_address(url)
    assert address.is_azure == is_azure
    assert base_url is None or address.base_url == base_url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000/v1", "no http:// or https:// address"),
        ("http:/h/v1", "no http:// or https:// address"),
        ("ftp://h/v1", "no http:// or https:// address"),
        ("", "no http:// or https:// address"),
        ("http://:80/v1", "no http:// or https:// address"),
        (" http://h/v1", "holds a blank"),
        ("http://h/v1\n", "holds a blank"),
        ("http://h /v1", "holds a blank"),
        ("http://h/\x1b[2J", "holds a blank"),
        ("http://h\\v1", "holds a blank, a backslash"),
        ("http://h/v1#part", "a part after '#'"),
        ("http://h/v1#", "a part after '#'"),
        ("http://h:99999/v1", "is no address"),
        ("http://[::1/v1", "is no address"),
        ("http://h/v1/chat/completions", "leave /chat/completions out"),
        ("http://h/v1/completions/", "leave /completions out"),
        ("http://h/v1?a=1&a=2", "twice"),
    ],
)
def test_addresses_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_address(url)


def test_refusals_hold_no_password() -> None:
    with pytest.raises(UserError) as raised:
        parse_address("ftp://me:hunter2hunter2@h/v1?key=sesame-sesame")
    assert "hunter2" not in str(raised.value) and "sesame" not in str(raised.value)
    address = parse_address("http://me:p%40ssword-1@h/v1?key=sesame-sesame")
    hidden = Redactor(address.secrets).hide(
        "p%40ssword-1 p@ssword-1 bWU6cEBzc3dvcmQtMQ== sesame-sesame"  # the third: Basic's form
    )
    assert hidden == "[key] [key] [key] [key]"


def test_secrets_are_taken_out_whole_and_words_that_are_none_stay() -> None:
    redactor = Redactor(["sk-1234567890", "sk-1234567890-longer", "none", None, ""])
    assert redactor.hide("sk-1234567890-longer sk-1234567890 none") == "[key] [key] none"
    assert redactor.shorten("a \n b " + "x" * 400) == "a b " + "x" * 296 + " …"
    assert redactor.hide_in({"a": ["sk-1234567890"], "b": 1}) == {"a": ["[key]"], "b": 1}
    assert redactor.hide_in(None) is None
