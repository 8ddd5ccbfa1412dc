"""benchmarks/fetch_text.py: what it makes of dictionaries, and what it says where it cannot."""

from __future__ import annotations

import gzip
import pathlib

import fetch_text
import pytest

from distill_sbs.data import vocabulary


def test_a_dictionary_becomes_a_paragraph_a_line(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "some.dict.dz"
    entry = (
        'Abate \\A*bate"\\, v. t.\n   1. To beat down; as, to {abate}\n      a wall.\n'
        "      [1913 Webster]\n\n\n   [1913 Webster +PJC]\n \n   2. To lessen.\n"
    )
    file.write_bytes(gzip.compress(entry.encode() + b"\n\nbroken \xe4 byte\n"))
    assert list(fetch_text.read_dictd(file)) == [
        'Abate \\A*bate"\\, v. t. 1. To beat down; as, to abate a wall.',
        "2. To lessen.",
        "broken \ufffd byte",
    ]


def test_wordnet_becomes_words_and_their_meaning(tmp_path: pathlib.Path) -> None:
    licence = "  1 This software and database is being provided to you\n"
    noun = "00039211 04 n 02 give_and_take 0 interplay 0 001 @ 00039021 n 0000 | a to and fro  \n"
    adjective = "00001740 00 a 01 able(p) 0 000 | having means  \n"
    for part, rows in (("noun", noun), ("verb", ""), ("adj", adjective), ("adv", "")):
        (tmp_path / f"data.{part}").write_text(licence + rows)
    assert list(fetch_text.read_wordnet(tmp_path)) == [
        "give and take, interplay: a to and fro",
        "able: having means",
    ]


def test_inputs_of_a_prepared_dataset_are_written_once_each(
    tiny_settings, tiny_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    del tiny_settings  # puts the settings back
    arguments = [f"--output={tmp_path}", "--packages=", "--inputs_of=tiny"]
    assert fetch_text.main([*arguments, f"--data_dir={tiny_data}"]) == 0
    lines = (tmp_path / "tiny_inputs.txt").read_text().splitlines()
    assert lines == [f"question {number}" for number in range(40)]


def test_an_unknown_package_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch_text.main([f"--output={tmp_path / 'text'}", "--packages=emacs"]) == 2
    assert "--packages: 'emacs' is not known; known: dict-gcide, " in capsys.readouterr().err
    assert not (tmp_path / "text").exists()


def test_a_machine_without_apt_is_told(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch_text.main([f"--output={tmp_path}", "--packages=dict-foldoc"]) == 2
    assert "there is no apt-get: the packages are Debian's" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.txt"))


def test_a_vocabulary_of_the_texts_is_the_same_every_time(tmp_path: pathlib.Path) -> None:
    words = [f"{first}{second}" for first in ("ab", "cd", "ef") for second in ("gh", "ij", "kl")]
    lines = [f"{one} {other}" for one in words for other in words]
    (tmp_path / "some.txt").write_text("\n".join(lines))
    arguments = [f"--output={tmp_path}", "--packages=", "--pieces=105"]
    models = []
    for _ in range(2):
        assert fetch_text.main(arguments) == 0
        models.append((tmp_path / "vocabulary.model").read_bytes())
    assert models[0] == models[1]
    loaded = vocabulary.load(str(tmp_path / "vocabulary.model"))
    assert (loaded.vocab_size, loaded.pad_id, loaded.eos_id, loaded.unk_id) == (105, 0, 1, 2)
    assert loaded.decode(loaded.encode("abgh ~")) == "abgh ~"


def test_more_pieces_than_the_texts_have_are_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "some.txt").write_text("a b\n")
    assert fetch_text.main([f"--output={tmp_path}", "--packages=", "--pieces=5000"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --pieces=5000: Vocabulary size too high")
    assert not (tmp_path / "vocabulary.model").exists()
    assert fetch_text.main([f"--output={tmp_path / 'none'}", "--packages=", "--pieces=500"]) == 2
    assert "holds no text" in capsys.readouterr().err
