"""Rows 14, 29, 30 and 39: transformers, peft and quantisers."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import eadem

from . import oracle
from .oracle import Stopped, event, judge, worst
from .rows import Case, Row, always, first_two, inner, kept, said
from .subjects import FIVE, Fold, Subject, family, head, hugging, llama, read, split
from .verdict import Outcome, Verdict
from .ways import EADEM, NATIVE, PARAMETRIZE, Way

__all__ = ["ROWS"]

HF = ("transformers",)


# 14: save_pretrained, from_pretrained


def _pretrained(way: Way, subject: Subject) -> Outcome:
    model = way.tied(subject, 7).eval()
    with tempfile.TemporaryDirectory() as folder, event(model):
        model.save_pretrained(folder)  # type: ignore[operator]
        again = type(model).from_pretrained(folder).eval()  # type: ignore[attr-defined]
    return _same_logits(model, again, subject)


def _same_logits(model: nn.Module, again: nn.Module, subject: Subject) -> Outcome:
    x = subject.input()
    far = float((subject.call(model, x) - subject.call(again, x)).abs().max())
    wrong = [said(Verdict.WRONG, f"the logits are {far:.2g} away")] if not far < 1e-5 else []
    return worst([*wrong, judge(again, subject, want=subject.values(7))])


def _declared_by_class(way: Way, subject: Subject) -> Outcome:
    """transformers' own: a subclass that lists the tie in `_tied_weights_keys`."""
    from transformers import LlamaForCausalLM

    class Declared(LlamaForCausalLM):  # type: ignore[misc]
        _tied_weights_keys = {n: link.owner for n, link in subject.links.items()}  # noqa: RUF012

    config = copy.deepcopy(llama().config)
    config.tie_word_embeddings = True
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Declared(config).eval()
    with tempfile.TemporaryDirectory() as folder, event(model):
        model.save_pretrained(folder)
        again = Declared.from_pretrained(folder).eval()
    return _same_logits(model, again, subject)


# 29: LoRA


def _adapted(model: nn.Module, subject: Subject, targets: list[str], **options: Any) -> Any:
    """The model with an adapter that was trained a little."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, **options))
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        oracle.loss(subject.call(adapted, subject.input())).backward()
        optimizer.step()
    return adapted.eval()


def _lora(way: Way, subject: Subject) -> Outcome:
    return _merged(way, subject, [split(n)[0] for n in subject.sites])


def _lora_at_last(way: Way, subject: Subject) -> Outcome:
    return _merged(way, subject, [split(subject.sites[-1])[0]])


def _lora_shared(way: Way, subject: Subject) -> Outcome:
    """One adapter for embedding and output, as peft offers it for tied models."""
    targets = [split(n)[0].rpartition(".")[2] for n in subject.sites]
    return _merged(way, subject, targets, ensure_weight_tying=True)


def _adopted() -> tuple[Subject, ...]:
    """Embedding and output that transformers has tied, and Eadem too."""
    declare = lambda m, at="": eadem.tie(m, *head(True).sites)  # noqa: E731
    return (dataclasses.replace(head(True), declare=declare),)


def _merged(way: Way, subject: Subject, targets: list[str], **options: Any) -> Outcome:
    """Outputs before the merge, merged, and unmerged again."""
    model = way.tied(subject).eval()
    x = subject.input()
    adapted = _adapted(model, subject, targets, **options)
    call = lambda: subject.call(adapted, x).detach().clone()  # noqa: E731
    before = call()
    with event(adapted):
        adapted.merge_adapter()
    merged = call()
    with event(adapted):
        adapted.unmerge_adapter()
    for name, out in (("merged", merged), ("unmerged", call())):
        far = float((out - before).abs().max())
        if far > 1e-4:
            return said(Verdict.WRONG, f"once {name}, the outputs are {far:.2g} away")
    return judge(adapted.unload().requires_grad_(True), subject)  # peft froze it


# 30: quantised at one site


def _torchao(way: Way, subject: Subject) -> Outcome:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def at(name: str) -> Callable[[nn.Module], object]:
        module = split(name)[0]
        config = Int8WeightOnlyConfig()
        return lambda m: quantize_(m, config, filter_fn=lambda _, fqn: fqn == module)

    return _quantised(way, subject, at)


def _dynamic(way: Way, subject: Subject) -> Outcome:
    def at(name: str) -> Callable[[nn.Module], object]:
        from torch.ao.quantization import quantize_dynamic

        return lambda m: quantize_dynamic(m, {split(name)[0]}, inplace=True)

    return _quantised(way, subject, at)


def _quantised(
    way: Way, subject: Subject, at: Callable[[str], Callable[[nn.Module], object]]
) -> Outcome:
    """After one site's module is quantised, every site reads the one quantised θ."""
    found = []
    for name in subject.sites:
        model = way.tied(subject).eval()
        if not isinstance(inner(model, name), nn.Linear):
            continue
        before = subject.call(model, subject.input()).detach()
        try:
            with event(model):
                at(name)(model)
        except Stopped as error:
            found.append(oracle.stopped(error, way is EADEM))
            continue
        values = {n: _dense(model, n) for n in subject.sites}
        if torch.equal(values[name], read(way.tied(subject), name)):
            found.append(said(Verdict.WRONG, f"{name} is not quantised, without a word"))
        for site, w in subject.expand(subject.theta(values)).items():
            if not torch.equal(w, values[site]):
                far = float((w - values[site]).abs().max())
                found.append(said(Verdict.UNTIED, f"{site} is {far:.2g} from its owner"))
        far = float((subject.call(model, subject.input()) - before).abs().max())
        if far > 0.1:
            found.append(said(Verdict.WRONG, f"the outputs are {far:.2g} away"))
        found.append(kept())
    return worst(found)


def _dense(model: nn.Module, name: str) -> Tensor:
    """A site's value, out of whatever a quantiser has made of it."""
    weight = getattr(inner(model, name), split(name)[1])
    weight = weight() if callable(weight) else weight
    weight = weight.dequantize() if hasattr(weight, "dequantize") else weight
    dense: Tensor = weight.detach()
    return dense.clone(memory_format=torch.contiguous_format)


# 39: tied by its class, and further


def _further(way: Way, subject: Subject) -> Outcome:
    """Ours on top of the class's own; then its `tie_weights()`."""
    model = way.tied(subject)
    first = judge(copy.deepcopy(model), subject)
    with event(model):
        model.tie_weights()  # type: ignore[operator]
    return worst([first, judge(model, subject)])


def _natively(way: Way, subject: Subject) -> Outcome:
    model = way.tied(subject)
    with event(model):
        model.tie_weights()  # type: ignore[operator]
    return judge(model, subject)


def _families(further: bool) -> Callable[[], tuple[Subject, ...]]:
    return lambda: tuple(family(m, further) for m in ("GPT-2", "T5", "ALBERT"))


def _half_columns(w: Tensor) -> Tensor:
    return w[:, :4]


def _mirror_columns(t: Tensor) -> Tensor:
    return torch.cat([t, t.flip(1)], dim=1)


def _structured() -> tuple[Subject, ...]:
    """A palindrome on a weight that the class ties."""
    given = family("GPT-2", further=False)
    owner = next(iter(given.links.values())).owner
    fold = {owner: Fold(_half_columns, _mirror_columns)}
    declare = lambda m, at="": eadem.tie(m, owner, via=eadem.Palindrome(dim=1))  # noqa: E731
    return (dataclasses.replace(given, name="palindrome", declare=declare, folds=fold),)


ROWS = (
    Row(
        14,
        "a transformers model with ties its class does not know, saved and loaded",
        (
            Case("", _pretrained, subjects=hugging, needs=HF, seconds=90),
            Case(
                "_tied_weights_keys",
                _declared_by_class,
                subjects=lambda: hugging()[:1],
                ways=(NATIVE,),
                library="transformers",
                needs=HF,
                seconds=90,
            ),
        ),
    ),
    Row(
        29,
        "given LoRA on tied sites, merged and unmerged",
        (
            Case(
                "at every site",
                _lora,
                refusable=always,
                needs=("peft",),
                subjects=lambda: tuple(s for s in FIVE if s.name != "part"),
            ),
            Case(
                "at one site",
                _lora_at_last,
                refusable=always,
                needs=("peft",),
                subjects=lambda: tuple(s for s in FIVE if s.name != "part"),
            ),
            Case(
                "ensure_weight_tying",
                _lora_shared,
                needs=("peft", *HF),
                ways=(EADEM,),
                subjects=_adopted,
            ),
            Case(
                "ensure_weight_tying",
                _lora_shared,
                needs=("peft", *HF),
                ways=(NATIVE,),
                library="peft",
                subjects=lambda: (head(True),),
            ),
        ),
    ),
    Row(
        30,
        "quantised at one site",
        (
            Case(
                "torchao",
                _torchao,
                needs=("torchao",),
                subjects=first_two,
                refusable=lambda s: s.name != "equality",
            ),
            Case("quantize_dynamic", _dynamic, subjects=first_two, refusable=always),
        ),
    ),
    Row(
        39,
        "tied natively already, and tied further",
        (
            Case("further", _further, subjects=_families(True), needs=HF),
            Case(
                "structure on a tied weight",
                _further,
                subjects=_structured,
                needs=HF,
                ways=(EADEM, PARAMETRIZE),
            ),
            Case(
                "its own ties alone",
                _natively,
                subjects=_families(False),
                ways=(NATIVE,),
                library="transformers",
                needs=HF,
            ),
        ),
    ),
)
