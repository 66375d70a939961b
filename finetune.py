"""Fine-tune a model on a labelled task: python finetune.py checkpoint=outputs/... task=sst2 (see README.md)."""

from lookupffn.cli.commands import finetune

if __name__ == "__main__":
    finetune()
