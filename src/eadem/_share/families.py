"""Where the weight matrices of stock transformers lie: by stack, layer and kind.

A matrix *reads* an input, which those of one layer with equal `reads` have in common (queries,
keys and values; gate and up), or *writes* into the residual stream (`o`, `down`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from eadem.errors import NoSuchSite, Unsupported, nearest

__all__ = ["FAMILIES", "HEAD", "LOOKED_UP", "Matrix", "matrices", "named", "transposed"]

#: Kinds of the embeddings: the one that writes words, and the one that is looked up.
HEAD, LOOKED_UP = "output embedding", "input embedding"


@dataclass(frozen=True)
class Matrix:
    """One weight matrix: y = x·Wᵀ, W of `shape` (out, in).

    `site`: the parameter's name; `module`: that of its layer; `transposed`: stored as (in,
    out). `uses`: how often one forward of the stock class multiplies by it.
    """

    site: str
    kind: str
    reads: str
    stack: str
    layer: int
    shape: tuple[int, int]
    transposed: bool = False
    uses: int = 1

    @property
    def module(self) -> str:
        """The layer's name."""
        return self.site.rpartition(".")[0]

    @property
    def size(self) -> int:
        """Number of values."""
        return self.shape[0] * self.shape[1]

    @property
    def writes(self) -> bool:
        """Whether its output is added to the residual stream."""
        return self.kind in ("o", "down", "cross o")

    @property
    def narrow(self) -> bool:
        """Whether its outputs, not its inputs, are the side that a group shares."""
        return self.writes if self.stack != "plan" else self.shape[0] < self.shape[1]

    @property
    def source(self) -> str:
        """A name for the input that it reads."""
        return f"{self.stack}.{self.layer}.{self.reads}"


@dataclass(frozen=True)
class _Family:
    """Names of the layers in one architecture: (suffix, kind, reads)."""

    types: tuple[str, ...]
    block: str
    parts: tuple[tuple[str, str, str], ...]


_BERT = (
    ("attention.self.query", "q", "x"),
    ("attention.self.key", "k", "x"),
    ("attention.self.value", "v", "x"),
    ("attention.output.dense", "o", "heads"),
    ("intermediate.dense", "up", "y"),
    ("output.dense", "down", "hidden"),
)
_T5 = (
    ("SelfAttention.q", "q", "x"),
    ("SelfAttention.k", "k", "x"),
    ("SelfAttention.v", "v", "x"),
    ("SelfAttention.o", "o", "heads"),
    ("EncDecAttention.q", "cross q", "cross"),
    ("EncDecAttention.k", "cross k", "encoded"),
    ("EncDecAttention.v", "cross v", "encoded"),
    ("EncDecAttention.o", "cross o", "cross heads"),
    ("DenseReluDense.wi_0", "gate", "y"),
    ("DenseReluDense.wi_1", "up", "y"),
    ("DenseReluDense.wi", "up", "y"),
    ("DenseReluDense.wo", "down", "hidden"),
)

FAMILIES: tuple[_Family, ...] = (
    _Family(
        ("gpt2",),
        r"(?P<stack>)h\.(?P<layer>\d+)",
        (
            ("attn.c_attn", "qkv", "x"),
            ("attn.c_proj", "o", "heads"),
            ("mlp.c_fc", "up", "y"),
            ("mlp.c_proj", "down", "hidden"),
        ),
    ),
    _Family(
        ("llama", "mistral", "qwen2", "smollm3"),
        r"(?P<stack>)layers\.(?P<layer>\d+)",
        (
            ("self_attn.q_proj", "q", "x"),
            ("self_attn.k_proj", "k", "x"),
            ("self_attn.v_proj", "v", "x"),
            ("self_attn.o_proj", "o", "heads"),
            ("mlp.gate_proj", "gate", "y"),
            ("mlp.up_proj", "up", "y"),
            ("mlp.down_proj", "down", "hidden"),
        ),
    ),
    _Family(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra"),
        r"(?P<stack>)encoder\.layer\.(?P<layer>\d+)",
        _BERT,
    ),
    _Family(
        ("albert",),
        r"(?P<stack>)albert_layer_groups\.(?P<layer>\d+)\.albert_layers\.\d+",
        (
            ("attention.query", "q", "x"),
            ("attention.key", "k", "x"),
            ("attention.value", "v", "x"),
            ("attention.dense", "o", "heads"),
            ("ffn", "up", "y"),
            ("ffn_output", "down", "hidden"),
        ),
    ),
    _Family(
        ("t5", "mt5"),
        r"(?P<stack>encoder|decoder)\.block\.(?P<layer>\d+)\.layer\.\d+",
        _T5,
    ),
)


def transposed(module: nn.Module) -> bool | None:
    """Whether a layer stores W as (in, out); None where it is no layer that multiplies by W."""
    if isinstance(module, nn.Linear):
        return False
    return True if type(module).__name__ == "Conv1D" else None


def _weight(module: nn.Module) -> Tensor:
    found = module.weight
    assert isinstance(found, Tensor)
    return found


def matrices(model: nn.Module) -> list[Matrix]:
    """The weight matrices of a stock model's blocks, in traversal order.

    Raises Unsupported for an architecture that is not known, with those that are and the way
    to write a plan by hand.
    """
    config: Any = getattr(model, "config", None)
    kind = str(getattr(config, "model_type", type(model).__name__))
    family = next((f for f in FAMILIES if kind in f.types), None)
    if family is None:
        known = ", ".join(t for f in FAMILIES for t in f.types)
        raise Unsupported(
            f"{type(model).__name__} is of the architecture {kind!r}, which eadem share does "
            f"not know ({known}). Write a plan by hand, a TOML file with one [[tie]] for each "
            'group of sites (method = "factored", sites = ["…weight", …], rank = 64), and give '
            "it with --plan FILE (plan=…)"
        )
    suffixes = {suffix: (k, reads) for suffix, k, reads in family.parts}
    pattern = re.compile(
        rf"(?:^|\.){family.block}\.(?P<part>{'|'.join(map(re.escape, suffixes))})$"
    )
    uses = _uses(config)
    found = []
    for name, module in model.named_modules():
        match = pattern.search(name)
        turned = transposed(module)
        if match is None or turned is None:
            continue
        k, reads = suffixes[match["part"]]
        shape = tuple(_weight(module).shape)
        rows, columns = shape[::-1] if turned else shape
        stack = match["stack"]
        layer = int(match["layer"])
        found.append(
            Matrix(f"{name}.weight", k, reads, stack, layer, (rows, columns), turned, uses)
        )
    if not found:
        raise Unsupported(
            f"{type(model).__name__} calls itself {kind!r}, but has none of the layers of that "
            f"architecture ({family.parts[0][0]}, …); write a plan by hand, and give it with "
            "--plan FILE (plan=…)"
        )
    return found


def _uses(config: Any) -> int:
    """How often a layer runs, in a class that shares whole layers by itself (ALBERT)."""
    groups = getattr(config, "num_hidden_groups", None)
    return int(config.num_hidden_layers) // int(groups) if groups else 1


def named(model: nn.Module, sites: Iterable[str], known: Sequence[Matrix] = ()) -> list[Matrix]:
    """The matrices of a plan's sites; those that are not `known` by their names alone.

    Raises NoSuchSite, and Unsupported for a site that is not the weight of a linear layer.
    """
    by_site = {m.site: m for m in known}
    modules = dict(model.named_modules())
    found = []
    for i, site in enumerate(sites):
        if site in by_site:
            found.append(by_site[site])
            continue
        module_name, _, attr = site.rpartition(".")
        module = modules.get(module_name)
        if module is None or attr != "weight":
            layers = [f"{n}.weight" for n, m in modules.items() if transposed(m) is not None]
            raise NoSuchSite(f"the plan names {site!r}; {nearest(site, layers)}")
        turned = transposed(module)
        if turned is None:
            raise Unsupported(
                f"the plan names {site!r}, of a {type(module).__name__}; a plan shares weights "
                "of nn.Linear (and GPT-2's Conv1D) layers. Tie anything else with eadem.tie"
            )
        shape = tuple(_weight(module).shape)
        rows, columns = shape[::-1] if turned else shape
        made = Matrix(site, f"site{i}", module_name, "plan", 0, (rows, columns), turned)
        found.append(replace(made))
    return found
