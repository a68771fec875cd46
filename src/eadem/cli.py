"""The command line: `eadem list`, `data`, `run`, `summary`, `report`, `fit`, `align`, `share`.

What goes wrong is one line on stderr and exit code 2; Ctrl-C is exit code 130. torch is
imported only by the commands that need it, so `eadem --help` answers at once.
"""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from .errors import EademError

if TYPE_CHECKING:
    from torch import nn

    from .project import Outcome

__all__ = ["app", "main"]

INTERRUPTED = 130
#: A file that every finished `fit` holds.
FIT = "fit.json"

app = typer.Typer(
    name="eadem",
    help="Parameter sharing as a declared, inspectable, testable part of any model.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line on `argv` (default: the process's own) and exit with its code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app(words or ["--help"], prog_name="eadem", standalone_mode=False)
    except EademError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        # Usage errors: their class moved from click into typer between versions.
        if not hasattr(error, "format_message"):
            raise
        _fail(f"{error.format_message()} Try: eadem --help")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    print("eadem: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"eadem {version('eadem')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


@app.command("list")
def list_() -> None:
    """List the recipes: runnable studies on real data."""
    from .recipes import recipes

    table = Table("recipe", "what it shows", box=None, pad_edge=False)
    for name, title in recipes().items():
        table.add_row(name, Text(title))
    Console().print(table)


@app.command()
def data() -> None:
    """List the packages that recipes read data from, and how to get those that are not here."""
    from .recipes._data import packages

    found = packages()
    table = Table("package", "version", "licence of the data", "", box=None, pad_edge=False)
    for package in found:
        state = "present" if package.present() else "missing"
        table.add_row(package.project, package.version, package.licence, state)
    Console().print(table)
    # Lines to type go out unwrapped, so that they can be copied.
    for package in found:
        if not package.present():
            print(f"{package.project}: {package.line()}")


@app.command()
def run(
    recipe: Annotated[
        str | None, typer.Argument(help="A name that `eadem list` shows.", show_default=False)
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All recipes, and one page of their claims.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small version, in seconds.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results.", show_default="runs/RECIPE-seedN[-quick]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Where all randomness starts.")] = 0,
    device: Annotated[str, typer.Option(help="A torch device, as cpu or cuda:0.")] = "cpu",
    jobs: Annotated[int, typer.Option(min=1, help="With --all: recipes at a time.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="With --all: keep the recipes that are whole.")
    ] = False,
) -> None:
    """Run a recipe and print where its report is.

    Results are written to <out>.partial and take their name only when they are whole.
    """
    from . import recipes

    console = Console()
    if every != (recipe is None):
        raise typer.BadParameter("give the name of one recipe, or --all.")
    if recipe is None:
        _run_all(console, out, quick, seed, device, jobs, resume)
        return
    try:
        folder = recipes.run(
            recipe, out=out, quick=quick, seed=seed, device=device, console=console
        )
    except KeyboardInterrupt:
        mark = recipes.marker(out or recipes.default_out(recipe, seed, quick))
        rest = f"; {mark} says how to start again" if mark.exists() else ""
        print(f"eadem: interrupted{rest}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    _show_results(folder, console)


def _run_all(
    console: Console,
    out: Path | None,
    quick: bool,
    seed: int,
    device: str,
    jobs: int,
    resume: bool,
) -> None:
    """Exit code 1 when a recipe failed or lacks its data; claims decide nothing here."""
    from .recipes import _all

    try:
        folder = _all.run_all(
            out=out,
            quick=quick,
            seed=seed,
            device=device,
            jobs=jobs,
            resume=resume,
            console=console,
        )
    except KeyboardInterrupt:
        print(
            "eadem: interrupted; what is whole stays, and --resume goes on from there",
            file=sys.stderr,
        )
        raise typer.Exit(INTERRUPTED) from None
    record = json.loads((folder / _all.CLAIMS).read_text(encoding="utf-8"))
    states = [claim["status"] for claim in record["claims"]]
    print(", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)))
    print(f"report: {folder / _all.INDEX}")
    if any(study["state"] != "whole" for study in record["recipes"]):
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `run` wrote.")],
) -> None:
    """Print a run's claims and where its report is, rendered again if the recipe can."""
    from . import recipes

    recipes.render(folder)
    _show_results(folder.expanduser().resolve(), Console())


@app.command()
def summary(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY|CHECKPOINT",
            help="A function that returns a model; or a safetensors or torch file, an index "
            "of shards, or a folder of these.",
        ),
    ],
) -> None:
    """Show a model's ties, their owners, and its free and expanded counts.

    Of a checkpoint: the ties that Eadem recorded, names that share memory, tensors of equal
    content, and what one copy of each would save.
    """
    if Path(model).exists():
        _show_checkpoint(Path(model))
    elif ":" in model:
        built = _built(model)
        Console().print(_report("summary").summary(built))
    else:
        raise EademError(
            f"{model!r} is neither a file nor MODULE:FACTORY; give a checkpoint (a file, or a "
            "folder of shards), or an importable function, as package.models:build"
        )


@app.command()
def fit(
    project: Annotated[
        Path, typer.Argument(metavar="PROJECT.toml", help="What to fit: see the guide.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report.", show_default="PROJECT-fit"),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No line per iteration.")
    ] = False,
) -> None:
    """Fit data sets together as a project file says; leave a report, without programming.

    Results are written to <out>.partial and take their name only when they are whole. A fit
    that does not converge is reported as it is, with exit code 1.
    """
    from .project import build, fit_project, load
    from .recipes._run import output_folder

    asked = load(project)
    build(asked)  # what is wrong with it is said before a folder is begun
    target = out or project.with_name(project.stem + "-fit")
    say = None if quiet else print
    command = shlex.join(["eadem", "fit", str(project), "--out", str(target)])
    with output_folder(target, command, FIT) as folder:
        outcome = fit_project(asked, folder, say)
    _show_fit(outcome, target.expanduser().resolve())
    if not outcome.fit.converged:
        print(f"eadem: not converged: {outcome.fit.message}", file=sys.stderr)
        raise typer.Exit(1)


def _show_fit(outcome: Outcome, folder: Path) -> None:
    from .report.numbers import percent, significant, with_error

    table = Table("parameter", "value", "", box=None, padding=(0, 2, 0, 0))
    patterns = outcome.built.powder
    for name, state in outcome.state.items():
        # A structure repeated in every pattern, and what is zero there, is in the report.
        if name.partition(".")[0] in patterns and state not in ("free", "at its bound"):
            continue
        table.add_row(Text(name), Text(with_error(*outcome.value(name))), Text(state))
    console = Console()
    console.print(table)
    for name, block in patterns.items():
        console.print(Text(f"{name}: Rwp {percent(block.rwp(), 2)}"))
    clustered = outcome.project.options.cluster is not None
    for v in outcome.verdicts:
        p = significant(v.robust_pvalue if clustered else v.pvalue)
        console.print(Text(f"tie {v.tie}: {v.word(clustered)} (p = {p})"))
    for note in outcome.notes:
        console.print(Text(f"note: {note}"))
    print(f"report: {folder / 'report.html'}")


@app.command()
def align(
    a: Annotated[Path, typer.Argument(metavar="A", help="Sequences, FASTA or Stockholm.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Sequences to align them with.")],
    band: Annotated[
        int | None, typer.Option(min=1, help="Letters off the straight line, for long pairs.")
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Learn the model from the pairs.")] = False,
    mea: Annotated[
        bool, typer.Option("--mea", help="Greatest expected accuracy, not probability.")
    ] = False,
    protein: Annotated[
        bool | None, typer.Option("--protein/--dna", help="What the letters are (guessed).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A file: .fasta, .sto, or anything else to read.")
    ] = None,
) -> None:
    """Align sequences by a pair hidden Markov model, record by record.

    Files of as many records are paired in order; a single record goes with each of the other
    file's.
    """
    files = importlib.import_module(f"{__package__}.hmm.pair_files")
    kind = {True: "protein", False: "dna", None: None}[protein]
    found = files.align_files(a, b, alphabet=kind, fit=fit, mea=mea, band=band)
    if out is None:
        for alignment in found:
            print(f"{files.headline(alignment)}\n\n{alignment}\n")
        return
    try:
        out.write_text(files.written(list(found), out), encoding="utf-8")
    except OSError as error:
        raise EademError(f"{out} cannot be written: {error.strerror or error}") from error
    print(f"alignments: {out}")


@app.command()
def share(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A folder of transformers', or a .gguf file."),
    ],
    calibrate: Annotated[Path, typer.Option(help="Text like what the model will read.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    keep: Annotated[
        float, typer.Option(help="Share of the blocks' weights that is left.")
    ] = 0.8,
    plan: Annotated[
        Path | None, typer.Option(help="A plan.toml, instead of --keep; see the guide.")
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(help="Text to test on.", show_default="the end of --calibrate"),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="A checkpoint of the stock class too.")
    ] = False,
    windows: Annotated[int, typer.Option(min=4, help="Windows of text to read.")] = 48,
    length: Annotated[
        int | None, typer.Option(min=4, help="Tokens in a window.", show_default="256")
    ] = None,
    reach: Annotated[
        int, typer.Option(min=1, help="Neighbouring layers that may share a basis.")
    ] = 2,
    recover: Annotated[int, typer.Option(min=0, help="Steps of distillation.")] = 0,
    own_samples: Annotated[
        int,
        typer.Option(
            min=0,
            help="Windows of text that the model writes itself, for a third of these steps.",
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Where all randomness starts.")] = 0,
    as_stored: Annotated[
        bool,
        typer.Option(
            "--as-stored",
            help="Keep the file's number format and read weights from the mapped file, for a "
            "model larger than memory.",
        ),
    ] = False,
) -> None:
    """Tie the matrices of a pretrained transformer so that fewer weights are left.

    Results are written to <out>.partial and take their name only when they are whole; an
    interrupted recovery goes on where it was.
    """
    from ._share.command import Asked, share_files
    from ._share.files import METRICS
    from .recipes._run import output_folder

    asked = Asked(
        model,
        calibrate,
        keep,
        plan,
        test,
        plain,
        windows,
        length,
        reach,
        recover,
        seed,
        as_stored,
        own_samples,
    )
    command = shlex.join(["eadem", *sys.argv[1:]])
    state = out.expanduser().resolve().with_name(out.name + ".recovery")
    screen = Console(stderr=True)
    with (
        output_folder(out, command, METRICS) as folder,
        Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar,
    ):
        bars: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = bar.add_task(what)
            bar.update(bars[what], completed=done, total=total)

        found = share_files(asked, folder, state, print, progress)
    table = Table("", "weights", found.quantity, box=None, padding=(0, 2, 0, 0))
    table.add_row("original", f"{found.full:,}", f"{found.original:.4f}")
    table.add_row("shared", f"{found.free:,}", f"{found.test:.4f}")
    if found.recovered is not None:
        table.add_row("recovered", f"{found.free:,}", f"{found.recovered:.4f}")
    if found.baseline is not None:
        count = f"{found.methods[0].free:,}"
        table.add_row("per-layer whitened SVD", count, f"{found.baseline:.4f}")
    Console().print(table)
    print(f"report: {out.expanduser().resolve() / 'report.html'}")


def _show_checkpoint(path: Path) -> None:
    """Print what a checkpoint holds; a bar on a terminal's stderr shows how far it is."""
    report = _report("checkpoint")
    screen = Console(stderr=True)
    with Progress(
        TextColumn("comparing tensors"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    ) as bar:
        task = bar.add_task("", total=None)
        found = report.checkpoint_summary(
            path, lambda done, total: bar.update(task, completed=done, total=total)
        )
    Console().print(found)


def _report(name: str) -> Any:
    return importlib.import_module(f"{__package__}.report.{name}")


def _built(name: str) -> nn.Module:
    """The model of `module:factory`, imported from the current folder first."""
    from torch import nn

    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        value: Any = importlib.import_module(module)
        for part in attribute.split("."):
            value = getattr(value, part)
        if not isinstance(value, nn.Module):
            value = value()
    except Exception as error:
        # The user's own code: anything may come out of it.
        raise EademError(
            f"{name!r} gave no model ({type(error).__name__}: {error}); give MODULE:FACTORY, "
            "where FACTORY needs no arguments and returns an nn.Module"
        ) from error
    if not isinstance(value, nn.Module):
        raise EademError(
            f"{name!r} returned {type(value).__name__}; its factory must return an nn.Module"
        )
    return value


def _show_results(folder: Path, console: Console) -> None:
    from .recipes import METRICS, REPORT

    claims = json.loads((folder / METRICS).read_text(encoding="utf-8"))["claims"]
    if claims:
        console.print(_claims_table(claims))
    page = folder / REPORT
    # Paths go out unwrapped, so that they can be copied and clicked.
    print(f"report: {page}" if page.is_file() else f"results: {folder}")


def _claims_table(claims: Sequence[dict[str, Any]]) -> Table:
    held = sum(claim["holds"] for claim in claims)
    table = Table("claim", "holds", "statement", box=None, padding=(0, 2, 0, 0))
    table.title = f"{held} of {len(claims)} claims hold (figures: metrics.json)"
    table.title_justify = "left"
    for claim in claims:
        table.add_row(
            Text(claim["id"]),
            Text("yes", style="green") if claim["holds"] else Text("no", style="bold red"),
            Text(claim["text"]),
        )
    return table
