"""The report: its charts show the numbers of the cells, and the page works in a real browser, opened from disk."""

from __future__ import annotations

import ast
import dataclasses
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hydra.types import RunMode

from agents.experiment.report import page as report
from agents.experiment.report.chart import is_learnt, short
from agents.experiment.report.charts import charts as make_charts
from agents.experiment.report.words import gives_all, headline
from agents.experiment.tables import summarise

pytest.importorskip("jinja2", reason="needs the extra report")
pytest.importorskip("matplotlib", reason="needs the extra report")

EVIL = "<script>document.title = 'taken'</script> </script> & <b>bold</b>"


@pytest.fixture(scope="module")
def measured(grid):
    """The comparison, its results and the folders of its cells."""
    run, cells = grid
    results = [json.loads(p.read_text()) for p in sorted(cells.glob("*/result.json"))]
    places = {
        (r["agent"], r["seed"]): p.parent for r, p in zip(results, sorted(cells.glob("*/result.json")), strict=True)
    }
    return json.loads((run / "comparison.json").read_text()), results, places


def last_choices(places, agent):
    """Last choices `[N,K]` of an agent, one array per seed."""
    return [np.load(p / "choices.npz")["last"].astype(float) for (a, _), p in places.items() if a == agent]


# --- charts -----------------------------------------------------------------------------------------------------------


def test_charts_show_the_numbers_of_the_cells(measured, prepared):
    comparison, results, places = measured
    choices = {"best_single": last_choices(places, "best_single")}
    charts = {c.name: c for c in make_charts(comparison, results, choices, prepared)}
    rows = {r["agent"]: r for r in comparison["tables"]["test"]}
    forest = charts["differences-accuracy-test"].frame.set_index("agent")
    pair = rows["best_single"]["difference_accuracy"]
    assert forest.loc["best_single", "mean"] == pytest.approx(100 * pair["mean"])
    assert forest.loc["best_single", "high"] == pytest.approx(100 * pair["interval"][1])
    assert "control" not in forest.index
    curve = charts["student"].frame.set_index(["agent", "step"])["accuracy"]
    step = results[0]["curve"][0]["step"]
    looks = [r["curve"][0]["accuracy"] for r in results if r["agent"] == "control"]
    assert curve["control", step] == pytest.approx(np.mean(looks))
    cost = charts["cost"].frame.set_index(["agent", "part"])["seconds"]
    assert cost["control", "training the agent"] == 0
    assert set(charts["gain"].frame["agent"]) == {"reinforce"}, "only learnt agents have joint training"


def test_selection_is_cut_as_the_chart_says(measured, prepared):
    comparison, results, places = measured
    agent = "best_single"
    choices = {agent: last_choices(places, agent)}
    charts = {c.name: c for c in make_charts(comparison, results, choices, prepared)}
    train = prepared.task.splits["train"]
    right = prepared.signals("train").logits(np.arange(len(train))).argmax(-1) == train.labels[:, None]
    k, name = 2, prepared.teachers[2].name

    def mean_rate(mask: np.ndarray) -> float:
        met = [last[mask & (last[:, k] >= 0), k] for last in choices[agent]]
        return float(np.mean([m.mean() for m in met if len(m)]))

    by = charts["selection-correctness"].frame.set_index(["teacher", "teacher is"])["rate"]
    assert by[name, "right"] == pytest.approx(mean_rate(right[:, k]), rel=1e-6)
    assert by[name, "wrong"] == pytest.approx(mean_rate(~right[:, k]), rel=1e-6)
    assert by[name, "right"] > by[name, "wrong"], "the rule looks at who is right"
    by = charts["selection-class"].frame.set_index(["teacher", "class"])["rate"]
    assert by[name, "positive"] == pytest.approx(mean_rate(train.labels == 1), rel=1e-6)
    words = np.array([sum(len(t.split()) for t in texts) for texts in train.texts])
    by = charts["selection-length"].frame.set_index(["teacher", "length"])["rate"]
    for label in charts["selection-length"].frame["length"].unique():
        low, high = int(label.split()[0]), int(label.split()[2])
        assert by[name, label] == pytest.approx(mean_rate((words >= low) & (words <= high)), rel=1e-6)


def test_explorer_shows_probabilities_choices_and_the_student(measured, prepared):
    _, _, places = measured
    cells = {a: dict(np.load(p / "choices.npz")) for (a, seed), p in places.items() if seed == 0}
    known = report.explorer(cells, prepared, [t.name for t in prepared.teachers], 0)
    train, i = prepared.task.splits["train"], 7
    row = int(cells["control"]["rows"][i])
    assert known["texts"][i] == list(train.texts[row])
    assert known["ids"][i] == str(train.ids[row])
    assert known["gold"][i] == train.labels[row]
    logits = prepared.signals("train").logits(np.array([row]))[0]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(known["probs"][i], probs, atol=6e-4)
    np.testing.assert_allclose(known["losses"][i], -np.log(probs[:, known["gold"][i]]), atol=2e-3)
    one = known["agents"]["best_single"]
    assert one["choice"][i] == cells["best_single"]["last"][row].tolist()
    np.testing.assert_allclose(one["after"][i], cells["best_single"]["after"][i], atol=6e-4)
    assert sum(one["choice"][i]) == 1


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("reinforce agent.episodes=1 credit.name=shared", "reinforce credit=shared"),
        ("single:film", "single:film"),
        ("headroom credit.center=false", "headroom center=false"),
        ("ppo", "ppo"),
        ("reinforce agent.lr=0.01 credit.every=4", "reinforce lr=0.01 every=4"),
    ],
)
def test_names_of_agents(entry, name):
    assert short(entry) == name


@pytest.mark.parametrize(
    ("entry", "learnt"),
    [
        ({"agent": "my_rules:Mine", "learnt": True, "train_s": 0.0}, True),
        ({"agent": "ppo", "learnt": False, "train_s": 2.0}, False),
        # Rows and results of version 0.1
        ({"agent": "reinforce", "train_s": 2.0}, True),
        ({"agent": "best_single", "train_s": 0.0}, False),
        ({"agent": "ppo", "joint_curve": [{"episode": 0}]}, True),
        ({"agent": "control", "joint_curve": []}, False),
    ],
)
def test_learnt_agents_are_those_whose_rows_say_so(entry, learnt):
    assert is_learnt(entry) is learnt


def test_modules_of_the_report_import_only_those_before_them():
    order = ["chart", "charts", "drawing", "glossary", "words", "page"]
    for place, name in enumerate(order):
        tree = ast.parse((Path(report.__file__).with_name(f"{name}.py")).read_text(encoding="utf-8"))
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        ours = {m for m in modules if m.startswith(("agents", "envs"))} - {"agents.experiment"}
        assert ours <= {f"agents.experiment.report.{before}" for before in order[:place]}


def made_up_results() -> list[dict]:
    """Results of two agents and two seeds, with two test splits."""

    def scores(value: float) -> dict[str, float]:
        return {"accuracy": value, "loss": 1 - value, "brier": 0.2, "ece": 0.1, "f1": value, "matthews": 0.4}

    return [
        {
            "agent": agent,
            "learnt": learnt,
            "seed": seed,
            "metric": "accuracy",
            "teachers": ["a", "b"],
            "test": scores(0.7 + 0.1 * learnt + 0.01 * seed * (1 + learnt)),
            "other": scores(0.6),
            "selection": {"mean_size": 1.5, "rate": [1.0, 0.5]},
            "curve": [{"step": 2, **scores(0.5)}, {"step": 4, **scores(0.7 + 0.1 * seed)}],
            "selection_curve": [{"step": 2, "rate": [1.0, 0.5]}],
            "joint_curve": [{"episode": 0, "gain": 0.25}] if learnt else [],
            "cost": {"train_s": 3.0 * learnt, "follow_s": 1.0},
        }
        for agent, learnt in (("control", False), ("mine", True))
        for seed in (0, 1)
    ]


def made_up_comparison() -> tuple[dict, list[dict]]:
    results = made_up_results()
    tables = {test: summarise(results, test) for test in ("test", "other")}
    facts = {
        "task": "made up",
        "data": {"train": 2},
        "teachers": ["a", "b"],
        "device": "cpu",
        "threads": 1,
        "amp": "off",
    }
    run = {"failed": {}, "cells": [], "reproduce": ""}
    return {"metric": "accuracy", "tests": list(tables), "seeds": [0, 1], "tables": tables, **facts, **run}, results


def test_rows_of_the_table_say_whether_the_agent_is_learnt():
    results = made_up_results()
    assert [row["learnt"] for row in summarise(results, "test")] == [False, True]
    for result in results:
        del result["learnt"]
    assert [row["learnt"] for row in summarise(results, "test")] == [False, True], "as in version 0.1"


def test_figures_of_a_made_up_comparison():
    comparison, results = made_up_comparison()
    charts = {c.name: c for c in make_charts(comparison, results, {}, None)}
    expected = [f"differences-{name}-{test}" for test in ("test", "other") for name in ("accuracy", "loss")]
    assert list(charts) == [*expected, "student", "gain", "cost"]
    forest = charts["differences-accuracy-test"]
    assert forest.frame["mean"].tolist() == pytest.approx([10.5])
    assert forest.title == "Accuracy compared with all teachers (test)"
    assert charts["differences-loss-test"].frame["mean"].tolist() == pytest.approx([-0.105])
    assert charts["student"].shown is not None
    assert "mine" in charts["student"].shown, "curves of learnt agents are drawn at first"
    assert charts["student"].frame.set_index(["agent", "step"])["accuracy"]["control", 4] == pytest.approx(0.75)


def test_columns_of_the_table_are_explained():
    comparison, _ = made_up_comparison()
    table = report.make_table(comparison, "test")
    assert len(table["head"]) == len(set(table["head"])) == len(table["help"])
    assert all(table["help"])
    control, mine = (dict(zip(table["head"], row, strict=True)) for row in table["rows"])
    assert control["vs control, points [95 %]"] == ("", None, False)
    assert mine["vs control, points [95 %]"].text.startswith("+10.50 [")
    assert mine["vs control, points [95 %]"].bold
    assert mine["training, s"] == ("3", 3.0, False)
    html = report.render(comparison, {"test": table}, [], None)
    assert "Expected calibration error" in html
    assert '"learnt": ["mine"]' in html


def test_cards_say_plainly_that_nothing_is_shown():
    def card(interval):
        pair = {"mean": 0.01, "interval": interval}
        rows = [
            {"agent": "control", "learnt": False, "mean": 0.5},
            {"agent": "reinforce", "learnt": True, "difference_accuracy": pair},
        ]
        comparison = {"metric": "accuracy", "tests": ["test"], "tables": {"test": rows}, "seeds": [0, 1]}
        return report.cards(comparison)[1]["note"]

    assert card([-0.01, 0.03]).endswith("it contains zero, so no difference is shown")
    assert card([0.002, 0.03]).endswith("better than the control")
    assert card([-0.02, -0.01]).endswith("worse than the control")
    assert "one seed, so no interval" in card(None)


def test_the_first_line_needs_no_statistics():
    def line(interval, best="reinforce", mean=0.02):
        dev = {"control": 0.7, "reinforce": 0.6, "oracle": 0.9, "reward_labels": 0.95} | {best: 0.8}
        rows = [
            {"agent": a, "difference_accuracy": {"mean": mean, "interval": interval}} for a in dev if a != "control"
        ]
        cells = [{"agent": a, "dev": {"accuracy": value}} for a, value in dev.items()]
        return headline({"metric": "accuracy", "tests": ["test"], "tables": {"test": rows}, "cells": cells})

    assert line([0.01, 0.03]) == "Best on dev: reinforce; on test better than all teachers by 2.0 points [1.0, 3.0]."
    assert line([-0.01, 0.05]).endswith("on test no difference to all teachers shown: +2.0 points [-1.0, +5.0].")
    assert line([-0.03, -0.01], mean=-0.02).endswith("on test worse than all teachers by 2.0 points [1.0, 3.0].")
    assert line(None).endswith("+2.0 points compared with all teachers; one seed, so no conclusion.")
    assert "use all teachers" in line([0.01, 0.03], best="control")


def test_policies_that_leave_the_teachers_alone_are_named():
    all_on, one_off = np.ones((3, 2)), np.array([[1, 1], [1, 0], [-1, -1]])
    never = np.full((3, 2), -1.0)
    assert gives_all([all_on, np.array([[1, 1], [-1, -1], [1, 1]])])
    assert not gives_all([all_on, one_off])
    assert not gives_all([never]), "nothing was chosen"


def test_untouched_policies_fill_no_page(measured, prepared, tmp_path):
    comparison, results, places = measured
    for (agent, seed), place in places.items():
        shutil.copytree(place, tmp_path / f"{agent.split()[0]}{seed}")
        arrays = dict(np.load(place / "choices.npz"))
        if agent.startswith("reinforce"):
            arrays["last"] = np.ones_like(arrays["last"])
            np.savez_compressed(tmp_path / f"{agent.split()[0]}{seed}" / "choices.npz", **arrays)
    moved = {key: tmp_path / f"{key[0].split()[0]}{key[1]}" for key in places}
    text = report.write(tmp_path / "report", comparison, results, moved, prepared).read_text()
    assert "there is nothing to draw: <strong>reinforce</strong>" in text
    assert set(pd.read_csv(tmp_path / "report" / "selection-class.csv")["agent"]) == {"best_single"}


def test_long_texts_and_many_instances_keep_the_page_small(measured, prepared):
    _, _, places = measured
    cells = {a: dict(np.load(p / "choices.npz")) for (a, seed), p in places.items() if seed == 0}
    train = prepared.task.splits["train"]
    long = dataclasses.replace(train, texts=[("word " * 5000,)] * len(train))
    task = dataclasses.replace(prepared.task, splits={**prepared.task.splits, "train": long})
    stand_in = SimpleNamespace(task=task, signals=prepared.signals)
    known = report.explorer(cells, stand_in, [t.name for t in prepared.teachers], 0)
    assert len(json.dumps(known)) <= report.LARGEST
    assert all(len(text) <= report.LONGEST + 2 for texts in known["texts"] for text in texts)


def test_every_figure_and_table_has_its_files(grid):
    folder = grid[0] / "report"
    csvs, pngs = ({p.stem for p in folder.glob(f"*.{kind}")} for kind in ("csv", "png"))
    assert csvs == pngs
    assert {"table-test", "differences-accuracy-test", "student", "gain", "selection-time", "cost"} <= csvs
    assert all(len(pd.read_csv(p)) for p in folder.glob("*.csv"))
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in folder.glob("*.png"))


def test_no_report_without_its_packages(grid, tiny_overrides, tmp_path, monkeypatch, capsys):
    """One line says so; the comparison is written without its report."""
    from compare_helpers import AGENTS

    import configs
    from agents import compare
    from agents.experiment import launch

    monkeypatch.setattr(compare, "find_spec", lambda name: None)
    for module in (compare, launch):
        monkeypatch.setattr(module, "HydraConfig", SimpleNamespace(get=lambda: hydra))
    arguments = [*tiny_overrides, "threads=1", AGENTS, "seeds=2", f"cells={grid[1]}"]
    hydra = SimpleNamespace(
        mode=RunMode.RUN,
        overrides=SimpleNamespace(task=arguments),
        runtime=SimpleNamespace(output_dir=str(tmp_path / "run")),
    )
    compare.run(configs.compose(arguments, name="compare"))
    assert "no report: jinja2, matplotlib not installed" in capsys.readouterr().out
    assert (tmp_path / "run" / "comparison.json").is_file()
    assert not (tmp_path / "run" / "report").exists()


# --- the page, in Chromium --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium; tests read its console."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or binary is None:
        pytest.skip("no chromium and chromedriver here (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    quiet = "no-first-run disable-gpu disable-quic disable-background-networking disable-component-update disable-sync"
    for flag in ("headless=new", "no-sandbox", f"user-data-dir={tmp_path_factory.mktemp('profile')}", *quiet.split()):
        options.add_argument(f"--{flag}")
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_window_size(1280, 900)
    yield chrome
    chrome.quit()


@pytest.fixture
def page(browser, grid):
    """The report of the grid, newly opened. It must write nothing on the console."""
    browser.get((grid[0] / "report" / "index.html").as_uri())
    assert wait(browser, "return document.querySelectorAll('.plot svg').length") >= 9
    yield browser
    assert browser.get_log("browser") == []


def wait(browser, script: str, seconds: float = 20.0):
    """Wait until the script's value is true; returns it."""
    deadline = time.monotonic() + seconds
    while not (value := browser.execute_script(script)):
        assert time.monotonic() < deadline, script
        time.sleep(0.05)
    return value


def column(browser, place: int) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll('#tables tbody tr')].filter(r => !r.hidden).map(r => r.cells[arguments[0]].textContent)",
        place,
    )


def find(browser, css: str):
    return browser.find_element("css selector", css)


def test_the_page_loads_nothing_else(page):
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded == []
    assert page.execute_script(
        "return [...document.querySelectorAll('.plot')].every(p => p.querySelector('svg, table'))"
    )


def test_sorting(page):
    assert column(page, 0) == ["control", "best_single", "reinforce agent.episodes=1"]
    head = page.find_elements("css selector", "#tables th button")
    head[1].click()
    down = [float(v) for v in column(page, 1)]
    assert down == sorted(down, reverse=True)
    head[1].click()
    assert [float(v) for v in column(page, 1)] == down[::-1]
    head[3].click()
    assert column(page, 0)[-1] == "control", "a cell without a value is sorted last"
    head[0].click()
    assert column(page, 0) == sorted(column(page, 0))


def test_filtering_agents(page):
    find(page, "#tables .filter").send_keys("REINF")
    assert column(page, 0) == ["reinforce agent.episodes=1"]


def test_selection_follows_the_agent(page):
    def dots():
        return page.execute_script(
            "return [...document.querySelectorAll('[data-figure=selection-correctness] circle')].map(c => c.dataset.tip)"
        )

    select = "#agent-selection"
    options = [o.text for o in page.find_elements("css selector", f"{select} option")]
    assert "best_single" in options
    told = []
    for option in options:
        find(
            page, f"{select} option[value='{option}'], {select} option:nth-of-type({options.index(option) + 1})"
        ).click()
        assert find(page, select).get_attribute("value") == option
        told.append(dots())
    assert all(len(t) == 8 for t in told), "four teachers, right and wrong"
    assert len({tuple(t) for t in told}) == len(told)


def test_search_and_explorer(page, prepared):
    total = int(page.execute_script("return document.querySelectorAll('#list li').length"))
    find(page, "#search").send_keys("BED")
    found = page.execute_script("return [...document.querySelectorAll('#list li')].map(n => n.textContent)")
    assert 0 < len(found) < total
    assert all("bed" in text for text in found)
    assert find(page, "#count").text == f"{len(found)} of {total}"
    item = page.find_elements("css selector", "#list li")[-1]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", item)
    assert find(page, "#detail blockquote").text == found[-1]
    rows = page.execute_script(
        "return [...document.querySelectorAll('#detail tbody tr')].map(r => r.cells[0].textContent)"
    )
    assert rows == [*(t.name for t in prepared.teachers), "student before", "student after"]
    find(page, "#search").send_keys("no such text")
    assert find(page, "#detail").text == "No instance matches."


def test_explorer_shows_the_choice_of_the_agent(page, measured):
    _, _, places = measured
    cell = np.load(places["best_single", 0] / "choices.npz")
    page.execute_script(
        "const s = document.getElementById('by'); s.value = 'best_single'; s.dispatchEvent(new Event('input'))"
    )
    marks = page.execute_script(
        "return [...document.querySelectorAll('#detail tbody tr')].slice(0, 4).map(r => r.cells[r.cells.length - 1].textContent)"
    )
    assert [m == "✓" for m in marks] == (cell["last"][cell["rows"][0]] > 0).tolist()
    for which in ("disagree", "improved", "worsened", "alone"):
        page.execute_script(
            "const s = document.getElementById('which'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
            which,
        )
        assert " of " in find(page, "#count").text


def test_light_and_dark(page):
    def colours():
        return page.execute_script(
            "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )

    one = colours()
    find(page, "#theme").click()
    other = colours()
    assert one[0] != other[0]
    assert one[1] != other[1]
    ink = page.execute_script("return getComputedStyle(document.querySelector('.plot text:not(.soft)')).fill")
    assert ink == page.execute_script("return getComputedStyle(document.body).color"), "figures change with the page"
    find(page, "#theme").click()
    assert colours() == one


@pytest.fixture
def screen(page):
    """Gives the page the width of a screen, in pixels."""

    def wide(width: int) -> None:
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wait(page, f"return innerWidth === {width} && document.querySelector('.plot svg').clientWidth < {width}")
        time.sleep(0.3)

    yield wide
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_nothing_is_cut_without_a_cue(page, screen, width):
    """Nothing is wider than the screen. Tables that scroll inside their frames say so, and figures fit into their boxes."""
    screen(width)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    silent = page.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth + 2 && "
        "getComputedStyle(s.parentElement.nextElementSibling).display === 'none').length"
    )
    assert silent == 0
    outside = page.execute_script(
        "return [...document.querySelectorAll('.plot')].flatMap(p => [...p.querySelectorAll('svg text, svg circle')].filter(t => {"
        "const a = t.getBoundingClientRect(), b = p.getBoundingClientRect();"
        "return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1; })"
        ".map(t => t.textContent))"
    )
    assert outside == []


def test_every_number_is_reached_on_a_phone(page, screen):
    """Each row of the table is a card with the names of its numbers, all of them on the screen."""
    screen(390)
    shown = page.execute_script(
        "return [...document.querySelectorAll('#tables tbody tr:nth-child(2) td')].filter(t => t.offsetHeight)"
        ".map(t => [t.dataset.label, t.textContent, t.getBoundingClientRect().right])"
    )
    assert {"accuracy", "vs control, points [95 %]", "loss", "ECE", "whole job"} <= {name for name, _, _ in shown}
    assert all(text and right <= 390 for _, text, right in shown)


def test_a_single_point_has_an_axis_of_its_own(page):
    """One episode is drawn at its number, with no other number beside it."""
    ticks = page.execute_script(
        "return [...document.querySelectorAll('[data-figure=gain] svg text[text-anchor=middle]')].map(t => t.textContent)"
    )
    assert ticks == ["0"]


def test_the_legend_hides_a_line(page):
    def lines():
        return page.execute_script("return document.querySelectorAll('[data-figure=student] path').length")

    before = lines()
    find(page, "[data-figure=student] .legend button").click()
    assert lines() == before - 1
    find(page, "[data-figure=student] .legend button").click()
    assert lines() == before


def test_words_are_explained(page):
    """Each underlined word leads to its explanation."""
    targets = page.execute_script("return [...document.querySelectorAll('a.word')].map(a => a.hash.slice(1))")
    assert {"word-control", "word-interval", "word-seed", "word-warm-start"} <= set(targets)
    assert page.execute_script("return arguments[0].every(id => document.getElementById(id))", targets)


def test_errors_of_the_student(page, measured):
    comparison, _, _ = measured
    agent = find(page, "#agent-errors").get_attribute("value")
    entry = next(a for a in comparison["details"]["test"] if short(a) == agent)
    found = page.execute_script(
        "return [...document.querySelectorAll('.matrix tbody td')].map(t => Number(t.firstChild.textContent))"
    )
    assert found == np.ravel(comparison["details"]["test"][entry]["confusion"]).tolist()
    assert find(page, "#headline").text.startswith("Best on dev: ")


def test_text_stays_text(browser, measured, prepared, tmp_path):
    """Reviews, teachers, labels, agents and errors that contain HTML are shown as text."""
    comparison, results, places = measured
    comparison = json.loads(json.dumps(comparison).replace("best_single", "best_single <i>x</i>"))
    comparison["failed"] = {EVIL: EVIL}
    comparison["teachers"] = [EVIL] * 4
    results = [r | {"teachers": [f"{EVIL}{k}" for k in range(4)]} for r in results]
    train = prepared.task.splits["train"]
    evil = dataclasses.replace(train, texts=[(EVIL, EVIL)] * len(train), ids=np.array([EVIL] * len(train)))
    task = dataclasses.replace(prepared.task, splits={**prepared.task.splits, "train": evil}, label_names=(EVIL, "b"))
    stand_in = SimpleNamespace(task=task, signals=prepared.signals)
    browser.get(report.write(tmp_path / "report", comparison, results, places, stand_in).as_uri())
    wait(browser, "return document.querySelectorAll('.plot svg').length >= 9")
    assert browser.title.startswith("bundled")
    assert (
        browser.find_elements("css selector", "main b b, td > i, tbody b, blockquote *, #list b, .chip *, .plot a")
        == []
    )
    assert find(browser, "#detail blockquote").text == EVIL
    labels = browser.execute_script("return [...document.querySelectorAll('.plot text')].map(t => t.textContent)")
    assert "best_single <i>x</i>" in labels
    assert any(text.startswith(EVIL[:12]) for text in labels), "cut where there is no room"
    tips = browser.execute_script("return [...document.querySelectorAll('[data-tip]')].map(t => t.dataset.tip)")
    assert any(EVIL in tip for tip in tips)
    assert EVIL in find(browser, "header").text
    assert column(browser, 0)[1] == "best_single <i>x</i>"
    assert len(browser.execute_script("return [...document.scripts]")) == 2
    assert browser.get_log("browser") == []


def test_writing_a_report_twice_gives_the_same_bytes(measured, prepared, tmp_path):
    comparison, results, places = measured
    one = report.write(tmp_path, comparison, results, places, prepared).read_bytes()
    assert report.write(tmp_path, comparison, results, places, prepared).read_bytes() == one
    assert Path(tmp_path / "index.html").stat().st_size < 2e6
