import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
)

from lookupffn import (
    LookupRobertaConfig,
    LookupRobertaForMaskedLM,
    LookupRobertaForMultipleChoice,
    LookupRobertaForQuestionAnswering,
    LookupRobertaForSequenceClassification,
    LookupRobertaForTokenClassification,
    LookupRobertaModel,
)

SIZES = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 40, "type_vocab_size": 1, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
LENGTH = 12
AUTO = {
    AutoModel: LookupRobertaModel,
    AutoModelForMaskedLM: LookupRobertaForMaskedLM,
    AutoModelForMultipleChoice: LookupRobertaForMultipleChoice,
    AutoModelForQuestionAnswering: LookupRobertaForQuestionAnswering,
    AutoModelForSequenceClassification: LookupRobertaForSequenceClassification,
    AutoModelForTokenClassification: LookupRobertaForTokenClassification,
}


def build(cls, ffn="lookup", **config):
    torch.manual_seed(0)
    return cls(LookupRobertaConfig(**SIZES, ffn={"name": ffn}, **config))


def masked(count):
    """Sequences of very different numbers of labels, so that a mean of means is not the mean."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for number in range(count):
        ids = torch.randint(5, 90, (LENGTH,), generator=generator)
        labels = torch.full((LENGTH,), -100)
        labels[: 1 + number * 7 % (LENGTH - 1)] = ids[: 1 + number * 7 % (LENGTH - 1)]
        examples.append({"input_ids": ids, "attention_mask": torch.ones(LENGTH, dtype=torch.long), "labels": labels})
    return examples


def labelled(count, labels):
    return [
        {"input_ids": example["input_ids"], "attention_mask": example["attention_mask"], **labels(number)}
        for number, example in enumerate(masked(count))
    ]


TASKS = {
    # name: (class, config, examples)
    "mlm": (LookupRobertaForMaskedLM, {}, masked),
    "classes": (
        LookupRobertaForSequenceClassification, {"num_labels": 3},
        lambda n: labelled(n, lambda i: {"labels": torch.tensor(i % 3)}),
    ),
    "a number": (
        LookupRobertaForSequenceClassification, {"num_labels": 1},
        lambda n: labelled(n, lambda i: {"labels": torch.tensor(i / 3)}),
    ),
    "several classes": (
        LookupRobertaForSequenceClassification, {"num_labels": 3, "problem_type": "multi_label_classification"},
        lambda n: labelled(n, lambda i: {"labels": torch.tensor([1.0, i % 2, 0.0])}),
    ),
    "tokens": (
        LookupRobertaForTokenClassification, {"num_labels": 3},
        lambda n: [{**e, "labels": torch.where(e["labels"] < 0, -100, e["labels"] % 3)} for e in masked(n)],
    ),
    "choice": (
        LookupRobertaForMultipleChoice, {},
        lambda n: labelled(n, lambda i: {"labels": torch.tensor(i % 2)}),
    ),
    "answers": (
        LookupRobertaForQuestionAnswering, {},
        lambda n: labelled(n, lambda i: {"start_positions": torch.tensor(i % 5), "end_positions": torch.tensor(6)}),
    ),
}  # fmt: skip


def collate(examples):
    """Two choices where the task has them: the sequence and itself reversed."""
    return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}


def choices(examples):
    batch = collate(examples)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return {**batch, "input_ids": torch.stack([ids, ids.flip(1)], 1), "attention_mask": torch.stack([mask, mask], 1)}


def trained(model, examples, folder, *, batch, accumulation, collator):
    """One step of plain gradient descent by transformers' Trainer: its loss and the new weights."""
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=1,
        learning_rate=0.1, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0, weight_decay=0.0,
        logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=examples, data_collator=collator)
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(examples)
    trainer.train()
    return trainer.state.log_history[0]["loss"], torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_accumulation_changes_neither_loss_nor_gradient_under_transformers_trainer(task, tmp_path):
    cls, config, make = TASKS[task]
    examples, collator = make(8), choices if task == "choice" else collate
    start = torch.cat([p.detach().flatten() for p in build(cls, **config).parameters()])
    losses, weights = zip(
        *(
            trained(build(cls, **config), examples, tmp_path, batch=b, accumulation=a, collator=collator)
            for b, a in ((8, 1), (2, 4))
        ),
        strict=True,
    )
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert (weights[0] - weights[1]).norm() < 1e-3 * (weights[0] - start).norm()
    # and the loss is the mean that one call gives
    batch = collator(examples)
    assert losses[0] == pytest.approx(build(cls, **config).train()(**batch).loss.item(), rel=1e-3)


@pytest.mark.parametrize("task", ["mlm", "tokens"])  # the others have a label for every example
def test_loss_of_no_labels_adds_nothing_to_a_step_of_several_batches(task):
    cls, config, make = TASKS[task]
    batch = collate(make(2))
    loss = build(cls, **config)(
        **{**batch, "labels": torch.full_like(batch["labels"], -100)}, num_items_in_batch=5
    ).loss
    assert loss.item() == 0


def test_evaluation_with_the_usual_compute_metrics(tmp_path):
    examples = masked(6)

    def accuracy(prediction):
        labels = prediction.label_ids
        chosen = prediction.predictions.argmax(-1)
        assert chosen.shape == labels.shape == (6, LENGTH)
        return {"accuracy": float((chosen == labels)[labels != -100].mean())}

    model = build(LookupRobertaForMaskedLM).eval()
    arguments = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=4, report_to=[], disable_tqdm=True, use_cpu=True
    )
    found = Trainer(model, arguments, eval_dataset=examples, data_collator=collate, compute_metrics=accuracy).evaluate()
    batch = collate(examples)
    logits, labels = model(batch["input_ids"]).logits, batch["labels"]
    right = (logits.argmax(-1) == labels)[labels != -100]
    assert found["eval_accuracy"] == pytest.approx(right.double().mean().item())


@pytest.mark.parametrize("ffn", ["switch", "mongoose"])
def test_auxiliary_losses_count_when_trainer_trains_and_not_in_evaluation(ffn):
    model, batch = build(LookupRobertaForMaskedLM, ffn).eval(), collate(masked(4))
    plain = cross_entropy(model(batch["input_ids"]).logits.flatten(0, 1), batch["labels"].flatten())
    items = int((batch["labels"] != -100).sum())
    assert model(**batch, num_items_in_batch=items).loss.item() == pytest.approx(plain.item(), rel=1e-5)
    torch.manual_seed(3)
    loss = model.train()(**batch).loss
    auxiliary = sum(model.auxiliary_losses().values())
    torch.manual_seed(3)
    # half of a step's labels: half of the auxiliary loss
    part = model(**batch, num_items_in_batch=2 * items).loss
    assert auxiliary > 0 and part.item() == pytest.approx((loss + auxiliary).item() / 2, rel=1e-4)


def test_the_head_runs_on_masked_positions_where_told():
    model = build(LookupRobertaForMaskedLM).eval()
    tokens = torch.randint(5, 90, (3, 32))
    positions = torch.stack([torch.randperm(32)[:5].sort().values for _ in range(3)])
    targets = tokens.gather(1, positions)
    labels = torch.full_like(tokens, -100).scatter(1, positions, targets)
    full = model(tokens).logits
    by_position = model(tokens, masked_positions=positions, labels=targets)
    by_label = model(tokens, labels=labels)
    expected = full.gather(1, positions[..., None].expand(-1, -1, 90))
    assert by_position.logits.shape == (3, 5, 90) and by_label.logits.shape == (3, 32, 90)
    assert torch.allclose(by_position.logits, expected, atol=1e-6) and torch.allclose(by_label.logits, full, atol=1e-6)
    loss = cross_entropy(expected.flatten(0, 1), targets.flatten())
    assert by_position.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert by_label.loss.item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("auto", AUTO, ids=lambda auto: auto.__name__)
def test_every_auto_class_loads_what_was_saved(auto, tmp_path):
    saved = build(AUTO[auto], id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}).eval()
    saved.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path).eval()
    assert type(loaded) is AUTO[auto] and loaded.config.id2label == {0: "no", 1: "yes"}
    ids = torch.randint(5, 90, (2, 3, LENGTH) if auto is AutoModelForMultipleChoice else (2, LENGTH))
    for mine, theirs in zip(saved(ids).to_tuple(), loaded(ids).to_tuple(), strict=True):
        assert torch.equal(mine, theirs)
    assert isinstance(loaded(ids, return_dict=False), tuple)


@pytest.mark.parametrize("auto", [auto for auto in AUTO if auto is not AutoModel], ids=lambda auto: auto.__name__)
def test_other_heads_share_a_pretrained_encoder(auto, tmp_path):
    saved = build(LookupRobertaForMaskedLM).eval()
    saved.save_pretrained(tmp_path)
    other = auto.from_pretrained(tmp_path, num_labels=3).eval()
    ids = torch.randint(5, 90, (2, LENGTH))
    assert torch.equal(other.base_model(ids)[0], saved.base_model(ids)[0])
