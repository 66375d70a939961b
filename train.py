"""Pretrain a RoBERTa: python train.py ffn=lookup (see README.md, or python train.py --help)."""

from omegaconf import DictConfig

from lookupffn.launch import run_main, sweep_member


def main(cfg: DictConfig) -> None:
    """One run."""
    # imported here so that a mistyped command is answered without waiting for torch
    from lookupffn.training import train

    train(cfg, sweep_member=sweep_member())


if __name__ == "__main__":
    run_main("train", main)
