"""What is shown of a run: the self-contained report, its curves and gallery, and the paper's tables beside ours."""
