"""The dimension of the equivariant filters in escnn, where it is installed, beside ours."""

import warnings

import pytest

from eadem.groups import Cyclic, Dihedral, Equivariant

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    gspaces = pytest.importorskip(
        "escnn.gspaces", reason="escnn is not installed", exc_type=ImportError
    )
    from escnn import nn


@pytest.mark.parametrize(
    ("group", "kernel", "mine", "theirs"),
    [(Cyclic(4), 3, 36, 24), (Cyclic(4), 5, 100, 44), (Dihedral(4), 3, 72, 48)],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_dimensions(group, kernel, mine, theirs):
    act = gspaces.rot2dOnR2(4) if group.order == 4 else gspaces.flipRot2dOnR2(4)
    kind = nn.FieldType(act, [act.regular_repr])
    layer = nn.R2Conv(kind, kind, kernel, bias=False)
    assert layer.basisexpansion.dimension() == theirs
    rep = group.regular(1)
    shape = (rep.size, rep.size, kernel, kernel)
    assert Equivariant(rep, rep).bind(shape).rank == mine
