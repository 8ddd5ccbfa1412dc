"""Batches: made of whoever waits, by task, never larger than they may be; failures are told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from distill_sbs.serving.answering import Answer
from distill_sbs.serving.batcher import Batcher
from distill_sbs.serving.questions import Refusal


class Decoding:
    """Turns texts into capitals, when it is let; notes what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.may_go = threading.Event()

    def __call__(self, texts: Sequence[str], task: str, _: int) -> list[Answer]:
        self.calls.append((task, list(texts)))
        self.may_go.wait(30)
        if "fails" in texts:
            raise RuntimeError("out of memory")
        return [Answer(f"{task} {text.upper()}", False, False) for text in texts]


async def run_with(batcher: Batcher, decoding: Decoding, *questions: object) -> list[object]:
    """What became of all questions, of which the first is being decoded when the rest come."""
    worker = asyncio.create_task(batcher.run())
    asked = [asyncio.create_task(batcher.answer(*questions[0]))]
    while not decoding.calls:
        await asyncio.sleep(0.001)
    asked += [asyncio.create_task(batcher.answer(*question)) for question in questions[1:]]
    await asyncio.sleep(0)
    decoding.may_go.set()
    became = await asyncio.gather(*asked, return_exceptions=True)
    worker.cancel()
    return became


def texts_of(answers: object) -> list[list[str]]:
    assert isinstance(answers, list), answers
    return [[each.text for each in of_task] for of_task in answers]


def test_who_waits_is_decoded_together() -> None:
    decoding = Decoding()
    sizes: list[tuple[str, int]] = []
    batcher = Batcher(decoding, 3, 99, lambda task, size, seconds: sizes.append((task, size)))
    first, second, third = asyncio.run(
        run_with(
            batcher,
            decoding,
            (["a"], ["label"]),
            (["b", "c"], ["label", "rationale"]),
            (["d", "e"], ["label"]),
        )
    )
    assert texts_of(first) == [["label A"]]
    assert texts_of(second) == [["label B", "label C"], ["rationale B", "rationale C"]]
    assert texts_of(third) == [["label D", "label E"]]
    assert decoding.calls[0] == ("label", ["a"])
    assert sorted(decoding.calls[1:]) == [
        ("label", ["b", "c", "d"]),
        ("label", ["e"]),
        ("rationale", ["b", "c"]),
    ]
    assert sorted(sizes) == [("label", 1), ("label", 1), ("label", 3), ("rationale", 2)]
    assert batcher.waiting == 0


def test_a_failure_is_told_to_those_of_its_batch_alone() -> None:
    decoding = Decoding()
    became = asyncio.run(
        run_with(
            Batcher(decoding, 2, 99),
            decoding,
            (["a"], ["label"]),
            (["fails", "b"], ["label"]),
            (["c"], ["label"]),
        )
    )
    assert texts_of(became[0]) == [["label A"]]
    assert isinstance(became[1], RuntimeError)
    assert texts_of(became[2]) == [["label C"]]


def test_too_many_are_refused_whole() -> None:
    decoding = Decoding()
    batcher = Batcher(decoding, 2, 3)
    became = asyncio.run(
        run_with(
            batcher,
            decoding,
            (["a"], ["label"]),
            (["b", "c"], ["label"]),
            (["d"], ["label", "rationale"]),
            (["e"], ["label"]),
        )
    )
    assert isinstance(became[2], Refusal) and became[2].status == 503
    assert str(became[2]).startswith("2 inputs wait already")
    assert [texts_of(each) for each in (became[1], became[3])] == [
        [["label B", "label C"]],
        [["label E"]],
    ]


def test_nobody_listens_any_more() -> None:
    decoding = Decoding()

    async def leave() -> list[list[Answer]]:
        batcher = Batcher(decoding, 2, 9)
        worker = asyncio.create_task(batcher.run())
        gone = asyncio.create_task(batcher.answer(["a"], ["label"]))
        while not decoding.calls:
            await asyncio.sleep(0.001)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        decoding.may_go.set()
        answered = await batcher.answer(["b"], ["label"])
        worker.cancel()
        return answered

    assert texts_of(asyncio.run(leave())) == [["label B"]]
