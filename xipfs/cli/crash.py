"""`xipfs crash run|replay|report`: what a crash can leave of an image, tried out."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from xipfs.cli.progress import task_bar
from xipfs.crash.campaign import (
    CampaignProgress,
    Plan,
    read_report,
    replay_spec,
    run_campaign,
)
from xipfs.crash.spec import parse_spec
from xipfs.errors import InvalidArgumentError

__all__ = ["crash"]

crash = typer.Typer(
    no_args_is_help=True, help="Try out what a loss of power can leave of an image."
)

_EXIT_FAILED = 1


@crash.callback()
def _crash() -> None:
    """Try out what a loss of power can leave of an image."""


@crash.command(name="run")
def _run(
    seq: Annotated[
        list[int] | None,
        typer.Option(help="Play every row of so many operations; 1 or 2. May be given twice."),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Play a part of them, chosen by the seed.")
    ] = 1.0,
    fuzz: Annotated[int, typer.Option(min=0, help="Play so many random workloads.")] = 0,
    operations: Annotated[
        int, typer.Option(min=1, max=1000, help="Operations of a random workload.")
    ] = 20,
    moves: Annotated[
        bool, typer.Option("--moves", help="Move pages between RAM and NVRAM meanwhile.")
    ] = False,
    states: Annotated[
        int, typer.Option(min=2, help="Most states of one moment: beyond, a sample.")
    ] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of samples, shares and workloads.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, max=1024, help="Processes.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="The report, for programs.")] = False,
) -> int:
    """Play workloads, lose power at every moment, judge what is left: exit code 1 for a failure.

    Without --seq and --fuzz: --seq 1.
    """
    lengths = tuple(sorted(set(seq or ())))
    if not set(lengths) <= {1, 2}:
        raise InvalidArgumentError("--seq: 1 or 2; longer ones are for --fuzz")
    plan = Plan(
        seqs=lengths if lengths or fuzz else (1,),
        share=share,
        nr_fuzzed=fuzz,
        nr_operations=operations,
        moves_pages=moves,
        nr_states_max=states,
        seed=seed,
        nr_jobs=jobs,
    )
    with _progress() as progress:
        report = run_campaign(plan, progress)
    print(json.dumps(report.facts(), indent=1) if as_json else "\n".join(_lines(report.facts())))
    return _EXIT_FAILED if report.failures else 0


@crash.command(name="replay")
def _replay(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="From a report, in quotes.")],
    save: Annotated[
        Path | None, typer.Option(help="Write the image as the crash left it to this file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> int:
    """Make one crash state again and judge it: exit code 1 if it is not sound."""
    found = replay_spec(parse_spec(spec))
    if save is not None:
        save.write_bytes(found.image)
    if as_json:
        facts = {"where": found.where, "problems": list(found.problems), "lines": found.lines}
        print(json.dumps(facts, indent=1))
    else:
        print(f"power is lost {found.where}; {found.lines} lines that were in flight have changed")
        print("\n".join(found.problems) or "sound")
    return _EXIT_FAILED if found.problems else 0


@crash.command(name="report")
def _report(
    file: Annotated[Path, typer.Argument(help="What `run --json` wrote; - for stdin.")],
) -> None:
    """Show a report that was saved."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidArgumentError(f"{file}: {getattr(exc, 'strerror', exc)}") from None
    print("\n".join(_lines(read_report(text))))


def _lines(facts: dict[str, Any]) -> list[str]:
    tally = facts["tally"]
    lines = [
        f"{tally['nr_workloads']:,} workloads, {tally['nr_operations']:,} operations of theirs cut "
        f"at {tally['nr_cuts']:,} moments",
        f"{tally['nr_states']:,} crash states, {tally['nr_examined']:,} recovered to bytes that "
        f"were new; {tally['nr_pruned']:,} more were of bytes seen before",
        f"{tally['nr_cuts'] - tally['nr_sampled_cuts']:,} moments with all their states, "
        f"{tally['nr_sampled_cuts']:,} with a sample of at most {facts['plan']['nr_states_max']}",
        f"{facts['cpu_s']:.1f} s of CPU, {facts['states_per_cpu_s']:,} states a second of it; "
        f"{facts['elapsed_s']:.1f} s",
        f"seed {facts['plan']['seed']}; {len(facts['failures'])} failures",
    ]
    for failure in facts["failures"]:
        lines += ["", f"{failure['where']}:", *(f"    {text}" for text in failure["problems"])]
        lines.append(f"    xipfs crash replay '{failure['spec']}'")
    return lines


@contextmanager
def _progress() -> Iterator[Callable[[CampaignProgress], None] | None]:
    """Show on a terminal how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
    with task_bar(*columns) as update:
        yield update and (
            lambda now: update(
                description=f"{now.nr_states:,} states, {now.nr_failures} failures",
                completed=now.done,
                total=now.total,
            )
        )
