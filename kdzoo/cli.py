"""The command line: commands and nothing else. What they need is imported when they run."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdzoo.errors import KdzooError
from kdzoo.torchrun import rank_and_count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.table import Table

    from kdzoo.pipeline.plan import Run
    from kdzoo.pipeline.runs import Study
    from kdzoo.tuning.study import Tuned

__all__ = ["app", "main"]

_WIDE = 10_000  # columns, more than any table has
_TOGETHER = ("run", "tune")  # what several processes do, or refuse, together

app = typer.Typer(
    name="kdzoo",
    help="Knowledge distillation that says which classes the teacher hurts, and stops teaching "
    "those.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

plugins_app = typer.Typer(invoke_without_command=True)
app.add_typer(plugins_app, name="plugins")

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="A spec, as YAML.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the spec: losses.kd.temperature=2."),
]
PluginFiles = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE", help="A Python file with components of your own."),
]


def _add(files: list[Path] | None) -> None:
    """Load local plugins, for this command only: a spec can never name code."""
    from kdzoo.extend.registry import registry

    for file in files or ():
        registry().add_file(file)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where in the code an error came from.")
    ] = False,
) -> None:
    del debug  # here for the help: main() takes it from anywhere on the command line
    if version:
        from importlib import metadata

        print(metadata.version("kdzoo"))
        raise typer.Exit
    if rank_and_count()[0] > 0 and context.invoked_subcommand not in _TOGETHER:
        raise typer.Exit  # the first process does it


@app.command()
def run(
    spec: SpecFile,
    settings: Settings = None,
    plugin: PluginFiles = None,
    runs: Annotated[Path, typer.Option(help="Where the run directories are.")] = Path("runs"),
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start this run over (not its finished teacher or baseline)."),
    ] = False,
) -> None:
    """Do what a spec says; continue it if it was cut off."""
    import kdzoo
    from kdzoo.spec.read import read_study
    from kdzoo.training.distributed import processes

    _add(plugin)
    first = processes().first  # of several, the one that speaks for all
    if not first:
        logging.getLogger("kdzoo").setLevel(logging.ERROR)
    try:
        specs = read_study(spec, settings or ())
        if first and _has_search(spec, settings):
            print("`tune` is passed over: `kdzoo tune` searches", file=sys.stderr)
        if len(specs) == 1:
            one = kdzoo.run(specs[0], runs=runs, fresh=fresh)
            show = functools.partial(_show_run, one)
        else:
            several = kdzoo.run_study(spec, settings or (), runs=runs, fresh=fresh)
            show = functools.partial(_show_study, several)
    except KeyboardInterrupt:
        if processes().may_speak():
            message = "kdzoo: interrupted; the same command goes on from the last finished epoch"
            print(f"\n{message}", file=sys.stderr)
        raise typer.Exit(130) from None
    except KdzooError:
        if not processes().may_speak():
            raise typer.Exit(1) from None
        raise
    if not first:
        return
    show()
    if any(observer.use == "tensorboard" for each in specs for observer in each.observers):
        print(f"TensorBoard:    tensorboard --logdir {runs}")


@app.command()
def tune(
    spec: SpecFile,
    settings: Settings = None,
    plugin: PluginFiles = None,
    runs: Annotated[Path, typer.Option(help="Where the run directories are.")] = Path("runs"),
    storage: Annotated[
        str | None,
        typer.Option(help="A database's URL or a journal's file, to share the study with others."),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="How many trials the study has.")] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="How many processes work on it on this machine.")
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a study; fail if there is none.")
    ] = False,
) -> None:
    """Search the keys that a spec's `tune` names; test the best setting once."""
    import kdzoo

    _add(plugin)
    given = list(settings or ())
    given += [] if storage is None else [f"tune.storage={json.dumps(storage)}"]
    given += [] if trials is None else [f"tune.trials={trials}"]
    try:
        done = kdzoo.tune(spec, given, runs=runs, resume=resume, workers=workers)
    except KeyboardInterrupt:
        print("\nkdzoo: interrupted; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    _show_tuned(done)
    print(f"TensorBoard:    tensorboard --logdir {runs}")


@app.command()
def validate(spec: SpecFile, settings: Settings = None, plugin: PluginFiles = None) -> None:
    """Check a spec without running it.

    No images, weights or other runs are looked at: whether these fit is found
    when it is run, before anything is trained.
    """
    from kdzoo.spec.read import read_study
    from kdzoo.spec.tuning import read_tuning

    _add(plugin)
    checked = read_study(spec, settings or ())
    if _has_search(spec, settings):
        from kdzoo.tuning.search import check_search

        check_search(read_tuning(spec, settings or ()))
    count = "" if len(checked) == 1 else f"{len(checked)} runs, "
    epochs = sum(run.epochs for run in checked)
    print(f'{spec}: is a valid spec ("{checked[0].name}", {count}{epochs} epochs)')


def _has_search(spec: Path, settings: list[str] | None) -> bool:
    """Whether a spec has the chapter ``tune``."""
    from kdzoo.spec.read import read_document

    return "tune" in read_document(spec, settings or ())[0].data


@app.command()
def schema(plugin: PluginFiles = None) -> None:
    """Print the JSON Schema of a spec, with every installed plugin's params, for editors."""
    from kdzoo.extend.registry import registry
    from kdzoo.spec.schema import json_schema

    _add(plugin)
    print(json.dumps(json_schema(registry()), indent=2))


@app.command()
def init(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which spec; without it, all are listed.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write; NAME.yaml.")
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Write a spec to start from, such as digits."""
    from kdzoo.errors import RunError, SpecError, did_you_mean
    from kdzoo.extend.bases import DataSource
    from kdzoo.extend.registry import registry

    _add(plugin)
    sources = [registry().find(DataSource.kind, use) for use in registry().names(DataSource.kind)]
    starters = {key: text for source in sources for key, text in source.starters.items()}
    if name is None:
        print("\n".join(sorted(starters)))
        return
    if name not in starters:
        raise SpecError(f'there is no spec "{name}" to start from{did_you_mean(name, starters)}')
    file = output or Path(f"{name}.yaml")
    try:
        with open(file, "x", encoding="utf-8") as stream:
            stream.write(starters[name])
    except FileExistsError:
        raise RunError(f"{file}: exists already; choose another name with --output") from None
    except OSError as error:
        raise RunError(f"{file}: cannot be written: {error.strerror}") from error
    print(f"Wrote {file}. Now: kdzoo run {file}")


@plugins_app.callback()
def plugins(
    context: typer.Context,
    check: Annotated[bool, typer.Option("--check", help="Fail if a plugin is broken.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugin: PluginFiles = None,
) -> None:
    """List the installed plugins, what they add, and why one is broken."""
    if context.invoked_subcommand is not None:
        return
    from dataclasses import asdict

    from kdzoo.extend.registry import registry
    from kdzoo.report.table import plain_table

    _add(plugin)
    records = registry().records
    if as_json:
        print(json.dumps([asdict(record) for record in records], indent=2))
    else:
        names = ("plugin", "version", "distribution", "status", "adds")
        table = plain_table(*names, words=len(names))
        for column in table.columns[:-1]:
            column.no_wrap = True
        for record in records:
            adds = "; ".join(f"{kind} {', '.join(names)}" for kind, names in record.adds.items())
            table.add_row(record.name, record.version, record.distribution, record.status, adds)
        _console().print(table)
        for record in registry().broken:
            print(f"\n{record} is broken: {record.reason}")
        for record in records:
            for warning in record.warnings:
                print(f"\n{record} uses what will go: {warning}")
    if check and registry().broken:
        raise typer.Exit(1)


@plugins_app.command()
def show(
    name: Annotated[str, typer.Argument(help="A component's name, or its kind and name: loss.kd.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugin: PluginFiles = None,
) -> None:
    """Tell what a component is: its source, its params, how a spec uses it, where it lives."""
    from dataclasses import asdict

    from kdzoo.extend.bases import Loss, ModelSource
    from kdzoo.extend.describe import example, loss_defaults, model_layers, params_of, prose
    from kdzoo.extend.registry import registry

    _add(plugin)
    described: list[dict[str, Any]] = []
    for component in registry().named(name):
        owner = registry().owner(component)
        module = sys.modules[component.__module__]
        defaults = loss_defaults(component).replace("`", "") if issubclass(component, Loss) else ""
        layers = model_layers(component) if issubclass(component, ModelSource) else ""
        described.append(
            {
                "kind": component.kind,
                "name": component.name,
                "description": prose(component),
                "defaults": defaults,
                "layers": layers.replace("`", ""),
                "params": [asdict(param) for param in params_of(component)],
                "example": example(component),
                "plugin": owner.name,
                "distribution": owner.distribution,
                "version": owner.version,
                "module": component.__module__,
                "file": getattr(module, "__file__", None),
            }
        )
    if as_json:
        print(json.dumps(described, indent=2))
        return
    for number, what in enumerate(described):
        print("\n" * bool(number) + f"{what['kind']} {what['name']}\n\n{what['description']}")
        for said in filter(None, (what["defaults"], what["layers"])):
            print(f"\n{said}")
        print("\nParams:" if what["params"] else "\nIt has no params.")
        for param in what["params"]:
            required = param["default"] == "required"
            default = param["default"] and (
                "required" if required else f"default {param['default']}"
            )
            tuned = param["tuned"] and f"tuned from {param['tuned']}"
            about = "; ".join(filter(None, [param["type"], default, tuned]))
            print(f"  {param['key']} ({about})\n      {param['meaning']}")
        print(f"\nIn a spec:\n  {what['example']}")
        where = what["file"] or "typed into a program"
        print(f"\nFrom {what['distribution']} {what['version']}: {what['module']}, {where}")


@plugins_app.command()
def new(
    name: Annotated[str, typer.Argument(help="The package's name, and its component's: my-loss.")],
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="loss, adapter, policy, model, dataset or observer.")
    ],
) -> None:
    """Write a package with a component of your own, its tests and a spec that uses it."""
    from kdzoo.extend.scaffold import write_package

    folder = write_package(name, kind, Path())
    print(f"Wrote {folder}. Now: cd {folder}; python -m pip install -e '.[test]'; pytest")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugin: PluginFiles = None,
) -> None:
    """Classify the test images with a finished run's student."""
    from kdzoo.pipeline.student import evaluate_run
    from kdzoo.report.table import plain_table

    _add(plugin)
    score = evaluate_run(run)
    if as_json:
        print(score.model_dump_json(indent=2))
        return
    table = plain_table("class", "accuracy")
    for name, accuracy in score.classes.items():
        table.add_row(name, f"{100 * accuracy:.1f} %")
    table.add_row("all", f"{100 * score.accuracy:.2f} %")
    _console().print(table)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where the report on several runs goes; by default report."
        ),
    ] = None,
) -> None:
    """Write a finished run's page again; put several runs side by side."""
    from kdzoo.errors import RunError
    from kdzoo.report.page import write_run_page
    from kdzoo.report.study_page import write_study
    from kdzoo.training.directory import RunDirectory

    directories = [RunDirectory(run) for run in runs]
    if len(directories) == 1:
        if output is not None:
            raise RunError("--output is for the report on several runs; one run's is in the run")
        page = write_run_page(directories[0])
    else:
        place = output or Path("report")
        write_study(place, directories)
        page = RunDirectory(place).page
    print(f"Wrote {page}")


def _console() -> Console:
    """It fits tables into a terminal; elsewhere they are as wide as they are."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDE
    return Console(highlight=False, markup=False, soft_wrap=True, width=width)


def _show(table: Table, lines: Iterable[str]) -> None:
    console = _console()
    console.print()
    console.print(table)
    console.print()
    for line in lines:
        console.print(line)
    console.print()


def _show_run(done: Run) -> None:
    from kdzoo.report.summary import summary_lines, summary_table

    _show(summary_table(done.report), summary_lines(done.report))
    print(f"Run directory:  {done.directory}")
    print(f"Report:         {done.directory / 'report.html'}")


def _show_study(done: Study) -> None:
    from kdzoo.errors import RunError
    from kdzoo.report.study_page import study_lines, study_table

    _show(study_table(done.report), study_lines(done.report))
    print(f"Report:         {done.directory / 'report.html'}")
    if done.failures:
        reasons = "\n    ".join(str(failure) for failure in done.failures)
        some = "1 run failed, and is" if len(done.failures) == 1 else "several runs failed, and are"
        raise RunError(f"{some} in no table:\n    {reasons}")


def _show_tuned(done: Tuned) -> None:
    from kdzoo.pipeline.plan import Run
    from kdzoo.tuning.table import tuning_lines, tuning_table

    _show(tuning_table(done.study), tuning_lines(done.study, done.outcome))
    if isinstance(done.final, Run):
        _show_run(done.final)
    else:
        _show_study(done.final)
    print(f"Study:          {done.directory / 'report.html'}")
    print(f"Best trial:     {done.directory / 'best.yaml'} (as it was measured, before that)")


def main() -> None:
    """The ``kdzoo`` command: errors that we raise on purpose become one message and status 1."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("kdzoo").setLevel(logging.INFO)
    threading.excepthook = _thread_failed
    signal.signal(signal.SIGTERM, _terminated)
    with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):  # without a stderr
        faulthandler.enable()  # a crash in C code, a plugin's say, shows which line was at work
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments)
    except KdzooError as error:
        if "--debug" in sys.argv:
            raise
        print(f"kdzoo: {error}", file=sys.stderr)
        sys.exit(1)
    finally:  # all is said and done: an impatient one would see torch's clean-up fail
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _terminated(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _thread_failed(arguments: Any) -> None:
    """A writer's thread met a full disk: its owner reports that, in one message of its own."""
    if not isinstance(arguments.exc_value, OSError):
        threading.__excepthook__(arguments)
