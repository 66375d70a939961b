"""Fine-tune a model on a labelled task: python finetune.py checkpoint=outputs/... task=sst2 (see README.md)."""

from omegaconf import DictConfig

from lookupffn.cli.launch import run_main, sweep_member


def main(cfg: DictConfig) -> float | None:
    """One run, or the nine of ``task=glue``; returns the validation score, which a sweep may maximise."""
    # imported here so that a mistyped command is answered without waiting for torch
    from lookupffn.training.finetuning import finetune

    return finetune(cfg, sweep_member=sweep_member())


if __name__ == "__main__":
    run_main("finetune", main)
