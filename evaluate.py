"""Score a run or a model folder: python evaluate.py checkpoint=outputs/... (see README.md)."""

from lookupffn.cli.commands import evaluate

if __name__ == "__main__":
    evaluate()
