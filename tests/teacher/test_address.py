"""address, redaction: what --base_url may say, and what no message says."""

from __future__ import annotations

import base64
import urllib.parse

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
        ("http://h/v1/Chat/Completions?x=1", "leave /chat/completions out"),
        ("http://h/v1/chat/", "leave /chat out"),
        ("http://http://h/v1", "begins with http:// twice"),
        ("http://u:half/other@h/v1", "write / as %2F"),
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
    for url in ("http://me:hunter/2@h/v1", "http://me:hunter#2@h/v1", "http://me:hunter?2=3@h/v1"):
        with pytest.raises(UserError) as raised:
            parse_address(url)
        assert "hunter" not in str(raised.value)
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


SECRET = "sk-proj-Ab3+d/5gH_7"  # with characters that URLs, HTML and JSON write otherwise


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        SECRET.upper(),
        urllib.parse.quote(SECRET, safe=""),
        urllib.parse.quote(SECRET, safe="").lower(),
        "".join(f"%{ord(letter):02X}" for letter in SECRET),
        "".join(f"&#{ord(letter)};" for letter in SECRET),
        "".join(f"&#x{ord(letter):X};" for letter in SECRET),
        "".join(f"\\u{ord(letter):04x}" for letter in SECRET),
        "".join(f"\\x{ord(letter):02x}" for letter in SECRET),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("="),
        " ".join(SECRET),
        SECRET[:9] + "\n" + SECRET[9:],
        SECRET[:9] + "\\n" + SECRET[9:],
        SECRET[:9] + "\u200b" + SECRET[9:],
        SECRET[:12],
        SECRET[-12:],
        SECRET[3:16],
    ],
)
def test_a_secret_in_another_form_is_taken_out(written: str) -> None:
    redactor = Redactor([SECRET])
    assert redactor.hide(f"the key {written}, they say") == "the key [key], they say"
    assert redactor.hide_in({"a": [f"({written})"], written: 1}) == {"a": ["([key])"], "[key]": 1}


def test_halves_of_a_secret_in_two_places() -> None:
    key = "sk-" + "aB3dE5gH" * 6
    assert Redactor([key]).hide(f"['{key[:25]}', '{key[25:]}']") == "['[key]', '[key]']"


def test_what_is_shorter_than_half_a_secret_stays() -> None:
    assert Redactor(["sk-proj-" + "aB3dE5gH" * 6]).hide("sk-proj-aB3d… sk-proj") == (
        "sk-proj-aB3d… sk-proj"
    )


def test_long_texts_take_no_longer() -> None:
    """Linear in the text; a quadratic search would take hours here."""
    redactor = Redactor(["sk-proj-" + "aB3dE5gH" * 18])
    for text in ("sk-proj-" * 20_000, "s " * 100_000, "%73" * 50_000, "s" + " " * 200_000):
        assert redactor.hide(text) == text
