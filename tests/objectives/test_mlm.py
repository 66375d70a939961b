from lookupffn.objectives.mlm import first_step_below


def test_first_step_below():
    lines = [
        {"step": 10, "loss": 1.0},  # training losses do not count
        {"step": 20, "validation_loss": 6.0},
        {"step": 30, "validation_loss": 5.51},
        {"step": 40, "validation_loss": 5.5},
        {"step": 50, "validation_loss": 4.0},
    ]
    assert first_step_below(lines, 5.5) == 40
    assert first_step_below(lines, 5.51) == 30
    assert first_step_below(lines, 4.0) == 50
    assert first_step_below(lines, 3.9) is None
    assert first_step_below([], 6.0) is None
