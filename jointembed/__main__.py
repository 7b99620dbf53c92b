"""`python -m jointembed`, also under `accelerate launch -m` and `python -m torch.distributed.run -m`."""

from jointembed.cli import main

if __name__ == "__main__":
    main()
