"""Rows of tables and sentences for the results of benchmarks of training, evaluation, data and architectures."""

from collections.abc import Mapping, Sequence
from typing import Any

from robustcli.measuring.formats import format_megabytes, format_ratio
from robustcli.measuring.timing import AGAIN, ALONE

Rows = list[tuple[str, ...]]


# Images of CIFAR-10's training set.
_EPOCH = 50_000


def training_rows(results: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the table of `robust bench train`: one row per update and implementation."""
    is_gpu = any(head["settings"].get("clock") == "wall" for head in results)
    epoch = ("s per 50,000 images",) if is_gpu else ()
    rows: Rows = [("network", "batch", "update", "by", "passes", "images/s", *epoch, "peak MB", "time over the limit's",
                   "our speed is: median (min-max)", "ours is")]  # fmt: skip
    for head in results:
        settings = head["settings"]
        for name, found in head["defenses"].items():
            method = name if settings["weights"] == "none" else f"{name} with {settings['weights']}"
            of = {row["name"]: row for row in found["rows"]}
            ours = found["rows"][0]
            for row in found["rows"]:
                # These two appear in our row.
                if row["name"] in (AGAIN, ALONE):
                    continue
                speed = row["images_per_second"]
                # Our row shows the run-to-run variation and the verdict on the limit.
                compared = f"again {format_ratio(of[AGAIN]['ratio'])}" if row is ours else format_ratio(row["ratio"])
                verdict = f"compared with the limit: {of[ALONE]['verdict']}" if row is ours else row["verdict"]
                rows.append(
                    (
                        _network(settings),
                        str(settings["batch_size"]),
                        method,
                        row["name"],
                        format_passes(row.get("passes", found["passes"] if row is ours else {})),
                        f"{speed:.1f}",
                        *([f"{_EPOCH / speed:.1f}"] if is_gpu else []),
                        format_megabytes(row),
                        format_ratio(row.get("over_limit")),
                        compared,
                        verdict,
                    )
                )
    return rows


def format_passes(passes: Mapping[str, float]) -> str:
    """Return forward + input-gradient + weight-gradient passes as text."""
    return " + ".join(f"{count:g}" for count in passes.values())


def _network(settings: Mapping[str, Any]) -> str:
    architecture = settings["architecture"]
    width = f" width {architecture['width']}" if "width" in architecture else ""
    layout = ", channels_last" if settings["channels_last"] else ""
    compiled = ", compiled" if settings["compile"] else ""
    return f"{architecture['name']}{width}, {settings['precision']}{layout}{compiled}"


def evaluation_rows(results: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the table of `robust bench eval`; passes are forward + gradient passes per image."""
    rows: Rows = [("network", "threat", "images", "evaluation", "ms per image", "peak MB", "time over the limit's",
                   "our speed is: median (min-max)", "ours is", "robust", "passes")]  # fmt: skip
    for result in results:
        rows += [
            (
                result["subject"],
                result["threat"],
                str(result["images"]),
                f"{result['attack']}: {row['name']}",
                f"{1000 * row['seconds']['median'] / result['images']:.2f}",
                format_megabytes(row),
                format_ratio(row.get("over_limit")),
                format_ratio(row["ratio"]),
                row["verdict"] or "",
                "" if row["robust"] is None else str(row["robust"]),
                _gradients(row["passes"]),
            )
            for row in result["rows"]
        ]
    return rows


def _gradients(passes: Mapping[str, Any]) -> str:
    to_weights = passes.get("weight_gradients")
    too = f" ({to_weights:.1f} to the weights too)" if to_weights else ""
    return f"{passes['forwards']:.1f} + {passes['gradients']:.1f}{too}"


def data_rows(results: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the table of `robust bench data`."""
    rows: Rows = [("batch", "pipeline", "us per image", "share of a step: median (min-max)", "of the step",
                   "our speed is: median (min-max)", "ours is")]  # fmt: skip
    for result in results:
        for row in result["rows"]:
            share = row["share_of_step"]
            rows.append(
                (
                    str(result["batch_size"]),
                    row["name"],
                    f"{1e6 * row['seconds_per_image']['median']:.1f}",
                    f"{100 * share['median']:.2f} % ({100 * share['low']:.2f}-{100 * share['high']:.2f})",
                    result["step"]["name"],
                    format_ratio(row["ratio"]),
                    row["verdict"] or "",
                )
            )
    return rows


def architecture_label(name: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a network with the settings that differ from its defaults."""
    named = (
        f"{key} {value['name'] if isinstance(value, Mapping) else value}" for key, value in sorted(settings.items())
    )
    return f"{name} ({', '.join(named)})" if settings else name


def architecture_rows(results: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the table of `robust bench architectures`, the slowest first."""
    rows: Rows = [("architecture", "10^6 mult.-acc.", "forward ms", "with gradient ms", "G mult.-acc./s",
                   "relative to resnet18, forward", "with gradient", "")]  # fmt: skip
    for result in results:
        for row in sorted(result["rows"], key=lambda row: row["ratio"]["gradient"]["median"]):
            rows.append(
                (
                    architecture_label(row["name"], row["settings"]),
                    f"{row['macs'] / 1e6:,.1f}",
                    *(f"{1000 * row['seconds_per_image'][kind]['median']:.2f}" for kind in ("forward", "gradient")),
                    f"{row['gmacs_per_second']['gradient']:.1f}",
                    format_ratio(row["ratio"]["forward"]),
                    format_ratio(row["ratio"]["gradient"]),
                    "slow" if row["is_slow"] else "",
                )
            )
    return rows


def describe_architectures(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence about slow architectures."""
    slow = [
        architecture_label(row["name"], row["settings"])
        for result in results
        for row in result["rows"]
        if row["is_slow"]
    ]
    share = f"a third of the multiply-accumulates per second of {results[0]['yardstick']}, in every round"
    return f"less than {share}: {', '.join(slow)}" if slow else f"no architecture has less than {share}"


def scaling_rows(results: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the table of `robust bench scaling`."""
    rows: Rows = [("network", "over", "at", "ms per update: median (min-max)", "deviation from the line", "")]
    for result in results:
        for axis, found in result["axes"].items():
            for point in found["points"]:
                seconds = point["seconds"]
                rows.append(
                    (
                        result["architecture"],
                        axis,
                        str(point["value"]),
                        f"{1000 * seconds['median']:.1f} ({1000 * seconds['low']:.1f}-{1000 * seconds['high']:.1f})",
                        f"{100 * point['apart']:+.0f} %",
                        "off the line" if point["is_off"] else "",
                    )
                )
    return rows


def describe_scaling(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence for each axis: the line, and points that deviate from it."""
    sentences = []
    units = {"batch": "image", "steps": "step", "width": "10^6 multiply-accumulates"}
    for result in results:
        for axis, found in result["axes"].items():
            off = [str(point["value"]) for point in found["points"] if point["is_off"]]
            where = f"deviations at {', '.join(off)}" if off else "no deviations"
            line = (
                f"{1000 * found['start']:.1f} ms + {1000 * found['slope']:.2f} ms per {units[axis]}"
                if axis in units
                else f"{1000 * found['start']:.1f} ms with one process"
            )
            sentences.append(f"{axis}: {line}, {where}")
    return "\n".join(sentences)
