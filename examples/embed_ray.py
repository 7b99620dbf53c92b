"""`jointembed embed` on a Ray cluster: each actor holds the model and finishes shards, one after the other.

    pip install 'jointembed[ray]'
    python examples/embed_ray.py RUN DATA OUT --actors 4

Run, data and folder must be at the same place on every machine. The folder is the same as that of `jointembed embed`,
to the row, and as safe: started again after a crash, only shards without a mark are made; workers started otherwise
may help at the same time.
"""

import argparse
from pathlib import Path
from typing import Any

import ray.data

from jointembed.inference.ranks import device_of
from jointembed.inference.worker import Settings, embed_worker


class Finisher:
    """An actor: the model loaded once, and one shard at a time."""

    def __init__(self, run: str, data: str, out: str, options: dict[str, Any], shard_size: int) -> None:
        """Load the model and join the folder."""
        settings = Settings(device=device_of({}), **options)
        self.worker = embed_worker(run, data, Path(out), settings, shard_size=shard_size)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Finish the shard of this number."""
        mark = self.worker.finish(int(row["shard"]))
        return {"shard": mark["shard"], "rows": mark["rows"]}


def embed_with_ray(
    run: str, data: str, out: str, *, actors: int = 2, gpus: float = 0, shard_size: int = 10_000, **options: Any
) -> int:
    """Finish all shards that have no mark; `options` are those of `Settings`. Returns the number of rows made."""
    worker = embed_worker(run, data, Path(out), Settings(**options), shard_size=shard_size)
    todo = worker.todo(0, 1)
    made = 0
    if todo:
        shards = ray.data.from_items([{"shard": number} for number in todo], override_num_blocks=len(todo))
        done = shards.map(
            Finisher,
            fn_constructor_args=(run, data, out, options, shard_size),
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(todo))),
            num_gpus=gpus,
        )
        made = sum(row["rows"] for row in done.iter_rows())
    worker.list_skipped()
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, text in (("run", "run folder, model folder or hub id"), ("data", "as `jointembed embed` takes it")):
        parser.add_argument(name, help=text)
    parser.add_argument("out", help="folder of embeddings")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of each actor, parts of one are allowed")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--max-bad", type=int, default=0, help="bad inputs a shard may skip")
    parser.add_argument("--shard-size", type=int, default=10_000)
    given = vars(parser.parse_args())
    print(f"{embed_with_ray(given.pop('run'), given.pop('data'), given.pop('out'), **given)} rows")
