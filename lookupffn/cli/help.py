"""What --help says: what the command does, what there is to choose, and the settings that people change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lookupffn.cli.choices import CONFIG_DIR, choices, groups
from lookupffn.cli.command_line import compose, composing

# by command; one that is not here shows the settings of its own YAML with their comments
_SETTINGS = {
    "train": {
        "seed": "of the weights, the order of the data and the masks",
        "output_dir": "the run's folder; of a sweep, the folder of its members' folders",
        "training.max_steps": "how long; or state it as training.max_tokens, max_flops or max_minutes",
        "training.batch_size": "sequences a step, over all processes",
        "training.precision": "fp32, bf16 or fp16",
        "training.gradient_accumulation_steps": "a step in so many parts, for less memory",
        "optimizer.lr": "the highest learning rate; wider models want less",
        "model.hidden_size": "with model.num_hidden_layers and the others, a size that no model= has",
        "model.sequence_length": "tokens a sequence",
        "data.train_files": "your own text, with data=text: a path, a glob or a list",
        "ffn.num_tables": "an option of ffn=lookup; each ffn has its own, see configs/ffn",
        "init_from": "a run or model folder whose weights to start from",
        "cache_dir": "where prepared text is kept",
    },
}
_EXAMPLES = {
    "train": (
        "{command} ffn=lookup model=mini training.max_tokens=30e6",
        "{command} data=text data.train_files='texts/*.txt' tracker=none",
        "{command} -m ffn=gemm,lookup seed=0,1,2            one run after the other",
        "{command} -m experiment=race_tiny                  every feed-forward at two costs",
    ),
    "finetune": (
        "{command} checkpoint=outputs/<run> task=sst2 task.data=path/to/SST-2",
        "{command} checkpoint=outputs/<run> task=classification task.train_files=a.tsv task.validation_files=b.tsv",
        "{command} -m checkpoint=outputs/a,outputs/b task=glue task.data=path/to/glue seed=0,1,2",
    ),
    "evaluate": (
        "{command} checkpoint=outputs/<run>",
        "{command} checkpoint=outputs/<run> data=text data.validation_files=mine.txt",
    ),
}


def help_text(config_name: str, command: str) -> str:
    """The text of --help.

    Args:
        config_name: configs/<config_name>.yaml, whose first comment says what the command does.
        command: what the user typed to start it.
    """
    with composing():
        cfg = compose(config_name, [])
    lines = [_first_comment(CONFIG_DIR / f"{config_name}.yaml", every_line=True), ""]
    lines += [f"usage: {command} [-m] [GROUP=CHOICE ...] [SETTING=VALUE ...]", ""]
    lines += ["  " + example.format(command=command) for example in _EXAMPLES.get(config_name, ())]
    lines += ["", "Groups, and what to choose for each (* unless told otherwise):"]
    defaults = _defaults(config_name)
    for group in groups(config_name):
        lines.append(f"  {group}=")
        for name, path in choices(group).items():
            mark = "*" if name == defaults.get(group) else " "
            lines.append(f"   {mark} {name:<22} {_first_comment(path)}".rstrip())
    lines += ["", "Settings that people change, and their values now:"]
    for name, text in (_SETTINGS.get(config_name) or _own_settings(config_name)).items():
        value = OmegaConf.select(cfg, name)
        value = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
        shown = f"{name}={value}" if _exists(cfg, name) else f"{name}="
        lines.append(f"  {shown:<42} {text}".rstrip())
    lines += [
        "",
        "  --cfg job      every setting with its value, and nothing is run",
        "  -m, --multirun several values, separated by commas, are run one after the other",
        "  --hydra-help   what else Hydra, which composes the settings, takes",
    ]
    return "\n".join(lines) + "\n"


def _exists(cfg: object, name: str) -> bool:
    parent, _, key = name.rpartition(".")
    node: Any = OmegaConf.select(cfg, parent) if parent else cfg
    return OmegaConf.is_dict(node) and key in node


def _defaults(config_name: str) -> dict[str, str]:
    """The choice of each group that a command's YAML makes."""
    entries = OmegaConf.load(CONFIG_DIR / f"{config_name}.yaml").get("defaults", [])
    return {str(key): str(entry[key]) for entry in entries if OmegaConf.is_dict(entry) for key in entry}


def _first_comment(path: Path, *, every_line: bool = False) -> str:
    """The first line, or all lines, of the comment that a YAML begins with."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            found.append(line.removeprefix("#").strip())
    return "\n".join(found) if every_line else re.sub(":$", ".", "".join(found[:1]))


def _own_settings(config_name: str) -> dict[str, str]:
    """The settings outside of all groups in a command's YAML, with the comments beside them."""
    found, section = {}, ""
    for line in (CONFIG_DIR / f"{config_name}.yaml").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"( *)(\w+):([^#]*)(?:# *(.*))?", line):
            indent, name, value, comment = match.groups()
            if not indent:
                section = name
            if section not in ("defaults", "hydra") and value.strip():
                found[f"{section}.{name}" if indent else name] = comment or ""
    return found
