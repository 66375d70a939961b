"""Pretrain a RoBERTa: python train.py ffn=lookup (see README.md, or python train.py --help)."""

from lookupffn.cli.commands import train

if __name__ == "__main__":
    train()
