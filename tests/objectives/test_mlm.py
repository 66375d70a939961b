from lookupffn.objectives.mlm import plateau_exit_step


def test_plateau_exit_step():
    lines = [
        {"step": 10, "loss": 1.0},  # training losses do not count
        {"step": 20, "validation_loss": 6.0},
        {"step": 30, "validation_loss": 5.51},
        {"step": 40, "validation_loss": 5.5},
        {"step": 50, "validation_loss": 4.0},
    ]
    assert plateau_exit_step(lines, 6.0) == 40
    assert plateau_exit_step(lines, 6.01) == 30
    assert plateau_exit_step(lines[:3], 6.0) is None
    assert plateau_exit_step([], 6.0) is None
