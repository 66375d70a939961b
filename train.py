"""Pretrain a RoBERTa: python train.py ffn=lookup (see README.md, or python train.py --help)."""

from omegaconf import DictConfig

from lookupffn.cli.launch import run_main, sweep_member


def main(cfg: DictConfig) -> tuple[float, float] | None:
    """One run; returns what a sweep may minimise: validation perplexity and feed-forward FLOPs a token."""
    # imported here so that a mistyped command is answered without waiting for torch
    from lookupffn.objectives import MaskedLanguageModelling
    from lookupffn.training import train

    summary = train(cfg, MaskedLanguageModelling, sweep_member=sweep_member())
    return summary and (summary["validation_perplexity"], summary["ffn_flops_per_token"])


if __name__ == "__main__":
    run_main("train", main)
