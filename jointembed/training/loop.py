"""The loop: every run of every objective goes through `fit`."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from jointembed import distributed
from jointembed.data.loader import batch_rows, slice_rows, to_device
from jointembed.data.loader_workers import worker_faults
from jointembed.data.samples import Batch
from jointembed.errors import Interrupted, JointEmbedError
from jointembed.layers import Embedding, GatheredBatchNorm1d, GatheredBatchNorm2d
from jointembed.model import JointEmbedding
from jointembed.objectives.objective import Embed
from jointembed.objectives.statistics import BatchError
from jointembed.optim.groups import set_lr
from jointembed.training import checkpoint as checkpoints
from jointembed.training.finite import Skips, problems
from jointembed.training.interrupt import Interrupts, signal_name
from jointembed.training.log import MetricsLog
from jointembed.training.memory import fitted
from jointembed.training.snapshot import random_state, set_random_state
from jointembed.training.stages import Stages

Validate = Callable[[JointEmbedding], Mapping[str, float]]


@worker_faults()
def fit(
    core: JointEmbedding,
    batches: Callable[[int], Any],
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    *,
    accelerator: Accelerator,
    run: Path,
    steps: int,
    per_epoch: int,
    identity: dict[str, Any],
    describe: Callable[[int], list[str]],
    resume: checkpoints.Checkpoint | None = None,
    validate: Validate | None = None,
    select: str = "rsum",
    publish: Callable[[JointEmbedding], None] | None = None,
    embed: Embed | None = None,
    clip: float | None = None,
    micro_batch: int | None = None,
    log_every: int = 10,
    health_every: int = 50,
    validate_every: int = 0,
    save_every: int = 0,
    keep: int = 2,
    skip_nonfinite: int = 0,
    stages: Stages | None = None,
) -> dict[str, Any]:
    """Train to step `steps` and return the final state: step, best validation value and its step.

    Args:
        core: the model; DDP wraps it here.
        batches: start step -> iterable of batches from there on.
        optimizer: its groups carry `lr_scale`.
        schedule: step -> learning rate.
        accelerator: device, precision, trackers.
        run: folder of the run.
        steps: total, an earlier part of a resumed run included.
        per_epoch: steps an epoch.
        identity: what a resume must find unchanged (recipe, data, world size).
        describe: step -> names of this rank's samples, for messages.
        resume: checkpoint to go on from.
        validate: model -> numbers, of which `select` picks the best model; every rank calls it.
        select: name of that number, higher is better.
        publish: writes the model folder; called by the main rank when the best value rises, or at the end.
        embed: embeds this rank's part of the training set, for objectives that cluster it before an epoch.
        clip: largest norm of the gradient of the global batch.
        micro_batch: samples a rank holds activations of at a time; the gradient is the whole batch's all the same.
        log_every: steps between lines of the log; here and below 0 means only at the end.
        health_every: steps between looks at the embeddings.
        validate_every: steps between validations.
        save_every: steps between checkpoints.
        keep: checkpoints kept.
        skip_nonfinite: steps that may be left out because a loss or gradient is not finite.
        stages: clock of the stages of a step, for a profile.

    Raises:
        NonFiniteError: a loss or gradient that is not finite, before the step, on all ranks, with the sample names.
        Interrupted: SIGTERM or Ctrl-C on any rank, after the step and a checkpoint.
        MemoryLimitError: a step that does not fit in memory, with the keys to set.
        DataError: a sample that cannot be read, or whose loader worker ended or hangs.
    """
    state: dict[str, Any] = {"step": 0, "best": None, "best_step": None, **identity}
    if resume is not None:
        checkpoints.restore(resume, core, optimizer)
        state = resume.state | identity
    first = state["step"] + 1
    micro_batch = min((size for size in (micro_batch, state.get("micro_batch")) if size), default=None)
    skips = Skips(skip_nonfinite, core, describe)
    model = core if distributed.sharded_units(core) else accelerator.prepare_model(core)
    parameters = [p for p in core.parameters() if p.requires_grad]
    core.train()
    if stages is not None:
        core.stage = stages
    wait = batches if stages is None else lambda start: stages.waiting(batches(start))
    log = MetricsLog(run, accelerator, first_step=state["step"], steps=steps, per_epoch=per_epoch)
    with log, Interrupts() as interrupts, attention(accelerator.device):
        for step, cpu_batch in enumerate(wait(state["step"]), first):
            batch = to_device(cpu_batch, accelerator.device)
            set_lr(optimizer, schedule(step - 1))
            core.watch = due(step, health_every, steps)
            if embed is not None and (step - 1) % per_epoch == 0:
                with distributed.unsharded(core, core.objective):
                    core.start_epoch((step - 1) // per_epoch, embed)
            skips.watch()
            core.before_step(batch)
            with batch_faults(step, batch):
                terms, used = fitted(
                    partial(forward_backward, model, core, batch, accelerator),
                    core, rows=batch_rows(batch), micro_batch=micro_batch, first=step == first, say=log.say,
                )  # fmt: skip
            if used != micro_batch:
                state["micro_batch"] = micro_batch = used
            norm = gradient_norm(parameters, clip)
            bad, stop = distributed.largest([len(found := problems(terms, norm)), interrupts.number])
            if bad:
                skips.skip(step, found, batch, state, log)
            else:
                with core.stage("optimizer"):
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                core.end_step(step / steps)
            state["step"] = step
            log.count(batch_rows(batch) * distributed.world())
            if due(step, log_every, steps) and not bad:
                log.training(step, terms, lr=schedule(step - 1), gradient_norm=norm)
            if core.watch and not bad:
                log.health(step, terms, core.remedies)
            if validate is not None and due(step, validate_every, steps):
                with distributed.unsharded(core):  # ranks may embed different numbers of batches
                    values = log.validation(step, core, validate)
                state |= keep_best(core, values, select, publish, state)
            if stop or due(step, save_every, steps):
                checkpoints.save(run / "checkpoints", core, optimizer, state, keep=keep)
            if stop:
                kept = run / "checkpoints" / f"step-{step}"
                raise Interrupted(f"{signal_name(stop)} after step {step}; saved {kept}, go on with --resume", stop)
        if state["best"] is None and publish is not None:  # nothing was validated, or no number was finite
            publish(core)
    return state


@contextmanager
def batch_faults(step: int, batch: Batch) -> Iterator[None]:
    """Say at which step a batch could not be used, batch norm's refusal of a single value included."""
    try:
        yield
    except ValueError as error:
        if not isinstance(error, BatchError) and "more than 1 value per channel" not in str(error):
            raise
        remedy = "; raise loader.batch" if batch_rows(batch) < 2 else ""
        raise BatchError(f"step {step}: {error}{remedy}") from None


def attention(device: torch.device) -> AbstractContextManager[None]:
    """As plain products on a CPU, where the backward pass of torch's fused kernel takes several times as long."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def due(step: int, every: int, last: int) -> bool:
    """Whether something done every so many steps, and at the last one, is done now; 0 means only at the last."""
    return step == last or (every > 0 and step % every == 0)


def forward_backward(
    model: nn.Module, core: JointEmbedding, batch: Batch, accelerator: Accelerator, micro_batch: int | None
) -> dict[str, Tensor]:
    """Gradients of the global batch in `.grad`, and the terms; in one pass or in exact micro-batches."""
    rows = batch_rows(batch)
    if micro_batch is None or not distributed.any_rank(rows > micro_batch):
        with accelerator.autocast():  # already so inside a model that Accelerate has prepared
            terms = model(batch)
        with core.stage("backward"):
            accelerator.backward(terms["loss"])
        return {name: value.detach() for name, value in terms.items()}
    parts = [slice_rows(batch, start, start + micro_batch) for start in range(0, rows, micro_batch)]
    if _meets_others(core) and not distributed.all_agree(len(parts)):
        raise JointEmbedError(
            f"training.micro_batch: this rank's {rows} rows make {len(parts)} micro-batches, another's not as many; "
            "shards (FSDP2), batch norm over all ranks and shuffled rows need every rank in each: choose loader.batch "
            "and loader.drop_last so that the ranks' parts are equal"
        )
    buffers = {name: buffer.clone() for name, buffer in _branch_buffers(core)}
    randoms, pieces, targets = [], [], []
    with torch.no_grad(), accelerator.autocast(), core.stage("forward"):
        for part in parts:
            randoms.append(random_state())
            pieces.append(core.embed(part))
            targets.append(core.embed_target(part))
    after = random_state()
    with torch.no_grad():  # running statistics move once a step: in the second pass
        for name, buffer in _branch_buffers(core):
            buffer.copy_(buffers[name])
    online = {view: _joined([piece[view] for piece in pieces], leaf=True) for view in pieces[0]}
    target = None
    if targets[0] is not None:
        target = {view: _joined([piece[view] for piece in targets if piece]) for view in targets[0]}
    with core.stage("loss"):
        with accelerator.autocast():
            terms = core.terms(online, batch, target)
        terms["loss"].backward()
    for number, (part, state) in enumerate(zip(parts, randoms, strict=True)):
        set_random_state(state)
        with accelerator.autocast(), core.stage("forward"):
            piece = core.embed(part)
        with core.stage("backward"):
            _backward_piece(piece, online, number * micro_batch)
    set_random_state(after)
    distributed.average_gradients(core.parameters())
    return {name: value.detach() for name, value in terms.items()}


def _embedders(core: JointEmbedding) -> list[nn.Module]:
    """The branches, and their targets if there are any."""
    return [core.branches, *([] if core.targets is None else [core.targets])]


def _branch_buffers(core: JointEmbedding) -> list[tuple[str, Tensor]]:
    """Buffers that a forward pass of the branches may move; those of objective and probe move in their own call."""
    parts = enumerate(_embedders(core))
    return [(f"{number}.{name}", one) for number, part in parts for name, one in part.named_buffers()]


def _meets_others(core: JointEmbedding) -> bool:
    """Whether a forward pass of branches or targets waits for the other ranks."""
    if distributed.world() == 1:
        return False
    if distributed.sharded_units(core) or (core.objective is not None and "shuffle" in core.objective.needs):
        return True
    norms = (GatheredBatchNorm1d, GatheredBatchNorm2d, nn.SyncBatchNorm)
    modules = [module for part in _embedders(core) for module in part.modules()]
    return any(isinstance(module, norms) and module.training for module in modules)


def _joined(pieces: list[Embedding], *, leaf: bool = False) -> Embedding:
    """The whole batch's embeddings, where asked for as leaves that collect their gradient."""

    def whole(parts: list[Any]) -> Any:
        return None if parts[0] is None else torch.cat(parts).requires_grad_(leaf)

    levels = [whole(list(parts)) for parts in zip(*(piece.levels or () for piece in pieces), strict=True)]
    return Embedding(
        whole([piece.h for piece in pieces]),
        whole([piece.z for piece in pieces]),
        levels[-1] if levels else None,
        tuple(levels) or None,
    )


def _backward_piece(piece: dict[str, Embedding], online: dict[str, Embedding], start: int) -> None:
    tensors, gradients = [], []
    for view, embedding in piece.items():
        whole = online[view]
        pairs = [(embedding.h, whole.h), (embedding.z, whole.z)]
        pairs += zip(embedding.levels or (), whole.levels or (), strict=True)
        for own, joined in pairs:
            if joined.grad is not None and own.requires_grad:
                tensors.append(own)
                gradients.append(joined.grad[start : start + len(own)])
    if tensors:
        torch.autograd.backward(tensors, gradients)


def gradient_norm(parameters: list[nn.Parameter], clip: float | None) -> float:
    """Norm of all gradients, which are scaled down to `clip` where it is larger. A parameter without one is an error.

    Raises:
        JointEmbedError: DDP would keep silent about a parameter that nothing trains.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if len(gradients) < len(parameters):
        raise JointEmbedError(
            f"{len(parameters) - len(gradients)} trainable parameter tensors took no part in the loss: freeze the "
            "encoder (train: none) or take the unused branch out of the recipe"
        )
    norm = nn.utils.get_total_norm(gradients)
    if clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return float(norm)


def keep_best(
    core: JointEmbedding,
    values: Mapping[str, float],
    select: str,
    publish: Callable[[JointEmbedding], None] | None,
    state: dict[str, Any],
) -> dict[str, Any]:
    """Publish the model where its selected number is the highest so far; returns what changes in the state.

    A number that is not finite is never the best; one in the state, of an older version, gives way to any other.

    Raises:
        JointEmbedError: there is no number of that name.
    """
    if select not in values:
        raise JointEmbedError(f"evaluation.select: no number {select!r}; there are {', '.join(values)}")
    value, best = values[select], state["best"]
    if not math.isfinite(value) or (best is not None and math.isfinite(best) and value <= best):
        return {}
    if publish is not None:
        publish(core)
    return {"best": value, "best_step": state["step"]}
