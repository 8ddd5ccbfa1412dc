"""json_lines: what strangers write, read as it is meant or refused by file and line."""

from __future__ import annotations

import json
import pathlib

import pytest

from distill_sbs import json_lines
from distill_sbs.errors import SourceError


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "in.jsonl"


def rows(path: pathlib.Path) -> list[tuple[int, dict]]:
    return list(json_lines.read_json_lines(path))


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r"])
def test_a_line_ends_at_a_line_feed_alone(path: pathlib.Path, separator: str) -> None:
    text = json.dumps({"input": "a?b"}, ensure_ascii=False)
    # JSON itself allows no control below a blank in a text, but blanks between members.
    line = text.replace("?", separator) if ord(separator) > 0x1F else text.replace(": ", ":\r")
    path.write_bytes(f"{line}\n\n  \r\n{line}\r\n".encode())
    expected = json.loads(line)
    assert rows(path) == [(1, expected), (4, expected)]


def test_a_byte_order_mark_is_passed_over_at_the_beginning_alone(path: pathlib.Path) -> None:
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": 2}')
    assert rows(path) == [(1, {"a": 1}), (2, {"a": 2})]
    path.write_bytes(b'{"a": 1}\n\xef\xbb\xbf{"a": 2}')
    with pytest.raises(SourceError, match="in.jsonl, line 2: broken JSON"):
        rows(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": "caf\xe9"}', "not UTF-8 (invalid continuation byte, byte 11)"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": 1', "broken JSON"),
        (b"[1]", "a list found, expected one JSON object a line"),
        (b"5", "a number found"),
        (rb'{"a": "\ud83d"}', "'\\ud83d' is half of a character"),
        (rb'{"a": ["x", {"\udc00": 1}]}', "'\\udc00' is half of a character"),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "a number that is too long"),
    ],
)
def test_a_bad_line_is_refused_by_file_and_line(
    path: pathlib.Path, line: bytes, message: str
) -> None:
    path.write_bytes(b'{"a": 0}\n' + line + b"\n")
    with pytest.raises(SourceError) as refused:
        rows(path)
    assert f"{path}, line 2: " in str(refused.value)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_whole_character_in_two_halves_is_a_character(path: pathlib.Path) -> None:
    path.write_bytes(rb'{"a": "\ud83d\ude00"}')
    assert rows(path) == [(1, {"a": "😀"})]


def test_a_text_with_half_a_character_is_refused() -> None:
    with pytest.raises(SourceError, match="half of a character"):
        json_lines.parse_json('"\udc80"', "the answer")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"input": "x"}', '{"input": "x", "prediction": "é \\"2\\""}'),
        # What Python would not write as it read it.
        (
            ' {"a" : 1.10,"b":1e400, "c": 0.1000000000000000055, "a": NaN, "d":"\\u00e9"} ',
            '{"a" : 1.10, "b":1e400, "c": 0.1000000000000000055, "a": NaN, "d":"\\u00e9", '
            '"prediction": "é \\"2\\""}',
        ),
        ('{"prediction": {"b": [1]}, "a": "},"}', '{"a": "},", "prediction": "é \\"2\\""}'),
        ('{"a": 1, "\\u0070rediction": 2}', '{"a": 1, "prediction": "é \\"2\\""}'),
        ("{}", '{"prediction": "é \\"2\\""}'),
    ],
)
def test_a_member_is_set_and_the_rest_stays_as_typed(line: str, expected: str) -> None:
    assert json_lines.set_member(line, "prediction", 'é "2"') == expected


def test_the_deepest_line_that_is_read_is_written() -> None:
    depth = 1
    while True:
        line = '{"a": ' + "[" * (2 * depth) + "]" * (2 * depth) + "}"
        try:
            json_lines.parse_object(line, "a line")
        except SourceError:
            break
        assert json_lines.set_member(line, "b", 1) == line[:-1] + ', "b": 1}'
        depth *= 2
    assert depth > 100
