# SPDX-License-Identifier: Apache-2.0
"""`qos-plot`: draws samples or summaries. What is drawn is in `libqos.plotting`; this is the command."""

from __future__ import annotations

import os
import sys

import click

from libqos import cli

_ENDINGS = (".png", ".svg")


@cli.command("qos-plot")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("-o", "--output", metavar="FILE", help="Figure to write, .png or .svg by its ending; - is PNG on stdout.")
@click.option("--kind", type=click.Choice(["cdf", "box", "timeline"]), default="cdf", help="What to draw.")
@click.option("--metric", default="latency", metavar="NAME", help="Draw NAME_ns of samples, or summaries of NAME.")
@click.option("--by", metavar="KEY", help="One series for each value of this key, such as topic or size_bytes.")
@click.option("--label", "labels", multiple=True, metavar="TEXT", help="Name of a series, once per FILE.  [default:"
              " the file's name]")  # fmt: skip
@click.option("--title", metavar="TEXT", help="Title of the figure.")
@click.option("--log", is_flag=True, help="Logarithmic axis for the values.")
@click.option("--gnuplot", "prefix", metavar="PREFIX", help="Write PREFIX.dat and PREFIX.gp for gnuplot.")
@cli.common_options
def plot(
    files: tuple[str, ...],
    output: str | None,
    kind: str,
    metric: str,
    by: str | None,
    labels: tuple[str, ...],
    title: str | None,
    log: bool,
    prefix: str | None,
) -> None:
    """Draw samples or summaries: CDF, box, or time line.

    Reads records (JSON Lines) from each FILE, or from stdin (-). Each file is a series: its samples or, where it has
    none, its summaries (the last one for cdf and box). Large inputs are thinned without moving a quantile.

    A figure needs matplotlib: pip install "qos-continuum[plot]". Files for gnuplot need nothing.
    """
    if output is None and prefix is None:
        raise click.UsageError("nothing to write: give -o FILE.png, -o FILE.svg or --gnuplot PREFIX")
    if output is not None and output != "-" and not output.endswith(_ENDINGS):
        raise click.BadParameter(f"found {output!r}, accepted a name that ends in .png or .svg", param_hint="-o")
    if output == "-" and os.isatty(sys.stdout.fileno()):
        raise click.BadParameter("a PNG is no text for a terminal: send stdout to a file or a pipe", param_hint="-o")
    from libqos.plotting import figure, script, series

    if output is not None:
        figure.check_available()
    metric = metric.removesuffix("_ns")
    loaded = series.load(files or ("-",), metric, by=by, labels=labels)
    series.check(loaded, kind, log=log)
    if prefix is not None:
        script.write(loaded, kind, metric, prefix, title=title, log=log)
    if output is not None:
        figure.draw(loaded, kind, metric, output, title=title, log=log)


main = cli.entry(plot)

if __name__ == "__main__":
    main()
