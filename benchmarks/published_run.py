"""A whole run as the published code does it, with its libraries and none of ours.

    python benchmarks/published_run.py TEXTS OUTPUT     # `whole_run.py` writes TEXTS

Enters: TEXTS with `settings.json` and {train,validation,test}.jsonl of input, label and rationale.
Leaves: OUTPUT/{state.pt,results.json}. Every text is tokenised before the first step, a step
takes label and rationale of its examples in two passes, each padded to its longest text; after the
last step the inputs of validation and of the test split are answered greedily, and parameters and
optimizer are saved, which the published code leaves out.
"""

from __future__ import annotations

import json
import pathlib
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import sentencepiece
import torch
import transformers

END, PADDING, IGNORED = 1, 0, -100


class Example(TypedDict):
    """Token ids of a line, and its label's text."""

    label_input: list[int]
    rationale_input: list[int]
    label: list[int]
    rationale: list[int]
    text: str


def pad(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """Rows as long as the longest of them."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


class Run:
    """The model, its data and its optimizer."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._settings: dict[str, Any] = json.loads((folder / "settings.json").read_text())
        self._pieces = sentencepiece.SentencePieceProcessor(self._settings["vocabulary_file"])
        self._splits = {
            name: list(self._tokenise(folder / f"{name}.jsonl"))
            for name in ("train", "validation", "test")
        }
        torch.manual_seed(0)
        values = transformers.T5Config(**self._settings["model"])
        values.tie_word_embeddings = self._settings["model"]["tie_word_embeddings"]
        self._model = transformers.T5ForConditionalGeneration(values)
        # Or encoder and decoder would have tables of their own.
        self._model.set_input_embeddings(self._model.shared)
        self._update = torch.optim.AdamW(
            self._model.parameters(), lr=self._settings["learning_rate"], weight_decay=0.0
        )

    def _tokenise(self, file: pathlib.Path) -> Iterator[Example]:
        def encode(text: str, length: int) -> list[int]:
            return [*self._pieces.encode(text)[: length - 1], END]

        settings = self._settings
        inputs, targets = settings["lengths"]["inputs"], settings["lengths"]["targets"]
        for line in file.read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            yield Example(
                label_input=encode(settings["label_prefix"] + found["input"], inputs),
                rationale_input=encode(settings["rationale_prefix"] + found["input"], inputs),
                label=encode(found["label"], targets),
                rationale=encode(found["rationale"], targets),
                text=found["label"],
            )

    def _loss(self, inputs: Sequence[list[int]], targets: Sequence[list[int]]) -> torch.Tensor:
        tokens = pad(inputs, PADDING)
        labels = pad(targets, IGNORED)
        return self._model(
            input_ids=tokens, attention_mask=(tokens != PADDING).long(), labels=labels
        ).loss

    def train(self) -> float:
        """All steps; the last one's loss."""
        order, examples = random.Random(0), self._splits["train"]
        self._model.train()
        loss = torch.tensor(0.0)
        for _ in range(self._settings["steps"]):
            batch = order.sample(examples, self._settings["batch_size"] // 2)
            loss = self._loss(
                [each["label_input"] for each in batch], [each["label"] for each in batch]
            ) + self._loss(
                [each["rationale_input"] for each in batch], [each["rationale"] for each in batch]
            )
            self._update.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._update.step()
        return float(loss.detach())

    def evaluate(self, split: str) -> float:
        """The share of labels that are answered exactly."""
        examples, size = self._splits[split], self._settings["batch_size"]
        right = 0
        self._model.eval()
        with torch.no_grad():
            for start in range(0, len(examples), size):
                batch = examples[start : start + size]
                tokens = pad([each["label_input"] for each in batch], PADDING)
                answers = self._model.generate(
                    input_ids=tokens,
                    attention_mask=(tokens != PADDING).long(),
                    max_new_tokens=self._settings["answer_tokens"],
                    do_sample=False,
                    num_beams=1,
                ).tolist()
                for answer, each in zip(answers, batch, strict=True):
                    kept = [piece for piece in answer if END < piece < len(self._pieces)]
                    right += self._pieces.decode(kept) == each["text"]
        return right / len(examples)

    def save(self, folder: pathlib.Path, results: dict[str, float]) -> None:
        """Parameters, the optimizer's state, and what was found."""
        folder.mkdir()
        state = {"model": self._model.state_dict(), "optimizer": self._update.state_dict()}
        torch.save(state, folder / "state.pt")
        (folder / "results.json").write_text(json.dumps(results))


def main() -> None:
    """Trains, answers, saves."""
    # As XLA does. Gradients of a random student's large logits are mostly denormal numbers, with
    # which products take torch many times as long; a pretrained student has few.
    torch.set_flush_denormal(True)
    run = Run(pathlib.Path(sys.argv[1]))
    loss = run.train()
    found = {name: run.evaluate(name) for name in ("validation", "test")}
    run.save(pathlib.Path(sys.argv[2]), {"loss": loss, **found})


if __name__ == "__main__":
    main()
