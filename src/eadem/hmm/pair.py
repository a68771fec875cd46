"""A pair hidden Markov model whose parts can be tied: two sequences and how they align."""

from __future__ import annotations

import importlib.resources
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

import eadem
from eadem.bind import set_free_vector
from eadem.errors import ShapeError, TooLarge
from eadem.hmm import pair_expect as run
from eadem.hmm.alignment import Alignment, Posterior
from eadem.hmm.alphabet import DNA, PROTEIN, Alphabet, SequenceError
from eadem.hmm.pair_density import log_densities
from eadem.hmm.pair_mstep import MStep
from eadem.maps import Gather
from eadem.solvers import SolverError
from eadem.solvers._reduce import agreed, pooled

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Monitor", "PairHMM"]

Floats = npt.NDArray[np.float64]
#: Cells of a posterior that is not banded: 3.2 GB.
DENSE_CELLS = 4 * 10**8
STATES = "MXY"


@dataclass
class Monitor:
    """What happened while a model was fitted.

    `history` is the log-likelihood at the start and after every step, which never falls.
    """

    history: list[float] = field(default_factory=list)
    converged: bool = False
    message: str = "not fitted"

    @property
    def iter(self) -> int:
        """The number of steps."""
        return max(0, len(self.history) - 1)


class PairHMM(nn.Module):
    """Two sequences emitted together, with insertions in either.

    Three states (Durbin, Eddy, Krogh & Mitchison, Biological Sequence Analysis, 1998, chapter
    4): M emits a pair of letters from `match` (A, A), X a letter of x from `insert_x` (A,), Y
    one of y from `insert_y` (A,). Begin moves as M does. From M: to X with `gap_open[0]`, to Y
    with `gap_open[1]`; X stays with `gap_extend[0]`, Y with `gap_extend[1]`; every state ends
    with `end` (1,); what is left goes to M. X and Y do not follow each other. The parameters
    are these probabilities, in float64, and can be tied by name and index.

    Args:
        alphabet: `DNA`, `PROTEIN`, any other Alphabet, or a string of letters. An ambiguous
            code stands for any of its letters: its probability is their sum.
        symmetric: insertions know no direction and `match` is symmetric: ties `insert_x` to
            `insert_y`, the two `gap_open`, the two `gap_extend`, and match[a, b] to
            match[b, a]. Then nothing changes if x and y are swapped.
        threads: over many pairs; torch's number of threads by default.

    Proteins start from BLOSUM62's joint probabilities and background, anything else from
    pairs of the same letter in 17 of 20 cases; gaps open with 0.02, are extended with 0.5.

    >>> model = PairHMM(DNA, symmetric=True)
    >>> print(model.align("GATTACAGATTACA", "GATTAGATTACA"))
    x  GATTACAGATTACA
       |||||  |||||||
    y  GATTA--GATTACA
    >>> pairs = [("GATTACA", "GATTTACA"), ("CCGTAAGT", "CGTAAT")]
    >>> history = model.fit(pairs, n_iter=5).monitor_.history
    >>> all(b >= a for a, b in zip(history, history[1:]))
    True
    """

    site_constraints: ClassVar[dict[str, str]] = {
        "match": "whole",
        "insert_x": "rows",
        "insert_y": "rows",
    }

    match: Tensor
    insert_x: Tensor
    insert_y: Tensor
    gap_open: Tensor
    gap_extend: Tensor
    end: Tensor

    def __init__(
        self,
        alphabet: Alphabet | str = DNA,
        symmetric: bool = False,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self.alphabet = Alphabet(alphabet) if isinstance(alphabet, str) else alphabet
        self.symmetric, self.threads = symmetric, threads
        self.monitor_ = Monitor()
        match = _start(self.alphabet)
        for name, value in (
            ("match", match),
            ("insert_x", match.sum(1)),
            ("insert_y", match.sum(0)),
            ("gap_open", np.full(2, 0.02)),
            ("gap_extend", np.full(2, 0.5)),
            ("end", np.full(1, 0.005)),
        ):
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))
        self._membership = torch.from_numpy(self.alphabet.membership)
        if symmetric:
            with eadem.plan(self):
                eadem.tie(self, "insert_x", "insert_y", start="mean")
                eadem.tie(self, "gap_open[0]", "gap_open[1]", start="mean")
                eadem.tie(self, "gap_extend[0]", "gap_extend[1]", start="mean")
                eadem.tie(self, "match", via=Gather(_triangle(len(match))), start="mean")

    def extra_repr(self) -> str:
        """What the model is over."""
        name = self.alphabet.name or repr(self.alphabet.letters)
        return f"{name}, symmetric={self.symmetric}"

    def _flat(self) -> Tensor:
        """All probabilities by code, differentiable, in the order of pair_expect.Model."""
        e, left = self._membership, 1.0 - self.end
        match = e @ self.match @ e.T
        to_m = left - self.gap_open.sum(0, keepdim=True)
        from_x, from_y = (left - self.gap_extend[k : k + 1] for k in (0, 1))
        opened, extended = self.gap_open, self.gap_extend
        moves = [to_m, opened, extended[:1], from_x, extended[1:], from_y, self.end]
        inserted = [e @ self.insert_x, e @ self.insert_y]
        return torch.cat([match.reshape(-1), *inserted, *moves]).to(torch.float64)

    def _model(self) -> run.Model:
        flat = self._flat().detach().cpu().numpy()
        bad = np.flatnonzero(~(flat >= 0))
        if bad.size:
            raise SolverError(
                f"a probability of the model is {flat[bad[0]]:.6g}; gap_open, gap_extend and "
                "end must leave M, X and Y something, and none may be negative"
            )
        return run.Model.of(flat, len(self.alphabet.codes))

    def _threads(self) -> int:
        return torch.get_num_threads() if self.threads is None else self.threads

    def pairs(self, pairs: Any, band: int | None = None) -> run.Pairs:
        """Sequences as numbers: a list of (x, y), or one (x, y).

        Raises SequenceError, naming the pair and the position.
        """
        if band is not None and (isinstance(band, bool) or int(band) != band or band < 1):
            raise ShapeError(
                f"band={band!r}; a band is a whole number of letters, at least one"
            )
        if isinstance(pairs, run.Pairs):
            return pairs
        given = [pairs] if _is_pair(pairs) else list(pairs)
        xs, ys = [], []
        for k, pair in enumerate(given):
            if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
                raise SequenceError(
                    f"pair {k} is {type(pair).__name__}; give a list of (x, y), each a string "
                    "or an array of integers"
                )
            xs.append(self.alphabet.encode(pair[0], f"x of pair {k}"))
            ys.append(self.alphabet.encode(pair[1], f"y of pair {k}"))
        return run.Pairs(tuple(xs), tuple(ys), band)

    def log_density(self, pairs: Any, band: int | None = None) -> Tensor:
        """The log-likelihood of each pair, (pairs,), differentiable in the probabilities.

        Its gradient is expected count over probability (Fisher's identity); second
        derivatives are central differences of that. `eadem.score_test` takes
        `PairHMM.log_density` as it is.
        """
        return log_densities(self._flat(), self.pairs(pairs, band), self._threads())

    def forward(self, pairs: Any) -> Tensor:
        """`log_density`."""
        return self.log_density(pairs)

    def score(self, pairs: Any, band: int | None = None) -> float:
        """The log-likelihood of all pairs; −∞ where one is impossible."""
        data = self.pairs(pairs, band)
        return float(run.likelihoods(self._model(), data, self._threads()).sum())

    def fit(
        self,
        pairs: Any,
        n_iter: int = 100,
        tol: float = 1e-6,
        band: int | None = None,
        verbose: bool = False,
        group: ProcessGroup | None = None,
    ) -> Self:
        """Baum–Welch under the model's ties: expected counts, pooled, then maximised over.

        Stops where a step gains less than `tol` times the number of pairs. `monitor_` holds
        every step. With `group`, the pairs are spread over its processes: each calls `fit`
        with its own and from the same values, and gets the one fit to all; pooled counts are
        what travels. Raises SolverError where a pair is impossible, the model's values are no
        probabilities, or processes start from different ones.
        """
        data = self.pairs(pairs, band)
        if not len(data):
            raise SequenceError("there are no pairs to fit")
        with torch.no_grad():
            plan = MStep(self)
            self._model()
            agreed(torch.from_numpy(plan.theta), group)
            number = float(pooled(torch.tensor([float(len(data))]), group))
            monitor = self.monitor_ = Monitor(message=f"stopped after {n_iter} steps")
            reached, counts = self._expect(plan, data, group)
            monitor.history.append(reached)
            for _ in range(n_iter):
                before = plan.theta
                plan.theta = plan.step(counts)
                found, counts = self._expect(plan, data, group)
                if not found > reached:
                    plan.theta = before
                    self._fallen(reached, found)
                    monitor.converged, monitor.message = True, "no step gains in float64"
                    break
                gain, reached = found - reached, found
                monitor.history.append(reached)
                if verbose:
                    line = f"{monitor.iter:>6d} {reached:>18.8f} {gain:>+14.8f}"
                    print(line, file=sys.stderr)
                if gain < tol * number:
                    monitor.converged, monitor.message = (
                        True,
                        f"the last step gained {gain:.1e}",
                    )
                    break
            set_free_vector(self, torch.from_numpy(plan.theta))
        return self

    @staticmethod
    def _fallen(reached: float, found: float) -> None:
        if found < reached - 1e-9 * max(1.0, abs(reached)):
            raise SolverError(
                f"the log-likelihood fell from {reached!r} to {found!r} in a step: the start "
                "is at, or next to, a probability of zero; start from positive ones"
            )

    def _expect(
        self, plan: MStep, data: run.Pairs, group: ProcessGroup | None
    ) -> tuple[float, Floats]:
        """Log-likelihood, and counts of the sites and of what they leave over, of the pairs
        of all processes.
        """
        each, counts = self._counts(plan.values(), plan, data)
        worst = int(each.argmin())
        total, counts = plan.together(float(each.sum()), counts, group)
        if not np.isfinite(total):
            which = (
                f"pair {worst}" if not np.isfinite(each[worst]) else "another process's pair"
            )
            raise SolverError(
                f"{which} has a likelihood of zero under the model; let it be possible: no "
                "letter or move that it needs may have probability zero"
            )
        return total, counts

    def _counts(self, values: Floats, plan: MStep, data: run.Pairs) -> tuple[Floats, Floats]:
        """Each pair's log-likelihood, and counts of these pairs."""
        e, sites = self._membership.numpy(), plan.slices
        a, codes = len(self.alphabet), len(self.alphabet.codes)
        match = values[sites["match"]].reshape(a, a)
        inserts = [values[sites[n]] for n in ("insert_x", "insert_y")]
        opened, extended = values[sites["gap_open"]], values[sites["gap_extend"]]
        to_m, from_x, from_y = values[-3:]
        end = values[sites["end"]]
        moves = [to_m, *opened, extended[0], from_x, extended[1], from_y, *end]
        parts = [e @ match @ e.T, e @ inserts[0], e @ inserts[1], np.array(moves)]
        model = run.Model(*parts)
        each, flat = run.expected(model, data, self._threads())
        found = run.Model.of(flat, codes)
        counts = np.zeros(len(values))

        def slope(count: Floats, p: Floats) -> Floats:
            return np.divide(count, p, out=np.zeros_like(count), where=count > 0)

        pooled = e.T @ slope(found.match, model.match) @ e
        counts[sites["match"]] = (match * pooled).reshape(-1)
        for name, p, count, by_code in zip(
            ("insert_x", "insert_y"),
            inserts,
            (found.insert_x, found.insert_y),
            (model.insert_x, model.insert_y),
            strict=True,
        ):
            counts[sites[name]] = p * (e.T @ slope(count, by_code))
        mm, mx, my, xx, xm, yy, ym, ended = found.move
        counts[sites["gap_open"]], counts[sites["gap_extend"]] = (mx, my), (xx, yy)
        counts[sites["end"]] = ended
        counts[-3:] = mm, xm, ym
        return each, counts

    def align(
        self,
        x: Any,
        y: Any,
        method: Literal["viterbi", "mea"] = "viterbi",
        band: int | None = None,
        names: tuple[str, str] = ("x", "y"),
    ) -> Alignment:
        """The most probable alignment, or with "mea" that of greatest expected accuracy.

        Expected accuracy is Σ posterior over the pairs of an alignment (Durbin et al. 1998,
        section 4.4). Of equally good ones, the pair comes last. Raises SequenceError where no
        alignment is possible.
        """
        data, model = self.pairs([(x, y)], band), self._model()
        a, b, accuracy = data.x[0], data.y[0], None
        if method == "viterbi":
            path, value = run.best_path(model, a, b, band)
        elif method == "mea":
            total, _, _, found, limits = run.one_posterior(model, a, b, band)
            path, accuracy = run.accurate_path(found, limits, len(b)), 0.0
            i, j = (np.cumsum(path != k) - 1 for k in (2, 1))
            at = limits.starts()[i + 1] + (j + 1) - limits.low[i + 1]
            accuracy = float(found[at[path == 0]].sum())
            value = run.path_probability(model.logs(), a, b, path) if total > -np.inf else total
        else:
            raise ShapeError(f"method={method!r}; use 'viterbi' or 'mea'")
        if value == -np.inf:
            raise SequenceError("these sequences have no alignment under the model")
        text = [s if isinstance(s, str) else self.alphabet.decode(s) for s in (x, y)]
        states = "".join(STATES[k] for k in path)
        return Alignment(text[0], text[1], states, value, accuracy, names)

    def posterior(self, x: Any, y: Any, band: int | None = None) -> Posterior:
        """What the model believes of each pair of letters, over all alignments.

        Raises TooLarge above `DENSE_CELLS` cells without a band.
        """
        data = self.pairs([(x, y)], band)
        a, b = data.x[0], data.y[0]
        if band is None and (len(a) + 1) * (len(b) + 1) > DENSE_CELLS:
            raise TooLarge(
                f"a posterior of {len(a)} × {len(b)} letters is above {DENSE_CELLS:.0g} cells; "
                "give a band, as posterior(x, y, band=500)"
            )
        value, from_x, from_y, flat, limits = run.one_posterior(self._model(), a, b, band)
        match: Any
        if band is None:
            match = flat.reshape(len(a) + 1, len(b) + 1)[1:, 1:]
        else:
            start = limits.starts()
            column = np.arange(len(flat)) - np.repeat(start[:-1] - limits.low, limits.width)
            match = csr_array((flat, column, start), shape=(len(a) + 1, len(b) + 1))[1:, 1:]
        return Posterior(match, from_x, from_y, value)

    def sample(
        self, n: int = 1, random_state: int | np.random.Generator | None = None
    ) -> tuple[list[tuple[str, str]], list[Alignment]]:
        """Pairs drawn from the model, and how they align."""
        rng = np.random.default_rng(random_state)
        model, a = self._model(), len(self.alphabet)
        match = self.match.detach().numpy().reshape(-1)
        inserted = [p.detach().numpy() for p in (self.insert_x, self.insert_y)]
        mm, mx, my, xx, xm, yy, ym, end = model.move
        rows = np.array([[mm, mx, my, end], [xm, xx, 0, end], [ym, 0, yy, end]])
        state, alive = np.zeros(n, dtype=np.int64), np.arange(n)
        drawn: list[list[tuple[int, int, int]]] = [[] for _ in range(n)]
        levels = np.cumsum(rows / rows.sum(1, keepdims=True), axis=1)
        while alive.size:
            state[alive] = (rng.random((len(alive), 1)) >= levels[state[alive], :3]).sum(1)
            alive = alive[state[alive] < 3]
            both = rng.choice(a * a, len(alive), p=match / match.sum())
            ones = [rng.choice(a, len(alive), p=p / p.sum()) for p in inserted]
            for k, i in enumerate(alive):
                s = int(state[i])
                u = int(both[k]) // a if s == 0 else int(ones[0][k])
                v = int(both[k]) % a if s == 0 else int(ones[1][k])
                drawn[i].append((s, u, v))
        found = []
        logs, letters = model.logs(), self.alphabet.letters
        for steps in drawn:
            path = np.array([s for s, _, _ in steps], dtype=np.int64)
            x = np.array([u for s, u, _ in steps if s != 2], dtype=np.int64)
            y = np.array([v for s, _, v in steps if s != 1], dtype=np.int64)
            value = run.path_probability(logs, x, y, path)
            states = "".join(STATES[s] for s in path)
            texts = ["".join(letters[i] for i in codes) for codes in (x, y)]
            found.append(Alignment(texts[0], texts[1], states, value))
        return [(f.x, f.y) for f in found], found


def _is_pair(value: Any) -> bool:
    """Whether this is one (x, y), not a list of them."""
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    if all(isinstance(v, str) for v in value):
        return True
    return all(isinstance(v, np.ndarray | Tensor) and v.ndim == 1 for v in value)


def _triangle(size: int) -> Tensor:
    """Where entry (a, b) of a symmetric matrix lies in its lower triangle."""
    i, j = np.maximum.outer(*[np.arange(size)] * 2), np.minimum.outer(*[np.arange(size)] * 2)
    return torch.from_numpy(i * (i + 1) // 2 + j)


def _start(alphabet: Alphabet) -> Floats:
    if alphabet.letters == PROTEIN.letters:
        return blosum62()
    a = len(alphabet)
    same, other = 0.85 / a, 0.15 / (a * (a - 1))
    return np.full((a, a), other) + np.eye(a) * (same - other)


def blosum62() -> Floats:
    """The joint probabilities of amino acids behind BLOSUM62, in PROTEIN's order, (20, 20).

    S. Henikoff, J. G. Henikoff, Proc. Natl. Acad. Sci. USA 89, 10915 (1992).
    """
    text = importlib.resources.files("eadem.data").joinpath("blosum62.txt").read_text("utf-8")
    rows: Iterable[Sequence[str]] = (
        line.split() for line in text.splitlines() if line and line[0] != "#"
    )
    found = np.zeros((20, 20))
    for i, (_, *numbers) in enumerate(rows):
        found[i, : i + 1] = found[: i + 1, i] = [float(v) for v in numbers]
    whole: Floats = found / found.sum()
    return whole
