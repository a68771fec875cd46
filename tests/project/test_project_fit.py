"""Projects: fits against scipy, ties and stages, the files left, and errors with places."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

import eadem
from eadem.project import MODELS, ProjectError, fit_project, load, solve
from eadem.project.build import build, matches
from eadem.project.expression import Expression
from eadem.project.formula import _Inverse, _Value

DECAY = 'expression = "height*exp(-rate*x) + floor"\n'
STARTS = "start = {height = 1.0, rate = 0.5, floor = 0.0}\n"


def write(path, x, y, sigma=0.02):
    rows = [f"{a:.6g},{b:.8g},{sigma:g}" for a, b in zip(x, y, strict=True)]
    path.write_text("time,signal,error\n" + "\n".join(rows) + "\n")


@pytest.fixture
def folder(tmp_path):
    """Three decays: two of one rate, a third of another; all on one floor."""
    draw = np.random.default_rng(3)
    x = np.linspace(0, 4, 60)
    for name, h, k in (("warm", 3, 0.7), ("cold", 5, 0.7), ("late", 2, 1.5)):
        y = h * np.exp(-k * x) + 0.1 + 0.02 * draw.normal(size=60)
        write(tmp_path / f"{name}.csv", x, y)
    return tmp_path


def project(folder, text, names=("warm", "cold", "late")):
    """A project of decays, with what else it says."""
    data = "".join(
        f'[data.{n}]\nfile = "{n}.csv"\nsigma = "error"\n{DECAY}{STARTS}\n' for n in names
    )
    path = folder / "fit.toml"
    path.write_text(data + text)
    return load(path)


def read(folder, name):
    found = np.genfromtxt(folder / f"{name}.csv", delimiter=",", names=True)
    return found["time"], found["signal"]


def test_a_fit_with_shared_values_is_scipys(folder):
    found = solve(project(folder, '[ties]\nequal = ["*.floor", ["warm.rate", "cold.rate"]]\n'))
    x, _ = read(folder, "warm")
    ys = np.concatenate([read(folder, n)[1] for n in ("warm", "cold", "late")])

    def model(_, h1, h2, h3, k, k3, c):
        return np.concatenate(
            [h1 * np.exp(-k * x) + c, h2 * np.exp(-k * x) + c, h3 * np.exp(-k3 * x) + c]
        )

    start = [3, 5, 2, 0.7, 1.5, 0.1]
    best, cov = curve_fit(model, None, ys, start, sigma=np.full(180, 0.02), xtol=1e-14)
    names = [
        "warm.height",
        "cold.height",
        "late.height",
        "cold.rate",
        "late.rate",
        "late.floor",
    ]
    fit = found.fit
    assert fit.converged
    np.testing.assert_allclose([float(fit.values[n]) for n in names], best, rtol=1e-6)
    errors = [float(fit.stderr[n]) for n in names]
    np.testing.assert_allclose(errors, np.sqrt(np.diag(cov)), rtol=1e-4)
    assert fit.dof == 180 - 6
    assert found.state["warm.rate"] == "free"
    assert found.state["cold.rate"] == "tied"
    assert float(fit.values["cold.rate"]) == float(fit.values["warm.rate"])


def test_a_right_tie_is_accepted_and_a_wrong_one_rejected(folder):
    right = solve(project(folder, '[ties]\nequal = ["*.floor", ["warm.rate", "cold.rate"]]\n'))
    assert [v.word(False) for v in right.verdicts] == ["nothing against it"] * 2
    wrong = solve(project(folder, '[ties]\nequal = "*.rate"\n'))
    (verdict,) = wrong.verdicts
    assert verdict.word(False) == "rejected"
    assert verdict.pvalue < 1e-6
    assert verdict.df == 2
    assert verdict.changes["late.rate"] > 0  # it is the faster one
    assert wrong.serial["late"] > 0.5
    assert any("late: the residuals follow one another" in n for n in wrong.notes)
    again = wrong.fit.score_test().again(wrong.built.ties[0].tie)
    assert verdict.statistic == pytest.approx(again.statistic)


def test_clusters_never_span_two_data_sets(folder):
    text = '[ties]\nequal = "*.rate"\n[options]\ncluster = 7\n'
    found = solve(project(folder, text))
    ids = [i // 7 + 9 * block for block in range(3) for i in range(60)]
    wanted = found.fit.score_test(cluster=ids)
    (verdict,) = found.verdicts
    assert verdict.robust_pvalue == pytest.approx(wanted.robust.pvalue)
    assert verdict.robust_pvalue > verdict.pvalue


def test_ties_by_expression_hold_at_the_fit(folder):
    text = """
[ties]
warm.height = "0.6*cold.height"
late.rate = "sqrt(warm.rate**2 + cold.rate)"
late.floor = "warm.floor*cold.floor*10"
"""
    found = solve(project(folder, text))
    v = {n: float(t) for n, t in found.fit.values.items()}
    assert v["warm.height"] == pytest.approx(0.6 * v["cold.height"])
    assert v["late.rate"] == pytest.approx((v["warm.rate"] ** 2 + v["cold.rate"]) ** 0.5)
    assert v["late.floor"] == pytest.approx(10 * v["warm.floor"] * v["cold.floor"])
    assert found.fit.free == 6
    assert found.built.ties[0].text == "warm.height = 0.6*cold.height"
    words = [verdict.word(False) for verdict in found.verdicts]
    assert words[0] == "nothing against it"
    assert words[1] == "rejected"


def test_a_tie_by_expression_is_the_fit_without_it_written_out(folder):
    tied = solve(project(folder, '[ties]\ncold.rate = "2*warm.rate - 0.6"\n', ("warm", "cold")))
    x, _ = read(folder, "warm")
    ys = np.concatenate([read(folder, n)[1] for n in ("warm", "cold")])

    def model(_, h1, h2, k, c1, c2):
        return np.concatenate([h1 * np.exp(-k * x) + c1, h2 * np.exp(-(2 * k - 0.6) * x) + c2])

    best, cov = curve_fit(model, None, ys, [3, 5, 0.7, 0.1, 0.1], xtol=1e-14)
    assert float(tied.fit.values["warm.rate"]) == pytest.approx(best[2], rel=1e-6)
    error = float(tied.fit.stderr["cold.rate"])
    assert error == pytest.approx(2 * cov[2, 2] ** 0.5, rel=1e-4)


def test_fixed_values_stay_and_bounds_hold(folder):
    text = """
[fixed]
"*.floor" = 0.1
late.rate = true
[bounds]
cold.height = [0.0, 4.5]
"""
    found = solve(project(folder, text))
    assert {n: float(found.fit.values[f"{n}.floor"]) for n in ("warm", "late")} == {
        "warm": 0.1,
        "late": 0.1,
    }
    assert float(found.fit.values["late.rate"]) == 0.5
    assert found.state["late.rate"] == found.state["warm.floor"] == "fixed"
    assert float(found.fit.values["cold.height"]) == pytest.approx(4.5)
    assert found.state["cold.height"] == "at its bound"
    assert found.fit.free == 5
    assert any("held by a bound" in n for n in found.notes)


def test_a_fixed_value_fixes_what_is_tied_to_it(folder):
    found = solve(project(folder, '[fixed]\ncold.floor = 0.1\n[ties]\nequal = "*.floor"\n'))
    assert {float(found.fit.values[f"{n}.floor"]) for n in ("warm", "cold", "late")} == {0.1}
    assert found.fit.free == 6


def test_stages_free_what_they_say(folder):
    text = '[[stage]]\nfree = "*.height"\n[[stage]]\nfree = ["*.height", "warm.rate"]\n'
    found = solve(project(folder, text))
    assert [s.dof for s in found.stages] == [177, 176]
    assert found.stages[1].chi2 < found.stages[0].chi2
    assert float(found.fit.values["cold.rate"]) == 0.5
    assert found.state["cold.rate"] == "fixed"
    whole = solve(project(folder, '[[stage]]\nfree = "*.height"\n[[stage]]\nfree = "*"\n'))
    assert whole.fit.chi2 == pytest.approx(solve(project(folder, "")).fit.chi2, rel=1e-9)


def test_a_stage_frees_a_tie_by_any_of_its_sites(folder):
    text = '[ties]\nequal = "*.rate"\n[[stage]]\nfree = "late.rate"\n'
    found = solve(project(folder, text))
    assert found.fit.free == 1
    assert float(found.fit.values["warm.rate"]) != 0.5


def test_rows_left_out_are_left_out(folder):
    path = folder / "cut.toml"
    path.write_text(
        '[data.a]\nfile = "warm.csv"\nexclude = [[1.0, 1.3], [3.0, 9.0]]\nrange = [0.2, 9.0]\n'
        + DECAY
        + STARTS
    )
    found = solve(load(path))
    x, y = read(folder, "warm")
    kept = (x >= 0.2) & ~((x >= 1.0) & (x <= 1.3)) & ~(x >= 3)
    assert found.fit.size == kept.sum()
    best, _ = curve_fit(
        lambda x, h, k, c: h * np.exp(-k * x) + c, x[kept], y[kept], [3, 0.7, 0.1], xtol=1e-14
    )
    values = [float(found.fit.values[f"a.{n}"]) for n in ("height", "rate", "floor")]
    np.testing.assert_allclose(values, best, rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ('sigma = "error"', lambda y: np.full(len(y), 0.02)),
        ("sigma = 3", lambda y: np.full(len(y), 0.02)),
        ("sigma = 3.0", lambda y: np.full(len(y), 3.0)),
        ('sigma = "sqrt"', lambda y: np.sqrt(np.maximum(y, 1.0))),
        ('sigma = "none"', lambda y: np.ones(len(y))),
        ("", lambda y: np.ones(len(y))),
    ],
)
def test_weights(folder, rule, wanted):
    path = folder / "w.toml"
    path.write_text(f'[data.a]\nfile = "warm.csv"\n{rule}\nmodel = "line"\n')
    (data,) = load(path).data
    np.testing.assert_allclose(data.observed.sigma, wanted(data.observed.y))


def test_an_xye_file_brings_its_errors(tmp_path):
    (tmp_path / "a.xye").write_text("1 5 0.5\n2 7 0.6\n3 9.5 0.5\n")
    (tmp_path / "p.toml").write_text('[data.a]\nfile = "a.xye"\nmodel = "line"\n')
    (data,) = load(tmp_path / "p.toml").data
    assert data.observed.sigma.tolist() == [0.5, 0.6, 0.5]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_finds_its_own_curve_from_its_own_guess(name, tmp_path):
    truth = {
        "constant": [2.0],
        "line": [1.0, 2.0],
        "exponential": [3.0, 0.8],
        "biexponential": [3.0, 3.0, 1.0, 0.4],
        "power": [2.0, 1.5],
        "sine": [2.0, 0.45, 0.3],
        "gaussian": [3.0, 3.0, 0.5],
        "lorentzian": [3.0, 3.0, 0.8],
        "pseudo-voigt": [3.0, 3.0, 0.8, 0.4],
        "logistic": [1.0, 4.0, 3.0, 2.0],
        "log-logistic": [1.0, 4.0, 2.0, 3.0],
        "michaelis-menten": [5.0, 1.5],
        "hill": [5.0, 2.0, 2.5],
    }[name]
    model = MODELS[name]
    assert Expression.parse(model.text, {"x"}).names == tuple(
        dict.fromkeys(n for n in re.findall(r"[A-Za-z]\w*", model.text) if n in model.guesses)
    )
    x = np.linspace(0.2, 6, 60)
    values = {n: torch.tensor(v).double() for n, v in zip(model.guesses, truth, strict=True)}
    y = Expression.parse(model.text, {"x"})(values | {"x": torch.from_numpy(x)})
    write(tmp_path / "a.csv", x, y.expand(60).numpy())
    (tmp_path / "p.toml").write_text(f'[data.a]\nfile = "a.csv"\nmodel = "{name}"\n')
    found = solve(load(tmp_path / "p.toml"))
    assert found.fit.chi2 < 1e-6
    for n, v in zip(model.guesses, truth, strict=True):
        assert float(found.fit.values[f"a.{n}"]) == pytest.approx(v, rel=1e-3)


def test_terms_are_summed_under_prefixes(tmp_path):
    x = np.linspace(0, 10, 200)
    y = 1 + 0.5 * x + 3 * np.exp(-((x - 3) ** 2) / 0.5) + 2 * np.exp(-((x - 7) ** 2) / 0.5)
    write(tmp_path / "a.csv", x, y)
    (tmp_path / "p.toml").write_text(
        """
[data.a]
file = "a.csv"
terms = [
  {model = "polynomial", degree = 1},
  {model = "gaussian", prefix = "p_"},
  {model = "gaussian", prefix = "q_"},
]
start = {p_center = 3.2, q_center = 6.8}
[ties]
a.q_sigma = "a.p_sigma"
"""
    )
    found = solve(load(tmp_path / "p.toml"))
    v = {n: float(t) for n, t in found.fit.values.items()}
    wanted = {"c0": 1, "c1": 0.5, "p_height": 3, "p_center": 3, "q_height": 2, "q_center": 7}
    for n, value in wanted.items():
        assert v[f"a.{n}"] == pytest.approx(value, rel=1e-4)
    assert v["a.p_sigma"] == v["a.q_sigma"] == pytest.approx(0.5, rel=1e-4)


def test_many_terms_are_neither_too_long_nor_too_deep(tmp_path):
    x = np.linspace(0, 50, 2000)
    centers = np.arange(1, 50, 0.5)
    y = sum(np.exp(-((x - c) ** 2) / 2 / 0.1**2) for c in centers)
    write(tmp_path / "a.csv", x, y)
    terms = ", ".join(f'{{model = "gaussian", prefix = "p{i}_"}}' for i in range(len(centers)))
    starts = ", ".join(f"p{i}_center = {c:g}" for i, c in enumerate(centers))
    text = f'[data.a]\nfile = "a.csv"\nterms = [{terms}]\nstart = {{{starts}}}\n'
    (tmp_path / "p.toml").write_text(text + '[start]\n"*.*_sigma" = 0.1\n"*.*_height" = 1\n')
    (data,) = load(tmp_path / "p.toml").data
    assert len(data.curve.names) == 3 * len(centers)
    built = build(load(tmp_path / "p.toml"))
    residual = built.joint["a"].residual().detach().numpy() * 0.02
    assert float(np.abs(residual).max()) < 1e-3  # x is written to six figures
    (tmp_path / "p.toml").write_text(
        f'[data.a]\nfile = "a.csv"\nterms = [{", ".join(["{model = 0}"] * 301)}]\n'
    )
    with pytest.raises(ProjectError, match="1 to 300"):
        load(tmp_path / "p.toml")


def test_what_the_test_says_of_itself_is_noted(folder):
    text = '[ties]\nequal = "*.rate"\n[options]\ncluster = 30\n'
    assert any("the robust test is coarse" in n for n in solve(project(folder, text)).notes)


@pytest.mark.parametrize(
    ("names", "text"), [(("a",), "sqrt(a.p + 2)"), (("a", "b"), "a.p/b.p")]
)
def test_the_inverse_of_a_tie_finds_values_of_its_names(names, text):
    sites = [f"{n}.p" for n in names]
    value = _Value(Expression.parse(text, (), sites))
    start = torch.full((len(names),), 1.5, dtype=torch.float64)
    start = start if len(names) > 1 else start[0]
    inverse = _Inverse(value, start)
    torch.testing.assert_close(inverse(value(start)), start)
    wanted = torch.tensor(2.7, dtype=torch.float64)
    torch.testing.assert_close(value(inverse(wanted)), wanted, rtol=1e-12, atol=0)


def test_alike_curves_are_evaluated_together(folder):
    built = solve(project(folder, "")).built
    found = eadem.bind.alike(
        built.joint,
        built.joint.blocks,
        eadem.bind.resolved(built.joint).slices,
        lambda b: b.residual(),
    )
    assert [a.names for a in found] == [("warm", "cold", "late")]


def test_the_report_folder_says_what_the_fit_says(folder, tmp_path):
    lines = []
    text = 'title = "Decays <1>"\n[ties]\nequal = ["*.floor"]\n[options]\ncluster = 6\n'
    path = folder / "fit.toml"
    whole = project(folder, "")
    path.write_text(
        text.partition("[ties]")[0] + path.read_text() + text[text.index("[ties]") :]
    )
    whole = load(path)
    out = tmp_path / "out"
    out.mkdir()
    found = fit_project(whole, out, lines.append)
    assert sum("offset" in line for line in lines) == len(found.fit.history)
    data = json.loads((out / "fit.json").read_text())
    assert data["converged"] is True
    assert data["chi2"] == pytest.approx(found.fit.chi2)
    assert data["values"]["late.rate"]["value"] == float(found.fit.values["late.rate"])
    assert data["ties"][0]["tie"] == "*.floor"
    assert data["ties"][0]["verdict"] == "nothing against it"
    at = data["correlation"]["names"].index("warm.rate")
    assert data["correlation"]["matrix"][at][at] == 1.0
    with (out / "values.csv").open() as file:
        rows = {r["parameter"]: r for r in csv.DictReader(file)}
    assert float(rows["cold.height"]["stderr"]) == float(found.fit.stderr["cold.height"])
    curve = np.genfromtxt(out / "warm.csv", delimiter=",", names=True)
    np.testing.assert_allclose(
        curve["residual"], (curve["y"] - curve["curve"]) / curve["sigma"], atol=1e-12
    )
    assert np.sum(curve["residual"] ** 2) == pytest.approx(data["data"]["warm"]["chi2"])
    page = (out / "report.html").read_text()
    assert "Decays &lt;1&gt;" in page
    assert "Decays <1>" not in page
    assert page.count('<svg class="wide"') >= 4
    for word in ("late.height", "nothing against it", "lag-one", "report.html"[:6]):
        assert word in page
    assert "http" not in re.sub(r"http-equiv", "", page)


def test_a_robust_loss_is_fitted_and_its_ties_are_not_tested(folder):
    text = '[ties]\nequal = "*.floor"\n[options]\nloss = "huber"\nloss_scale = 2\n'
    found = solve(project(folder, text))
    assert found.fit.converged
    assert found.verdicts[0].word(False) == "not tested with a robust loss"


def test_a_fit_that_stops_early_says_so(folder):
    found = solve(project(folder, "[options]\nmax_iterations = 1\n"))
    assert not found.fit.converged
    assert not found.stages[0].converged
    assert any(found.fit.message in n for n in found.notes)


def test_patterns():
    sites = ["a.width", "a.height", "b.width", "b.phase.cell"]
    assert matches("*", sites) == sites
    assert matches("**", sites) == sites
    assert matches("b.**", sites) == ["b.width", "b.phase.cell"]
    assert matches("b.*", sites) == ["b.width"]
    assert matches("?.width", sites) == ["a.width", "b.width"]
    assert matches("a.w", sites) == []
    assert matches("[ab].width", sites) == []


WRONG = [
    ("tilte = 1\n", "fit.toml:1:1: there is no key 'tilte'; nearest: title"),
    ("x = = 1\n", "fit.toml:1:5: "),
    ("x = [1,\n", "fit.toml:2:2: "),
    ("[ties]\nequal = ['*.rte']\n", "fit.toml:LAST:1: '*.rte' is no parameter; nearest: "),
    ("[ties]\nequal = ['warm.rate']\n", "fit.toml:LAST:1: "),
    ("[ties]\nequal = 3\n", "fit.toml:LAST:1: "),
    ("[ties]\nwarm.rate = '2*cold.rat'\n", "fit.toml:LAST:1: column 3: there is no 'cold.rat'"),
    ("[ties]\nwarm.rate = '2*warm.rate'\n", "fit.toml:LAST:1: 'warm.rate' cannot be tied to"),
    ("[ties]\nwarm.rate = '2'\n", "fit.toml:LAST:1: '2' names no parameter"),
    ("[ties]\nwarm.rate = 2\n", "fit.toml:LAST:1: 'warm.rate' is tied to a number"),
    ("[ties]\n'*.rate' = 'cold.rate'\n", "fit.toml:LAST:1: '*.rate' must be one parameter"),
    (
        "[ties]\nwarm.rate = 'cold.rate.real'\n",
        "fit.toml:LAST:1: column 1: an expression cannot",
    ),
    ("warm.hight = 1\n", "fit.toml:LAST:1: 'warm.hight' is no parameter; nearest: "),
    ("warm.rate = '1'\n", "fit.toml:LAST:1: start.warm.rate must be a number"),
    ("warm.rate = nan\n", "fit.toml:LAST:1: 'warm.rate' cannot start at nan"),
    ("[bounds]\nwarm.rate = [2, 1]\n", "fit.toml:LAST:1: the bounds [2, 1]"),
    ("[bounds]\nwarm.rate = 2\n", "fit.toml:LAST:1: a bound is [low, high]"),
    ("[options]\nloss = 'hubert'\n", "fit.toml:LAST:1: loss cannot be 'hubert'; there are"),
    ("[options]\ncluster = 0\n", "fit.toml:LAST:1: cluster cannot be 0"),
    ("[options]\ncluster = true\n", "fit.toml:LAST:1: cluster cannot be True"),
    ("[options]\nseeed = 0\n", "fit.toml:LAST:1: there is no key 'seeed'; nearest: seed"),
    ("[[stage]]\nfree = ['a.*']\n", "fit.toml:LAST:1: 'a.*' is no parameter"),
    ("[[stage]]\nfre = ['a.*']\n", "fit.toml:LAST:1: there is no key 'fre'; nearest: free"),
    ("warm.rate = 1\nwarm.rate = 2\n", "fit.toml:LAST:14: "),
    ("[fixed]\n'*' = true\n", "fit.toml: "),
]


@pytest.mark.parametrize(("text", "start"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_project_is_named_by_line_and_column(folder, monkeypatch, text, start):
    monkeypatch.chdir(folder)
    path = folder / "fit.toml"
    data = "".join(f'[data.{n}]\nfile = "{n}.csv"\n{DECAY}' for n in ("warm", "cold"))
    data += '[start]\n"*.height" = 1.0\n"*.rate" = 0.5\n"*.floor" = 0.0\n'
    first = text.startswith(("tilte", "x ="))
    whole = text + data if first else data + text
    path.write_text(whole)
    last = str(whole.count("\n"))
    with pytest.raises(ProjectError) as caught:
        solve(load(path.relative_to(folder)))
    assert str(caught.value).startswith(start.replace("LAST", last))


DATA = [
    ('file = "../warm.csv"\nmodel = "line"', "is not in the project's folder"),
    ('file = "/etc/passwd"\nmodel = "line"', "is not in the project's folder"),
    ('file = "link.csv"\nmodel = "line"', "is a link out of"),
    ('file = "war.csv"\nmodel = "line"', "nearest: warm.csv"),
    ('file = "warm.csv"', "models: constant, line"),
    ('file = "warm.csv"\nmodel = "gausian"', "nearest: gaussian"),
    ('file = "warm.csv"\nmodel = "powder"', "radiation = 'neutron' or 'xray'"),
    ('file = "warm.csv"\nmodel = "line"\nexpression = "a*x"', "not model and expression"),
    ('file = "warm.csv"\nexpression = "a*x"', "a start is needed for a.a"),
    ('file = "warm.csv"\nexpression = "2*x"', "no parameter to fit"),
    ('file = "warm.csv"\nexpression = "a*x.real"', "cannot have a dot"),
    ('file = "warm.csv"\nexpression = "open(x)"', "no function 'open'"),
    ('file = "warm.csv"\nexpression = "train*x"', "'train': the name is taken"),
    ('file = "warm.csv"\nmodel = "polynomial"\ndegree = 99', "degree of a polynomial"),
    ('file = "warm.csv"\nmodel = "line"\ndegree = 2', "only model = 'polynomial'"),
    ('file = "warm.csv"\nmodel = "line"\nprefix = "a b"', "a prefix is letters"),
    ('file = "warm.csv"\nmodel = "line"\nx = "tim"', "nearest: time"),
    ('file = "warm.csv"\nmodel = "line"\nx = 9', "there is no column 9"),
    ('file = "warm.csv"\nmodel = "line"\nsigma = "eror"', "nearest: error"),
    ('file = "warm.csv"\nmodel = "line"\nsigma = -1.0', "above zero"),
    ('file = "warm.csv"\nmodel = "line"\nexclude = [[0.0, 9.0]]', "leave no observation"),
    ('file = "warm.csv"\nmodel = "line"\nexclude = [[3.0, 1.0]]', "nothing in it"),
    ('file = "warm.csv"\nterms = [{model = "line"}, {model = "line"}]', "prefix"),
    ('file = "warm.csv"\nexpression = "a*log(x - 1)"\nstart.a = 1', "warm.csv:2: the curve"),
    ('file = "warm.csv"\nmodel = "line"\nfiel = 1', "nearest: file"),
    ("model = 'line'", "needs file"),
]


@pytest.mark.parametrize(("text", "said"), DATA, ids=range(len(DATA)))
def test_a_wrong_data_set_is_named(folder, text, said):
    (folder / "link.csv").symlink_to("/etc/passwd")
    (folder / "p.toml").write_text(f"[data.a]\n{text}\n")
    with pytest.raises(ProjectError) as caught:
        solve(load(folder / "p.toml"))
    assert said in str(caught.value)
    assert "root:" not in str(caught.value)


@pytest.mark.parametrize("name", ["cpu", "a b", "__init__", "lambda", "exp", "ä", "x.y"])
def test_names_that_cannot_be_data_sets(folder, name):
    path = folder / "p.toml"
    path.write_text(f'[data."{name}"]\nfile = "warm.csv"\nmodel = "line"\n')
    with pytest.raises(ProjectError, match="cannot be called"):
        load(path)


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 100_000, "a = " + "9" * 5000, 'a = "' + "a" * 2**21 + '"', "a = 1e9e9"],
    ids=["deep", "number", "large", "broken"],
)
def test_a_project_that_would_choke_the_parser(tmp_path, text):
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(ProjectError):
        load(path)


def test_circles_of_ties_are_named(folder):
    text = '[data.a]\nfile = "warm.csv"\nmodel = "line"\n[ties]\n'
    (folder / "p.toml").write_text(
        text + 'a.slope = "a.intercept + 1"\na.intercept = "2*a.slope"\n'
    )
    with pytest.raises(ProjectError, match=r"circle: a\.slope, a\.intercept"):
        solve(load(folder / "p.toml"))


def test_ties_that_contradict_each_other_are_refused(folder):
    text = '[ties]\nequal = "*.rate"\ncold.rate = "warm.rate + 1"\n'
    with pytest.raises(ProjectError, match="the ties cannot be made"):
        solve(project(folder, text))
