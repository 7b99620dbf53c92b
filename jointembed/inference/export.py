"""A trained model as graphs for other runtimes: one file a branch, and a JSON beside it that says how to feed it."""

import copy
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.nn import functional

from jointembed import __version__
from jointembed.branches.text import GRU
from jointembed.data.forms import blank
from jointembed.errors import JointEmbedError, WeightsError
from jointembed.inference.files import aside_of, publish_json, sha256_of
from jointembed.inference.preprocessing import describe_pictures, describe_text
from jointembed.inference.traceable import Form, PictureGraph, TextGraph
from jointembed.model import JointEmbedding

FORMAT = 1
OUTPUT = "vector"  # not `embedding`: the tracer gives that name to the operator that looks words up
SUFFIX: dict[Form, str] = {"torch": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-4  # largest difference from torch that is let through; relative, where numbers are above 1
LOST = 1e-3  # share of a vector's length that centring leaves, below which float32 has no digits for TOLERANCE
MOST_INSIDE = 1_900_000_000  # bytes of weights inside an ONNX file, which protobuf limits to 2 GB

Inputs = dict[str, Tensor]
Run = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Exported:
    """One branch that was exported."""

    branch: str
    file: Path
    description: Path
    difference: float  # from torch, largest of all numbers compared


def export_model(
    source: Path | str, out: Path | str, *, form: Form = "torch", branch: str | None = None, normalize: bool = True
) -> list[Exported]:
    """Export every branch of a model, compare each with torch on random inputs, and describe it.

    Args:
        source: run, model folder or hub id.
        out: folder; files of the same name are replaced.
        form: `torch` writes a program of `torch.export` (.pt2), `onnx` an ONNX file, for which the extra is needed.
        branch: only this one.
        normalize: whether the graph scales its rows to length 1.

    Raises:
        WeightsError: no such branch, or views of one branch with different centres.
        JointEmbedError: a branch that cannot be exported, by name, or whose graph does not give torch's numbers.
    """
    if form == "onnx":
        _onnxruntime()
    model = JointEmbedding.from_pretrained(source)
    used = list(dict.fromkeys(model.views.values()))
    if branch is not None and branch not in used:
        raise WeightsError(f"no branch {branch!r} in this model; it has {', '.join(used)}")
    Path(out).mkdir(parents=True, exist_ok=True)
    return [_export(Subject(model, one, form, normalize), Path(out)) for one in (used if branch is None else [branch])]


def _export(subject: "Subject", out: Path) -> Exported:
    file = out / f"{subject.branch}{SUFFIX[subject.form]}"
    aside = aside_of(file)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        run = _traced(subject, aside / file.name)
        difference = _largest_difference(subject, run)
        if subject.is_text and subject.model.tokens is not None:
            subject.model.tokens.save(aside)
        files = sorted(path.name for path in aside.iterdir())
        for one in files:
            os.replace(aside / one, out / one)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    description = out / f"{file.name}.json"
    sums = {"sha256": {one: sha256_of(out / one) for one in files}}
    publish_json(description, subject.describe(file.name) | {"largest_difference_from_torch": difference} | sums)
    return Exported(subject.branch, file, description, difference)


# -- what is exported -----------------------------------------------------------------------------------------------


class Subject:
    """One branch of a model on its way into a graph."""

    def __init__(self, model: JointEmbedding, branch: str, form: Form, normalize: bool) -> None:
        """Find its views. Raises WeightsError where they have different centres."""
        self.model, self.branch, self.form, self.normalize = model, branch, form, normalize
        self.views = [view for view, name in model.views.items() if name == branch]
        self.view = self.views[0]
        self.encoder = model.branch(self.view).encoder
        self.is_text = model.reads_text(self.view)
        self.longest = 0 if model.tokens is None else model.tokens.max_length  # tokens of a text
        # torch.export fixes the length of recurrent networks to that of the example
        self.fixed_length = form == "torch" and isinstance(self.encoder, GRU)
        self.centre = model.get_buffer(f"centre_{self.view}")
        if any(not torch.equal(self.centre, model.get_buffer(f"centre_{view}")) for view in self.views):
            views = ", ".join(self.views)
            raise WeightsError(f"branch {branch!r}: its views {views} have different centres; a graph has one")

    def graph(self) -> PictureGraph:
        """The module to trace; it shares nothing with the model."""
        kind = TextGraph if self.is_text else PictureGraph
        branch = copy.deepcopy(self.model.branch(self.view)).eval()
        representation = self.model.embedding == "h"
        graph = kind(branch, self.centre, self.form, representation=representation, normalize=self.normalize)
        return graph.eval().requires_grad_(False)

    def inputs(self, batch: int, length: int) -> Inputs:
        """Random inputs; texts have `length` tokens at most, or all the graph takes where it is fixed."""
        if not self.is_text:
            pipeline = self.model.image
            assert pipeline is not None  # from_config saw to it
            one = blank(pipeline, self.view if self.view in pipeline.views else pipeline.views[0])
            if one.dtype == torch.uint8:
                return {"input": torch.randint(0, 256, (batch, *one.shape), dtype=torch.uint8)}
            return {"input": torch.randn(batch, *one.shape)}
        assert self.model.tokens is not None
        size = self.longest if self.fixed_length else min(length, self.longest)
        lengths = torch.randint(1, size + 1, (batch,))
        lengths[0] = size
        ids = torch.randint(0, self.model.tokens.vocabulary, (batch, size))
        return {"ids": ids.masked_fill(torch.arange(size) >= lengths[:, None], 0), "length": lengths}

    def dynamic_shapes(self) -> dict[str, Any]:
        """Which axes of the inputs may have any size."""
        if not self.is_text:
            return {"input": {0: Dim("batch")}}
        length = {} if self.fixed_length else {1: Dim("length", max=self.longest)}
        return {"ids": {0: Dim("batch"), **length}, "length": {0: Dim("batch")}}

    def vectors(self, inputs: Inputs) -> Tensor:
        """What the model itself gives, before it is scaled."""
        with torch.inference_mode():
            return self.model.vectors(self.view, inputs if self.is_text else inputs["input"])

    def describe(self, file: str) -> dict[str, Any]:
        """How to feed the graph and what comes out, as JSON values."""
        model = self.model
        inputs: list[dict[str, Any]] = []
        for name, one in self.inputs(2, 2).items():
            shape = ["batch", *one.shape[1:]]
            inputs.append({"name": name, "dtype": str(one.dtype).removeprefix("torch."), "shape": shape})
        if self.is_text and not self.fixed_length:
            inputs[0] |= {"shape": ["batch", "length"], "longest": self.longest}
        return {
            "format": FORMAT,
            "model": model.config.get("name"),
            "branch": self.branch,
            "views": self.views,
            "file": file,
            "inputs": inputs,
            "output": {
                "name": OUTPUT,
                "shape": ["batch", model.width(self.view)],
                "dtype": "float32",
                "embedding": model.embedding,
                "centred": bool(self.centre.any()),
                "normalized": self.normalize,
                "similarity": "inner product" if self.normalize else "cosine: divide each row by its length first",
            },
            "preprocessing": describe_text(model.tokens) if self.is_text else describe_pictures(model, self.view),
            "versions": {"jointembed": __version__, "torch": torch.__version__},
        }


# -- tracing --------------------------------------------------------------------------------------------------------


def _traced(subject: Subject, file: Path) -> Run:
    """Trace and write a graph; what runs it."""
    graph, example, shapes = subject.graph(), subject.inputs(2, 5), subject.dynamic_shapes()
    try:
        with _quiet(), torch.no_grad():
            if subject.form == "onnx":
                return _write_onnx(graph, example, shapes, file)
            program = torch.export.export(graph, (), kwargs=example, dynamic_shapes=shapes)
            torch.export.save(program, file)
            module = program.module()
            return lambda inputs: module(**inputs)
    except Exception as error:  # tracers raise anything
        encoder = type(subject.encoder).__name__
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
        raise JointEmbedError(
            f"branch {subject.branch!r}: {encoder} cannot be exported to {subject.form} ({reason[:300]})"
        ) from error


def _write_onnx(graph: PictureGraph, example: Inputs, shapes: dict[str, Any], file: Path) -> Run:
    weights = sum(one.numel() * one.element_size() for one in graph.state_dict().values())
    torch.onnx.export(
        graph,
        (),
        file,
        kwargs=example,
        input_names=list(example),
        output_names=[OUTPUT],
        dynamic_shapes=shapes,
        dynamo=True,
        external_data=weights > MOST_INSIDE,
        verbose=False,
    )
    session = _onnxruntime().InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run([OUTPUT], {k: v.numpy() for k, v in inputs.items()})[0])


def _onnxruntime() -> Any:
    try:
        import onnx  # noqa: F401  # what torch.onnx.export needs
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise JointEmbedError(f"ONNX needs {error.name}: pip install 'jointembed[onnx]'") from None
    return onnxruntime


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracers warn of what is as it should be; and the fused kernels of attention have no name that ONNX knows."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        torch.backends.mha.set_fastpath_enabled(fused)


def _largest_difference(subject: Subject, run: Run) -> float:
    """Largest difference between graph and model on inputs of other sizes. Raises JointEmbedError where it is large."""
    worst, lost = 0.0, False
    for batch, length in ((1, 2), (5, 9)):
        inputs = subject.inputs(batch, length)
        rows, found = subject.vectors(inputs), run(inputs).detach()
        expected = functional.normalize(rows, dim=1) if subject.normalize else rows
        lost |= float(rows.norm(dim=1).max()) < LOST * float((rows + subject.centre).norm(dim=1).max())
        if found.shape != expected.shape:
            raise JointEmbedError(f"branch {subject.branch!r}: the graph gives {tuple(found.shape)} numbers")
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max().clamp_min(1)))
    if not worst <= TOLERANCE:  # or not a number
        why = ": centring leaves little more than rounding of its vectors, it has collapsed" if lost else ""
        raise JointEmbedError(f"branch {subject.branch!r}: the graph differs from torch by {worst:.2g}{why}")
    return worst
