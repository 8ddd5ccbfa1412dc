"""The pages: what comes from a checkpoint stays text, and the policy fits what stands in them."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re

from distill_sbs.data import sentencepiece_model
from distill_sbs.serving import interface, web_page
from distill_sbs.serving.options import ServeConfig
from distill_sbs.serving.served_folder import ServedStudent

HOSTILE = '</title><script>alert(1)</script>"\x1b[31m'
STUDENT = ServedStudent(
    name=HOSTILE,
    mixture=HOSTILE,
    form="ctranslate2",
    quantization=HOSTILE,
    prefixes={"label": HOSTILE, "rationale": HOSTILE},
    max_input_tokens=64,
    max_decode_tokens=16,
    vocab_size=280,
    vocabulary=sentencepiece_model.describe("bytes"),
    written_by=HOSTILE,
)


def test_a_name_stays_text() -> None:
    described = interface.describe(ServeConfig(model="served"), STUDENT, "0.2.0")
    for page in (
        web_page.write_page(STUDENT),
        web_page.write_interface(STUDENT, described),
        web_page.write_page(dataclasses.replace(STUDENT, name="a\ud800b")),
    ):
        assert "<script>alert" not in page and "\x1b" not in page
        page.encode()
    assert "&lt;/title&gt;&lt;script&gt;alert(1)" in web_page.write_page(STUDENT)
    assert "http" not in web_page.write_page(STUDENT)


def test_the_policy_allows_what_stands_in_the_page_and_no_more() -> None:
    page = web_page.write_page(STUDENT)
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in web_page.POLICY
    assert web_page.POLICY.startswith("default-src 'none'; ")
    assert "unsafe" not in web_page.POLICY
