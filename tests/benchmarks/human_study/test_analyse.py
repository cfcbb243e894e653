"""The analysis of answers whose rates are known."""

import json
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

pd = pytest.importorskip("pandas", reason="pandas is not installed")
pytest.importorskip("statsmodels", reason="statsmodels is not installed")

from benchmarks.human_study import estimates, power  # noqa: E402
from benchmarks.human_study.__main__ import main  # noqa: E402
from benchmarks.human_study.analyse import ALL, analyse, figure, make_tables, read  # noqa: E402
from sip_plugin.evaluation.statistics import wilson_interval  # noqa: E402
from tests.benchmarks.human_study.answers import LEVELS, write_answers  # noqa: E402

CARELESS = ("unfinished", "unfinished", "fast", "constant")


def analysed(path, people=40, samples=400, **settings):
    write_answers(path, people, **settings)
    study = read(path)
    return study, analyse(study, samples, np.random.default_rng(0))


def test_the_command_writes_everything_and_marks_what_is_simulated(tmp_path, capsys):
    write_answers(tmp_path / "study.sqlite", 30, careless=CARELESS)
    out = tmp_path / "out"
    arguments = ["analyse", "--data", str(tmp_path), "--out", str(out), "--samples", "300"]
    assert main(arguments) == 0
    mark = "Simulated, not a study: 34 of 34 participants are not people."
    printed = " ".join(capsys.readouterr().out.split())
    tables = 6
    assert printed.count(mark) == tables
    assert (out / "README.md").read_text().count(mark) == tables + 1
    assert (out / "tables.tex").read_text().count(mark) == tables
    for name, rows in (("answers", 32 * 50 + 2 * 20), ("participants", 34), ("estimates", 3 * 15)):
        frame = pd.read_csv(out / f"{name}.csv")
        assert (len(frame), set(frame.simulated)) == (rows, {1})
    assert (out / "figure5.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "figure5.pdf").read_bytes()[:4] == b"%PDF"
    assert json.loads((out / "record.json").read_text())["versions"]["statsmodels"]
    # The same command, the same figures.
    first = (out / "estimates.csv").read_text()
    main(arguments)
    assert (out / "estimates.csv").read_text() == first


def test_who_is_left_out_and_how_many(tmp_path):
    study, groups = analysed(tmp_path / "study.sqlite", 20, simulated=0, careless=CARELESS)
    counted = dict(cells for _, cells in make_tables(study, groups, 400)[0].table().rows)
    assert counted == {
        "took part": "24",
        "left out: not finished": "2",
        "left out: median reaction under 300 ms": "1",
        "left out: always the same answer": "1",
        "analysed": "20",
        "analysed, resnet50": "10",
        "analysed, densenet121": "10",
    }
    assert groups[ALL].people == 20
    assert not study.notes
    assert "imulated" not in str(make_tables(study, groups, 400)[0])
    assert "fewer than 40 participants" in str(make_tables(study, groups, 400)[4])
    lenient = read(tmp_path / "study.sqlite", least_median_ms=0)
    assert len(lenient.included) == 21


def test_estimates_are_those_of_their_formulas(tmp_path):
    study, groups = analysed(tmp_path / "study.sqlite", 40)
    counts = study.answers.groupby("level").perturbed.agg(["sum", "size"])
    z = {level: norm.ppf((k + 0.5) / (n + 1)) for level, k, n in counts.itertuples()}
    values = groups[ALL].values
    for level in LEVELS:
        rate, low, high = values["rate", level]
        assert rate == pytest.approx(counts["sum"][level] / counts["size"][level])
        assert low < rate < high
        # Answers of one participant have something in common, which Wilson's interval does not know.
        assert high - low > np.ptp(wilson_interval(rate, 400))
        if level:
            assert values["d'", level][0] == pytest.approx(z[level] - z[0])
            assert values["criterion", level][0] == pytest.approx(-(z[level] + z[0]) / 2)
    # The slope is statsmodels', and so are its standard errors, but for the correction for few participants.
    data = study.answers[study.answers.level > 0].assign(doublings=lambda frame: np.log2(frame.level))
    fit = estimates.gee("perturbed ~ doublings", data)
    assert values["slope", None][0] == pytest.approx(fit.params["doublings"], rel=1e-6)
    assert values["threshold", None][0] == pytest.approx(-fit.params["Intercept"] / fit.params["doublings"], rel=1e-6)
    shares = study.answers.pivot_table(index="participant", columns="level", values="perturbed").to_numpy()
    _, error, *_ = estimates.bootstrap(shares, 10, LEVELS, 100, np.random.default_rng(0))
    assert error[-2] == pytest.approx(39 / 40 * fit.bse["doublings"], rel=1e-5)
    assert groups[ALL].models["slope of log2(ε)"][:3] == pytest.approx((fit.params.iloc[1], *fit.conf_int().iloc[1]))
    assert set(groups) == {"densenet121", "resnet50", ALL}
    assert "resnet50 against densenet121, slope (40 participants)" in groups[ALL].models


def test_gradients_are_those_of_the_values():
    rates = np.array([0.1, 0.2, 0.4, 0.6, 0.9])
    _, gradients = estimates.estimates(rates, 600, LEVELS)
    for level in range(len(LEVELS)):
        step = 1e-6 * np.eye(len(LEVELS))[level]
        above, below = (estimates.estimates(rates + sign * step, 600, LEVELS)[0] for sign in (1, -1))
        assert (above - below) / 2e-6 == pytest.approx(gradients[:, level], rel=1e-4, abs=1e-6)


def test_rates_of_zero_and_one(tmp_path):
    study, groups = analysed(tmp_path / "study.sqlite", 10, rates=(1e-9, 0.2, 0.5, 0.7, 1 - 1e-9))
    values = groups[ALL].values
    assert values["rate", 0][0] == 0
    assert values["rate", 8][0] == pytest.approx(1)
    # All the same: a bootstrap says nothing, Wilson's interval does; with the design effect, no less than without.
    assert values["rate", 0][1] == 0
    assert wilson_interval(0, 100)[1] <= values["rate", 0][2] < 0.2
    assert values["rate", 8][1] == pytest.approx(1 - values["rate", 0][2])
    assert values["d'", 8][0] == pytest.approx(2 * norm.ppf(100.5 / 101))
    assert groups[ALL].wilson == {0, 8}
    assert f"0.0 [0.0, {100 * values['rate', 0][2]:.1f}]*" in str(make_tables(study, groups, 400)[1])
    assert np.isfinite(values["threshold", None]).all()
    figure(study, groups)


def test_the_papers_statements_beside(tmp_path):
    def verdicts(rates):
        path = tmp_path / f"{rates[-1]}.sqlite"
        study, groups = analysed(path, 60, rates=rates)
        return [cells[-1] for _, cells in make_tables(study, groups, 400)[2].table().rows]

    assert verdicts((0.1, 0.1, 0.4, 0.7, 0.93)) == ["yes", "yes", "yes"]
    assert verdicts((0.1, 0.7, 0.3, 0.3, 0.6)) == ["no", "no", "no"]
    assert verdicts((0.1, 0.2, 0.4, 0.5, 0.8)) == ["open", "open", "open"]


def test_the_slope_is_of_all_whatever_their_versions(tmp_path):
    write_answers(tmp_path / "study.sqlite", 12, versions=("a", "b", "c"))
    with sqlite3.connect(tmp_path / "study.sqlite") as connection:  # two are left of the last
        few = "version = 'c' AND number NOT IN (SELECT number FROM participants WHERE version = 'c' LIMIT 2)"
        connection.execute(f"UPDATE participants SET finished = NULL WHERE {few}")
    connection.close()
    study = read(tmp_path / "study.sqlite")
    groups = analyse(study, 200, np.random.default_rng(0))
    people = groups["a"].people + groups["b"].people
    assert (list(groups), groups[ALL].people) == (["a", "b", ALL], people + 2)
    assert groups[ALL].models["slope of log2(ε)"][0] == pytest.approx(groups[ALL].values["slope", None][0])
    assert f"b against a, slope ({people} participants)" in groups[ALL].models


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rates",
    [(0.3, 1e-9, 1e-9, 1 - 1e-9, 1 - 1e-9), (0.3, 1e-9, 0.5, 1 - 1e-9, 1 - 1e-9), (0.3, *[1e-9] * 4), None],
)
def test_no_slope_where_the_model_has_no_maximum(tmp_path, rates):
    write_answers(tmp_path / "study.sqlite", 8, rates=rates or (0.3, 0.4, 0.4, 0.4, 0.7), simulated=0)
    if rates is None:  # one level above 0
        with sqlite3.connect(tmp_path / "study.sqlite") as connection:
            connection.execute("DELETE FROM answers WHERE level NOT IN (0, 4)")
        connection.close()
    study = read(tmp_path / "study.sqlite")
    tables = make_tables(study, analyse(study, 200, np.random.default_rng(0)), 200)
    for _, cells in tables[4].table().rows:
        assert cells[2:] == ["– [–, –]", "– [–, –]", "–"]
    assert all(cells[1] == "– [–, –]" for _, cells in tables[5].table().rows)


def test_no_threshold_where_the_slope_may_be_0_and_no_absurd_odds(tmp_path):
    study, groups = analysed(tmp_path / "flat.sqlite", 12, rates=[0.4] * 5)
    assert np.isnan(groups[ALL].values["threshold", None][1:]).all()
    assert make_tables(study, groups, 400)[5].table().rows[-1][1][1] == "– [–, –]"
    steep = {ALL: replace(groups[ALL], models={"slope": (5, 1, 40, 0.04)})}
    assert make_tables(study, steep, 400)[4].table().rows[0][1][3] == "148.41 [2.72, > 1000]"


@pytest.mark.parametrize("rate", [0.01, 0.97])
def test_rates_near_0_and_1_have_intervals_that_hold_the_truth(rate):
    random, held = np.random.default_rng(0), []
    for _ in range(400):
        shares = power.simulated_shares(60, (rate, *power.RATES[1:]), random)
        low, high = estimates.wilson_of_clusters(shares, 10)[0]
        held.append(low <= rate <= high)
    assert 0.93 < np.mean(held) < 0.995


def test_the_picture_says_that_it_is_simulated(tmp_path):
    for simulated in (0, 1):
        study, groups = analysed(tmp_path / f"{simulated}.sqlite", 12, simulated=simulated)
        drawn = figure(study, groups)
        (axes,) = drawn.axes
        assert [text.get_text() for text in axes.texts] == ["SIMULATED"] * simulated
        assert ("not a study" in drawn.get_suptitle()) == bool(simulated)
        low, high = axes.get_ylim()
        assert (low, high) == (0, 100)


def test_a_preview_is_marked_too(tmp_path):
    write_answers(tmp_path / "study.sqlite", 6, simulated=0)
    with sqlite3.connect(tmp_path / "study.sqlite") as connection:
        connection.execute("INSERT INTO study VALUES ('preview', '1')")
    connection.close()
    study = read(tmp_path / "study.sqlite")
    groups = analyse(study, 200, np.random.default_rng(0))
    assert all("Preview, not a study" in table.to_markdown() for table in make_tables(study, groups, 200))
    assert [text.get_text() for text in figure(study, groups).axes[0].texts] == ["PREVIEW"]


def test_refuses_what_it_cannot_analyse(tmp_path, capsys):
    for people, message in ((None, "There is no"), (0, "Nobody has taken part yet"), (2, "2 of 2 participant")):
        folder = tmp_path / str(people)
        folder.mkdir()
        if people is not None:
            write_answers(folder / "study.sqlite", people)
        with pytest.raises(SystemExit):
            main(["analyse", "--data", str(folder), "--out", str(tmp_path / "out")])
        assert message in capsys.readouterr().err


def test_intervals_hold_the_truth_as_often_as_they_say():
    """The short form of the committed run, whose 1,000 studies take longer."""
    found = power.coverage(60, power.RATES, 200, 400, np.random.default_rng(1))
    assert [cell["quantity"] for cell in found[-5:]] == ["rate by Wilson"] * 5
    held = np.array([cell["coverage"] for cell in found[:-5]])
    assert 0.93 < held.mean() < 0.97
    assert (held > 0.90).all()  # three standard errors of 200 studies
    assert np.mean([cell["coverage"] for cell in found[-5:]]) < 0.92  # why it is the participants that are drawn


def test_the_committed_run():
    result = json.loads((power.RESULTS / "power.json").read_text())
    assert result["simulated"] is True
    assert result["studies"] == 1000
    for cell in result["sizes"]["60"]:
        if cell["quantity"] != "rate by Wilson":
            assert 0.93 <= cell["coverage"] <= 0.97
    for cell in result["extreme"]["found"][:5]:
        assert 0.93 <= cell["coverage"] <= 0.98
        assert cell["none"] == 0
    widths = {size: cells[0]["width"] for size, cells in result["sizes"].items()}
    assert widths["50"] > widths["100"] > widths["330"]
    assert "\n".join(table.to_markdown() for table in power.tables(result)) == (power.RESULTS / "power.md").read_text()
