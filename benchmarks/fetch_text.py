r"""English text out of Debian's packages, for pretraining: dictionaries, a thesaurus, a book.

    python benchmarks/fetch_text.py --output=text
    python benchmarks/fetch_text.py --output=text --packages=dict-foldoc \
      --inputs_of=cqa,svamp,esnli --data_dir=prepared --pieces=8000

Enters: names of packages, which `apt-get download` fetches (a Debian or Ubuntu with its package
lists: `apt-get update`); they are unpacked into a temporary folder, never installed, and root's
rights are not asked for. With --inputs_of also the training inputs of prepared datasets. Leaves:
one text file a package or dataset, UTF-8, a paragraph a line, and with --pieces a vocabulary of
them, `vocabulary.model`, for students too small for T5's. The texts have licences of their own (the
GPL, the GFDL, WordNet's; see each package's `copyright`): they are not part of this project.
"""

from __future__ import annotations

import argparse
import gzip
import io
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from distill_sbs import constants  # noqa: E402
from distill_sbs.cli import quiet_tensorflow, terminal  # noqa: E402
from distill_sbs.cli.run_main import run_main  # noqa: E402
from distill_sbs.errors import UserError  # noqa: E402
from distill_sbs.files import open_replacement, write_file  # noqa: E402

# Where GCIDE names what an entry was taken from.
_SOURCE_NOTE = re.compile(r"\[(?:[0-9]{4} Webster|PJC|WordNet [0-9.]+)[^\]]{0,20}\]")
_SPACES = re.compile(r"\s+")
# Lines that a vocabulary is made of, chosen at random.
SENTENCES_READ = 200_000


def read_dictd(file: pathlib.Path) -> Iterator[str]:
    """The paragraphs of a dictionary in dictd's format; lines that were broken are joined."""
    content = gzip.decompress(file.read_bytes()).decode("utf-8", errors="replace")
    for paragraph in re.split(r"\n[ \t]*\n", _SOURCE_NOTE.sub("", content)):
        # `{` and `}` mark references.
        text = _SPACES.sub(" ", paragraph.replace("{", "").replace("}", "")).strip()
        if text:
            yield text


def read_wordnet(folder: pathlib.Path) -> Iterator[str]:
    """`words: what they mean` of every set of synonyms."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text("utf-8", errors="replace").splitlines():
            if line.startswith(" "):  # the licence, at the beginning
                continue
            fields, _, meaning = line.partition(" | ")
            columns = fields.split(" ")
            words = columns[4 : 4 + 2 * int(columns[3], 16) : 2]
            named = ", ".join(re.sub(r"\([a-z]+\)$", "", word).replace("_", " ") for word in words)
            yield f"{named}: {meaning.strip()}"


def read_bible(folder: pathlib.Path) -> Iterator[str]:
    """The verses, by the program of the package `bible-kjv`, without their numbers."""
    command = [folder / "usr/bin/bible", "-f", "-p", folder / "usr/lib", "gen1:1-rev22:21"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{command[0]} ended with status {done.returncode}: {done.stderr.strip()}")
    for line in done.stdout.splitlines():
        yield line.partition(" ")[2]


# Package → what else it takes, and its texts out of the folder where all were unpacked.
PACKAGES: dict[str, tuple[Sequence[str], Callable[[pathlib.Path], Iterator[str]]]] = {
    "dict-gcide": ((), lambda folder: read_dictd(folder / "usr/share/dictd/gcide.dict.dz")),
    "dict-foldoc": ((), lambda folder: read_dictd(folder / "usr/share/dictd/foldoc.dict.dz")),
    "dict-jargon": ((), lambda folder: read_dictd(folder / "usr/share/dictd/jargon.dict.dz")),
    "wordnet-base": ((), lambda folder: read_wordnet(folder / "usr/share/wordnet")),
    "bible-kjv-text": (("bible-kjv",), read_bible),
}


def fetch_package(name: str, folder: pathlib.Path) -> None:
    """Downloads a package and unpacks it into a folder.

    Raises:
      UserError: apt-get or dpkg-deb is missing, or fails; it tells what they said.
    """
    download = folder / "packages" / name
    download.mkdir(parents=True)
    _run(["apt-get", "download", name], download)
    for package in download.iterdir():
        _run(["dpkg-deb", "--extract", str(package), str(folder)], download)


def _run(command: Sequence[str], folder: pathlib.Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(
            f"there is no {command[0]}: the packages are Debian's; run this on a Debian or Ubuntu, "
            "or put text of your own into TEXT_DIR"
        ) from None
    if done.returncode:
        raise UserError(
            f"{' '.join(command)} ended with status {done.returncode}: {done.stderr.strip()[-500:]}"
        )


def read_inputs(dataset: str, data_dir: str | None) -> Iterator[str]:
    """The inputs of a prepared dataset's training split, each text once."""
    quiet_tensorflow.import_tensorflow()
    from distill_sbs.data import registration, settings
    from distill_sbs.data.tasks.source import RecordsDataSource

    settings.use(settings.DataSettings(data_dir))
    registration.load_task_files()
    source = RecordsDataSource(registration.get_dataset(dataset), ())
    rows = source.get_dataset("train", shuffle=False).as_numpy_iterator()
    yield from dict.fromkeys(_SPACES.sub(" ", row["input"].decode()).strip() for row in rows)


def train_vocabulary(folder: pathlib.Path, pieces: int) -> bytes:
    """A SentencePiece model of the text files of a folder, of T5's kind and with T5's first ids.

    Raises:
      UserError: there are none, or so many pieces cannot be made of them.
    """
    import sentencepiece

    texts = sorted(folder.glob("*.txt"))
    if not texts:
        raise UserError(f"--pieces={pieces}: {folder} holds no text file to make a vocabulary of")
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=",".join(map(str, texts)),
            model_writer=model,
            model_type="unigram",
            vocab_size=pieces,
            input_sentence_size=SENTENCES_READ,
            shuffle_input_sentence=True,
            pad_id=constants.PAD_ID,
            eos_id=constants.EOS_ID,
            unk_id=2,
            bos_id=-1,
            required_chars="".join(map(chr, range(33, 127))),
            num_threads=1,  # the same bytes every time
            minloglevel=2,
        )
    except RuntimeError as error:
        told = str(error).rpartition("] ")[2]  # what stands before is about its source
        raise UserError(f"--pieces={pieces}: {told}") from None
    return model.getvalue()


def _write(file: pathlib.Path, texts: Iterator[str]) -> None:
    lines = list(texts)
    write_file(str(file), "".join(f"{line}\n" for line in lines))
    size = file.stat().st_size / 1e6
    terminal.say(f"{file}: {len(lines):,} lines, {size:.1f} MB")


def _work(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", required=True, help="the folder of text files")
    parser.add_argument("--packages", default=",".join(PACKAGES), help="default: %(default)s")
    parser.add_argument("--inputs_of", default="", help="prepared datasets: cqa,svamp,…")
    parser.add_argument("--data_dir", help="where they are prepared")
    parser.add_argument("--pieces", type=int, help="trains a vocabulary of so many pieces")
    options = parser.parse_args(arguments)
    names = list(filter(None, options.packages.split(",")))
    for name in names:
        if name not in PACKAGES:
            raise UserError(f"--packages: {name!r} is not known; known: {', '.join(PACKAGES)}")
    output = pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    for name in names:
        needed, read = PACKAGES[name]
        with tempfile.TemporaryDirectory(prefix="fetch_text_") as folder:
            for each in (name, *needed):
                fetch_package(each, pathlib.Path(folder))
            _write(output / f"{name}.txt", read(pathlib.Path(folder)))
    for name in filter(None, options.inputs_of.split(",")):
        _write(output / f"{name}_inputs.txt", read_inputs(name, options.data_dir))
    if options.pieces is not None:
        file = output / "vocabulary.model"
        model = train_vocabulary(output, options.pieces)
        with open_replacement(file, "wb") as written:
            written.write(model)
        terminal.say(f"{file}: {options.pieces:,} pieces")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches what the command line asks for; returns the exit status."""
    return run_main(lambda: _work(arguments), "what is written so far is whole")


if __name__ == "__main__":
    sys.exit(main())
