"""Score a run or a model folder: python evaluate.py checkpoint=outputs/... (see README.md)."""

from omegaconf import DictConfig

from lookupffn.cli.launch import run_main


def main(cfg: DictConfig) -> None:
    """One evaluation."""
    # imported here so that a mistyped command is answered without waiting for torch
    from lookupffn.evaluation.score import score

    score(cfg)


if __name__ == "__main__":
    run_main("evaluate", main)
