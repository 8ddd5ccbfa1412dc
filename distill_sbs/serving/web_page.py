"""Two pages that need nothing else: one to ask at, one that shows the interface.

Enters: the student, and what `interface.describe` says. Leaves: HTML. As in a report, a page is
built as a tree, so that what comes from data is escaped by the library that writes it; the browser
may run and load nothing but what stands in it, and ask this server alone. What a student says is
shown as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from xml.etree import ElementTree

from distill_sbs.json_lines import JsonObject
from distill_sbs.serving.served_folder import ServedStudent

Element = ElementTree.Element

_SCRIPT = """
"use strict";
const form = document.getElementById("question");
const button = form.querySelector("button");
const result = document.getElementById("result");
const place = (name) => document.getElementById(name);
function show(name, text) {
  const row = place(name + "-row");
  row.hidden = text === undefined;
  place(name).textContent = text === undefined ? "" : text;
}
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const rationale = form.elements.rationale.checked;
  button.disabled = true;
  result.setAttribute("aria-busy", "true");
  for (const name of ["label", "rationale", "note", "error"]) show(name, undefined);
  try {
    const answer = await fetch("answer", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ input: form.elements.input.value, rationale }),
    });
    const said = await answer.json();
    if (answer.ok) {
      const [one] = said.answers;
      show("label", one.label);
      show("rationale", one.rationale);
      const notes = [];
      if (one.input_cut) {
        notes.push("The input is longer than this student reads; its end was left out.");
      }
      if (one.output_cut) notes.push("The answer was cut: it is as long as this student's may be.");
      if (notes.length) show("note", notes.join(" "));
    } else {
      show("error", said.error);
    }
  } catch (error) {
    show("error", "The server does not answer.");
  }
  result.setAttribute("aria-busy", "false");
  button.disabled = false;
});
"""

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; margin: 0 auto; max-width: 44rem;
  padding: 1.5rem; color: #1a1a1a; background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p { margin: .4rem 0; } .quiet { color: #555; font-size: .9rem; }
a { color: #0055a0; }
textarea { box-sizing: border-box; width: 100%; min-height: 8rem; font: inherit; padding: .6rem;
  border: 1px solid #888; border-radius: .3rem; }
.row { display: flex; align-items: center; justify-content: space-between; margin: .6rem 0; }
button { font: inherit; padding: .4rem 1.6rem; border: 0; border-radius: .3rem; color: #fff;
  background: #0055a0; cursor: pointer; } button:disabled { background: #888; }
:focus-visible { outline: 3px solid #e69f00; outline-offset: 1px; }
dl { margin: 1.5rem 0; } dl > div { border-left: 4px solid #0055a0; padding: .2rem .9rem;
  margin: .8rem 0; background: #f4f7fb; } dl > div.refused { border-color: #b03000; }
dt { color: #555; font-size: .85rem; } dd { margin: 0; white-space: pre-wrap; font-size: 1.1rem; }
pre { white-space: pre-wrap; background: #f4f4f4; padding: .6rem; font-size: .85rem; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .2rem .8rem .2rem 0;
  vertical-align: top; }
"""


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# The script and the style that stand above, and requests to this server; nothing else.
POLICY = (
    f"default-src 'none'; script-src 'sha256-{_hash(_SCRIPT)}'; "
    f"style-src 'sha256-{_hash(_STYLE)}'; connect-src 'self'; "
    "img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


def write_page(student: ServedStudent) -> str:
    """The page to ask at."""
    html, body = _begin(student.name)
    _add(body, "h1", student.name)
    _add(
        body,
        "p",
        f"A student that answers with a label. {student.form}, {student.quantization}; it reads "
        f"{student.max_input_tokens} tokens of an input.",
        **{"class": "quiet"},
    )
    form = _add(body, "form", id="question")
    _add(_add(form, "p"), "label", "Input", **{"for": "input"})
    area = {"id": "input", "name": "input", "required": "", "autofocus": ""}
    _add(form, "textarea", "\n", **area)
    row = _add(form, "div", **{"class": "row"})
    choice = _add(row, "label")
    box = _add(choice, "input", type="checkbox", name="rationale", checked="")
    box.tail = " with a rationale"
    _add(row, "button", "Answer", type="submit")
    result = _add(body, "dl", id="result", **{"aria-live": "polite", "aria-busy": "false"})
    for name, title in (
        ("label", "label"),
        ("rationale", "rationale"),
        ("note", "note"),
        ("error", "not answered"),
    ):
        kind = {"class": "refused"} if name in ("note", "error") else {}
        group = _add(result, "div", id=f"{name}-row", hidden="", **kind)
        _add(group, "dt", title)
        _add(group, "dd", id=name)
    foot = _add(body, "p", **{"class": "quiet"})
    _add(foot, "a", "The interface for programs", href="docs")
    _add(body, "script", _SCRIPT)
    return _finish(html)


def write_interface(student: ServedStudent, described: JsonObject) -> str:
    """The page that shows what `/openapi.json` says."""
    html, body = _begin(f"Interface of {student.name}")
    _add(body, "h1", f"Interface of {student.name}")
    foot = _add(body, "p", "The same for programs: ")
    _add(foot, "a", "openapi.json", href="openapi.json")
    example = (
        "curl -H 'Content-Type: application/json' -d '{\"input\": \"…\"}' http://HOST:PORT/explain"
    )
    _add(body, "pre", example)
    paths = described["paths"]
    assert isinstance(paths, dict)
    for path, methods in paths.items():
        assert isinstance(methods, dict)
        for method, operation in methods.items():
            assert isinstance(operation, dict)
            _add(body, "h2", f"{method.upper()} {path}")
            _add(body, "p", str(operation["summary"]))
            table = _add(body, "table")
            responses = operation["responses"]
            assert isinstance(responses, dict)
            for status, response in responses.items():
                assert isinstance(response, dict)
                line = _add(table, "tr")
                _add(line, "th", status)
                _add(line, "td", str(response["description"]))
    components = described["components"]
    assert isinstance(components, dict) and isinstance(components["schemas"], dict)
    for name, schema in components["schemas"].items():
        _add(body, "h2", name)
        _add(body, "pre", json.dumps(schema, indent=2, ensure_ascii=False))
    return _finish(html)


def _begin(title: str) -> tuple[Element, Element]:
    html = Element("html", lang="en")
    head = _add(html, "head")
    _add(head, "meta", charset="utf-8")
    _add(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    _add(head, "link", rel="icon", href="data:,")  # else the browser asks for one
    _add(head, "title", title)
    _add(head, "style", _STYLE)
    return html, _add(html, "body")


def _finish(html: Element) -> str:
    return "<!DOCTYPE html>\n" + ElementTree.tostring(html, encoding="unicode", method="html")


def _add(parent: Element, tag: str, text: str = "", **attributes: str) -> Element:
    element = ElementTree.SubElement(parent, tag, attributes)
    if text:
        element.text = _printable(text)
    return element


def _printable(text: str) -> str:
    """Without the characters that HTML has not."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in text)
