"""What word counts alone are worth on a task: TF-IDF of words and pairs of words, and a linear model.

    python scripts/tfidf_baseline.py sst2 --data path/to/SST-2 --output tfidf.json

The strength of the regularisation is chosen on a tenth of the training rows; the validation split is scored once.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from lookupffn.config.data import GLUE_TASKS
from lookupffn.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from sklearn.pipeline import Pipeline

    from lookupffn.data.labelled import Examples, LabelledData


STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
TUNING_FRACTION = 0.1

logger = logging.getLogger(__name__)


def pipeline(columns: int, classes: bool, strength: float) -> Pipeline:
    """Features of each text column side by side, and a linear model."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import FeatureUnion, make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    parts = [
        (
            f"text{number}",
            make_pipeline(
                FunctionTransformer(lambda texts, number=number: [text[number] for text in texts]),
                TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[!?.]"),
            ),
        )
        for number in range(columns)
    ]
    model = LogisticRegression(C=strength, max_iter=1000) if classes else Ridge(alpha=1 / strength)
    return make_pipeline(FeatureUnion(parts), model)


def predictions(data: LabelledData, strength: float, split: Examples) -> np.ndarray:
    """Of a model trained on the training split."""
    train = data.splits["train"]
    model = pipeline(len(train.texts[0]), data.label_names is not None, strength)
    return model.fit(train.texts, train.labels).predict(split.texts)


def score(section: dict[str, Any]) -> dict[str, Any]:
    """The metrics of every validation split, and the strength that was chosen."""
    from lookupffn.config.data import task_settings
    from lookupffn.data.labelled import load_task
    from lookupffn.objectives.metrics import compute_metrics

    tuning = load_task(task_settings({**section, "tuning_fraction": TUNING_FRACTION}))
    held = tuning.splits["validation"]
    metric = tuning.metrics[0]
    found = {
        strength: compute_metrics([metric], predictions(tuning, strength, held), held.labels)[metric]
        for strength in tqdm(STRENGTHS, desc="regularisation")
    }
    best = max(found, key=lambda strength: found[strength])
    data = load_task(task_settings(section))
    result: dict[str, Any] = {"task": data.name, "strength": best, f"tuning_{metric}": found[best]}
    for split in data.validation_names:
        examples = data.splits[split]
        metrics = compute_metrics(data.metrics, predictions(data, best, examples), examples.labels)
        result |= {f"{split}_{name}": value for name, value in metrics.items()}
    return result


def main() -> None:
    """Prints the scores as JSON, and writes them where asked."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(GLUE_TASKS))
    parser.add_argument("--data", help="folder of the official files; without it the Hugging Face hub")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()

    from lookupffn.storage import to_json, write_atomically

    try:
        result = score({"name": arguments.task, "data": arguments.data})
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    if arguments.output:
        write_atomically(arguments.output, to_json(result, indent=2))


if __name__ == "__main__":
    main()
