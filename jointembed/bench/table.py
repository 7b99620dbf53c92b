"""The table of speed targets in the documentation, from the JSON files that the commands wrote."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Found = Mapping[str, Any]
Line = tuple[str, float, str, str]  # what, measured ratio, aim, where the gain comes from
HEAD = "| what | command | measured | aim | where it comes from |\n|---|---|---|---|---|"
GRAM = "the n x n Gram matrix in place of d x d, backward written out"
LOSS_AIMS = {(64, 8192): 100, (256, 8192): 45, (1024, 8192): 9, (2048, 8192): 5, (256, 2048): 8}


def speed_table(folder: Path) -> str:
    """Markdown: the targets beside what was measured, and the machine of each file.

    Args:
        folder: of `loss.json`, `loss_grid.json`, ...; a file that is not there gives a line that says so.
    """
    lines, machines = [HEAD], []
    for name, read in FILES.items():
        path = folder / f"{name}.json"
        if not path.is_file():
            lines.append(f"| `{name}.json` | | not measured yet | | |")
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        command = found["machine"]["command"].split(" --")[0]
        for what, ratio, aim, gain in read(found):
            lines.append(f"| {what} | `{command}` | {ratio:.3g} | {aim} | {gain} |")
        machines.append(_machine(name, found["machine"]))
    return "\n".join([*lines, "", *machines])


def _machine(name: str, machine: Found) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    shared = f"load {machine['load']:.0f}" + (": a shared machine" if machine["load"] > machine["cores"] / 2 else "")
    return (
        f"- `{name}.json`: {machine['date'][:10]}, {machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {shared}; {versions}; `{machine['command']}`"
    )


def _loss(found: Found) -> Iterator[Line]:
    ours = {(row["n"], row["d"]): row for row in found["rows"] if row["loss"] == "jointembed"}
    for row in found["rows"]:
        n, d = row["n"], row["d"]
        what = f"{row['objective']} loss, n {n}, d {d}, time of {row['loss']} over ours"
        if row["loss"] == "authors":
            aim = LOSS_AIMS.get((n, d)) if row["objective"] == "vicreg" else None
            yield what, row["cpu_ratio"], "" if aim is None else f"{aim}", GRAM
            if (n, d) == (256, 8192):
                aimed = "20" if row["objective"] == "vicreg" else ""
                yield what.replace("time", "memory"), row["peak_mb"] / ours[n, d]["peak_mb"], aimed, GRAM
        elif row["loss"] == "lightly":
            known = row["objective"] in ("vicreg", "barlow_twins")
            yield what, row["cpu_ratio"], "1", GRAM if known else "one product for all scores; scaling vectors; batches"


def _grid(found: Found) -> Iterator[Line]:
    rows = [row for row in found["rows"] if row["loss"] == "authors"]
    worst = min(rows, key=lambda row: row["cpu_ratio"])
    sizes = f"n {min(row['n'] for row in rows)}-{max(row['n'] for row in rows)}"
    sizes += f" x d {min(row['d'] for row in rows)}-{max(row['d'] for row in rows)}"
    yield (
        f"vicreg loss over {sizes}: the smallest ratio to the authors', at n {worst['n']}, d {worst['d']}",
        worst["cpu_ratio"], "0.95", "the form switches where it was measured to pay",
    )  # fmt: skip


def _share(found: Found) -> Iterator[Line]:
    one = found["share"]
    for way in ("scaled", "line"):
        what = f"loss in the step at n {one['n']}, percent, {one['model']} at {one['batch']} ({way})"
        yield what, one[f"percent_{way}"], "at most 2", GRAM


def _sides(found: Found, aim: str, gain: str) -> Iterator[Line]:
    for kind, one in found.items():
        if kind != "machine":
            for name, side in one["sides"].items():
                if name != "jointembed":
                    yield f"{kind}, time of {name} over ours", side["cpu_ratio"], aim, gain


def _train(found: Found) -> Iterator[Line]:
    gain = "bf16, channels last, one decode for both views, fused optimizer; GRU in length buckets; the loss"
    return (("training step of " + line[0], *line[1:]) for line in _sides(found, "2", gain))


def _embed(found: Found) -> Iterator[Line]:
    gain = "sorted by length, padded by batch; views in bytes, channels last"
    return (("encode " + line[0], *line[1:]) for line in _sides(found, "1", gain))


def _curves(found: Found) -> Iterator[Line]:
    what = f"loss in bf16 and float32, {found['steps']} steps: largest difference of the smoothed curves, percent"
    yield what, 100 * found["largest_difference"], "", "statistics of the loss stay in float32"


def _retrieval(found: Found) -> Iterator[Line]:
    tiles = "both directions from one product in bfloat16; float64 within its error of the best positive"
    yield "retrieval ranks, times the bare product", found["times_product"], "at most 2", tiles
    yield "retrieval ranks, MB above the inputs", found["above_inputs_mb"], "at most 300", tiles
    yield "time of CLIP-benchmark's formula over ours", found["clip_benchmark_over_ours"], "3", tiles
    yield "time of a loop over queries over ours", found["loop_over_ours"], "25", tiles


def _growth(found: Found) -> Iterator[Line]:
    for one in found["series"]:
        for key, value in one["exponents"].items():
            if value is not None:
                what = f"{one['what']}: exponent of {'time' if key == 'cpu_seconds' else 'memory'} in {one['grows']}"
                yield what, value, "", ""


FILES: dict[str, Callable[[Found], Iterator[Line]]] = {
    "loss": _loss, "loss_objectives": _loss, "loss_grid": _grid, "loss_share": _share, "train_image": _train,
    "train_text": _train, "curves": _curves, "embed": _embed, "retrieval": _retrieval, "growth": _growth,
}  # fmt: skip
