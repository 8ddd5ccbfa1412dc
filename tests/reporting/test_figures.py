"""The figures: which are drawn, of what, the same bytes each time, and nothing of data in code."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
from collections.abc import Callable
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas
from PIL import Image

from distill_sbs.reporting import figures as drawn
from distill_sbs.reporting import parallel
from distill_sbs.reporting.drawing import Figure, choose_styles, keep_one_rate
from distill_sbs.reporting.findings import find
from distill_sbs.reporting.parallel import draw_figures
from distill_sbs.reporting.run import Curve, Model, Run, Scores

SMALL, LARGE = Model("small", 60_000_000), Model("large", 770_000_000)
CURVES: dict[str, Curve] = {
    "label_loss": ((10, 2.0), (20, 1.0)),
    "validation_accuracy": ((20, 0.25),),
}


def make_run(
    method: str,
    accuracy: float,
    seed: int = 0,
    fraction: float = 1.0,
    rate: float | None = None,
    model: Model = SMALL,
    curves: dict[str, Curve] | None = None,
    dataset: str = "cqa",
) -> Run:
    teacher = None if method == "finetune" else "palm"
    return Run(
        f"{method}{seed}{fraction}{rate}{model.name}",
        dataset,
        method,
        teacher,
        model,
        fraction,
        rate,
        seed,
        scores={"test": Scores(accuracy, 400), "validation": Scores(accuracy, 100)},
        curves=curves or {},
    )


LINE = Run("t", "cqa", "few_shot_cot", "palm", scores={"test": Scores(0.5)})
RUNS = [
    LINE,
    *(make_run("finetune", 0.4 + 0.1 * seed, seed, curves=CURVES) for seed in range(2)),
    make_run("finetune", 0.3, fraction=0.25),
    make_run("finetune", 0.55, model=LARGE),
    *(
        make_run("dss", 0.5 + rate / 10, rate=rate, fraction=fraction)
        for rate in (0.5, 1.0)
        for fraction in (0.25, 1.0)
    ),
]


@pytest.fixture(scope="module")
def made() -> list[Figure]:
    """The figures of `RUNS`."""
    figures, notes = draw_figures(find(RUNS, "test"))
    assert notes == []
    return figures


def test_every_figure_of_the_paper_is_drawn_where_there_are_points(made: list[Figure]) -> None:
    assert [each.name for each in made] == [
        "data_fraction_1",
        "model_size_1",
        "least_size_and_data_1",
        "rationale_rate_1",
        "rationale_rate_2",
        "training_1",
    ]
    fraction, size, least, *_, training = made
    assert fraction.title == "cqa, small (60 M): accuracy against data"
    assert fraction.caption == (
        "Accuracy: mean over n = 1 to 2 seeds, 400 test examples. Bands: ± standard error. "
        "Dotted: standard finetuning on 100 %. Shown is λ = 1."
    )
    assert size.title == "cqa, 100 % of the data: accuracy against size"
    assert "above the teacher's 50.0 %" in least.caption
    assert training.caption == (
        "Losses and accuracy: mean over n = 2 seeds, 100 validation examples. "
        "Bands: ± standard error."
    )


class Drawn(NamedTuple):
    """What stands in a figure."""

    note: str
    labels: list[str]
    ticks: list[str]
    canvas: Canvas


def draw(monkeypatch: pytest.MonkeyPatch, runs: list[Run]) -> dict[str, Drawn]:
    """The figures of runs, by name, as they are before they become pictures."""
    found: dict[str, Drawn] = {}

    def look(name: str, title: str, caption: str, fill: Callable[[Canvas], None]) -> Figure:
        canvas = Canvas()
        fill(canvas)
        (legend,) = canvas.legends
        axis = canvas.axes[0].xaxis
        found[name] = Drawn(
            legend.get_title().get_text(),
            [text.get_text() for text in legend.get_texts()],
            [axis.get_major_formatter()(place) for place in axis.get_majorticklocs()],
            canvas,
        )
        return Figure(name, title, caption, b"", "")

    monkeypatch.setattr(drawn, "render", look)
    draw_figures(find(runs, "test"))
    return found


def test_every_figure_says_n_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = draw(monkeypatch, RUNS)
    assert len(looks) == 6
    bands = "400 test examples. Bands: ± standard error."
    assert looks["data_fraction_1"].note == f"Mean over n = 1 to 2 seeds, {bands}"
    assert looks["data_fraction_1"].labels == [
        "standard finetuning, n = 1 to 2",
        "distilling step-by-step (palm), λ = 1, n = 1",
        "standard finetuning, 100 %",
        "few-shot CoT of the teacher (palm)",
    ]
    assert looks["model_size_1"].note == f"Mean over n = 1 to 2 seeds, {bands}"
    least = looks["least_size_and_data_1"]
    assert least.note == "Above 50.0 %: mean over n = 1 seed, 400 test examples."
    assert looks["rationale_rate_1"].note == (
        "Mean over n = 1 seed, 400 test examples. No bands: one seed."
    )
    training = looks["training_1"]
    assert training.note == (
        "Mean over n = 2 seeds, 100 validation examples. Bands: ± standard error."
    )
    assert training.labels == ["standard finetuning"]


def test_a_mean_from_elsewhere_has_no_band(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        dataclasses.replace(
            make_run("finetune", 0.5, fraction=fraction),
            seeds=4,
            scores={"test": Scores(0.5, examples)},
        )
        for fraction, examples in ((0.5, 300), (1.0, 1200))
    ]
    (look,) = draw(monkeypatch, runs).values()
    assert look.note == (
        "Mean over n = 4 seeds, 300 to 1,200 test examples. No bands: no error is known."
    )


def test_no_point_hides_another(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [Model("a", 220_000_000), Model("b", 250_000_000)]  # near each other, as T5's Bases are
    runs = [LINE] + [
        make_run(method, 0.9, fraction=fraction, rate=rate, model=model)
        for method, rate in (("finetune", None), ("joint", None), ("dss", 1.0))
        for model in sizes
        for fraction in (0.5, 1.0)
    ]
    (axes,) = draw(monkeypatch, runs)["least_size_and_data_1"].canvas.axes
    points = [
        (float(x), float(y))
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
        for x, y in np.asarray(line.get_xydata(), float)
    ]
    assert len(points) == 6 and {x for x, _ in points} == {0.5}
    rows = sorted(y for _, y in points)
    assert min(high - low for low, high in itertools.pairwise(rows)) > 0.2
    assert [text.get_text() for text in axes.get_yticklabels()] == ["220 M", "250 M"]


@pytest.mark.parametrize(
    "folder", ["/runs", "/a/folder/of/many/checkpoints/" * 3, "/x" * 400, "/a b\n" * 50]
)
def test_a_legend_names_every_line(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """However long and however alike the names begin, and without leaving the picture."""
    starts = ["None", *(f"{folder}/text_{each}" for each in "abcd")]
    runs = [
        dataclasses.replace(
            make_run("dss", 0.5, fraction=fraction, rate=1.0),
            folder=f"{start} {fraction}",
            settings={"INITIAL_CHECKPOINT_PATH": start},
        )
        for start in starts
        for fraction in (0.5, 1.0)
    ]
    assert_whole(draw_figures(find(runs, "test"))[0][0])
    (look,) = draw(monkeypatch, runs).values()
    texts = [" ".join(label.split()) for label in look.labels]
    assert len(texts) == len(set(texts)) == len(starts)
    assert "distilling step-by-step (palm), from random parameters" in texts
    for each in starts[1:]:
        assert sum(text.endswith(each[-7:]) for text in texts) == 1


def test_a_rate_of_0_has_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run("dss", 0.5, rate=rate) for rate in (0.0, 0.1, 0.3, 1.0, 5.0)]
    look = draw(monkeypatch, runs)["rationale_rate_1"]
    assert look.ticks == ["0", "0.1", "0.3", "1", "5"]
    axes = look.canvas.axes[0]
    at = [
        axes.transAxes.inverted().transform(axes.transData.transform((x, 0.5)))[0] for x in (0, 5)
    ]
    assert at == pytest.approx([0.041, 0.959], abs=0.001)  # 0.045 / 1.09


def test_ticks_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    fractions = (0.01, 0.011, 0.02, 0.5, 0.97, 1.0)
    runs = [make_run("finetune", 0.5, fraction=each) for each in fractions]
    (look,) = draw(monkeypatch, runs).values()
    assert look.ticks == ["1", "2", "50", "100"]


def test_one_point_is_no_figure() -> None:
    figures, _ = draw_figures(find([make_run("finetune", 0.5)], "test"))
    assert figures == []


def test_the_same_runs_give_the_same_bytes(made: list[Figure]) -> None:
    (again,), _ = draw_figures(find([run for run in RUNS if run.curves], "test"))
    assert again == made[-1]


def assert_whole(figure: Figure) -> None:
    """Nothing is cut: the picture's edges are white."""
    with Image.open(io.BytesIO(figure.png)) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[0] > 400 and pixels.shape[1] > 900
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all(), figure.name


def test_files_are_whole(made: list[Figure]) -> None:
    for one in made:
        assert_whole(one)
        assert not re.search(r"\d{4}-\d\d-\d\d", one.svg)


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "$x^2$ \\frac{1}{0}", "a\nb\x1b[31m", "名前😀", "x" * 200]
)
def test_names_are_data_in_an_svg(name: str) -> None:
    runs = [make_run("finetune", 0.5, fraction=each, dataset=name) for each in (0.5, 1.0)]
    (figure,) = draw_figures(find(runs, "test"))[0]
    tree = ElementTree.fromstring(figure.svg.encode())
    tags = {element.tag.rpartition("}")[2] for element in tree.iter()}
    assert "script" not in tags and "foreignObject" not in tags
    assert not any(
        key.lower().startswith("on") for element in tree.iter() for key in element.attrib
    )


def test_colours_are_told_apart_and_stay_with_their_method() -> None:
    styles = choose_styles(find(RUNS, "test").cells)
    looks = {(each.colour, each.marker, each.dash) for each in styles.values()}
    assert len(looks) == len(styles) == 3
    by_name = {(key[1].method, key[1].rate): each.colour for key, each in styles.items()}
    assert by_name["finetune", None] == "#000000"
    assert "#0072B2" in (by_name["dss", 0.5], by_name["dss", 1.0])


def test_of_several_rates_the_one_with_most_points_is_shown() -> None:
    cells = find([*RUNS, make_run("dss", 0.6, rate=2.0)], "test").cells
    kept, note = keep_one_rate(cells)
    assert {cell.series.rate for cell in kept} == {None, 1.0}
    assert note == " Shown is λ = 1."


def test_more_than_fits_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "MOST_FIGURES", 1)
    monkeypatch.setattr(drawn, "MOST_LINES", 1)
    figures, notes = draw_figures(find(RUNS, "test"))
    assert len(figures) == 1
    assert notes == [
        "a figure shows 1 of its 2 lines; the tables have all",
        "5 figures more are not drawn; report on fewer runs to see them",
    ]


def test_a_pretrained_run_shows_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    losses: dict[str, Curve] = {
        "label_loss": ((10, 5.0), (20, 3.0), (30, 2.5)),
        "validation_loss": ((20, 3.5), (30, 3.0)),
    }
    run = Run("p", "text", "pretrain", None, SMALL, 1.0, seed=0, curves=losses)
    found = draw(monkeypatch, [run])
    assert found.keys() == {"pretraining_1"}
    assert found["pretraining_1"].labels == ["training", "validation"]
    lines = found["pretraining_1"].canvas.axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[5.0, 3.0, 2.5], [3.5, 3.0]]
    assert draw(monkeypatch, [dataclasses.replace(run, curves={})]) == {}
