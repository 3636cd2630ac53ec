# SPDX-License-Identifier: Apache-2.0
"""`qos-plot`: draws samples or summaries. What is drawn is in `libqos.plotting`; this is the command."""

from __future__ import annotations

import os
import sys

import click

from libqos import cli

_ENDINGS = (".png", ".svg")


@cli.command("qos-plot")
@click.argument("files", nargs=-1, metavar="[FILE]...", shell_complete=cli.complete_file)
@click.option("-o", "--output", metavar="FILE", help="Figure to write; - is stdout.",
              shell_complete=cli.complete_file)  # fmt: skip
@click.option("--format", "image", type=click.Choice(["png", "svg"]), show_default="by the file's ending, else png",
              help="Format of the figure, also of gnuplot's.")  # fmt: skip
@click.option("--kind", type=click.Choice(["cdf", "box", "timeline", "stack"]), default="cdf", help="What to draw.")
@click.option("--metric", metavar="NAME", show_default="latency; for stack rtt",
              help="Draw NAME_ns of samples, or summaries or breakdowns of NAME.")  # fmt: skip
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
    image: str | None,
    kind: str,
    metric: str | None,
    by: str | None,
    labels: tuple[str, ...],
    title: str | None,
    log: bool,
    prefix: str | None,
) -> None:
    """Draw samples or summaries: CDF, box, or time line; or the shares of a whole, stacked.

    Reads records (JSON Lines) from each FILE, or from stdin (-). Each file is a series: its samples or, where it has
    none, its summaries (the last one for cdf and box). Large inputs are thinned without moving a quantile. A stack is
    made of the last breakdown record of each series (selene perf pingpong --breakdown).

    A figure needs matplotlib: pip install "qos-continuum[plot]". Files for gnuplot need nothing.
    """
    if output is None and prefix is None:
        raise click.UsageError("nothing to write: give -o FILE.png, -o FILE.svg or --gnuplot PREFIX")
    if image is None and output is not None and output != "-" and not output.endswith(_ENDINGS):
        found = f"found {output!r}, accepted a name that ends in .png or .svg, or --format"
        raise click.BadParameter(found, param_hint="-o")
    image = image or ("svg" if output is not None and output.endswith(".svg") else "png")
    if output == "-" and image == "png" and os.isatty(sys.stdout.fileno()):
        raise click.BadParameter("a PNG is no text for a terminal: send stdout to a file or a pipe", param_hint="-o")
    from libqos.plotting import figure, script, series

    if output is not None:
        figure.check_available()
    metric = (metric or ("rtt" if kind == "stack" else "latency")).removesuffix("_ns")
    loaded = series.load(files or ("-",), metric, by=by, labels=labels, stack=kind == "stack")
    series.check(loaded, kind, log=log)
    if prefix is not None:
        script.write(loaded, kind, metric, prefix, image, title=title, log=log)
    if output is not None:
        figure.draw(loaded, kind, metric, output, image, title=title, log=log)


main = cli.entry(plot)

if __name__ == "__main__":
    main()
