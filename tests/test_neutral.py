"""What hashes leave out stands in a table, and names of commands are unique."""

from __future__ import annotations

import re

import pytest
from hydra import compose, initialize_config_dir
from pydantic_core import PydanticUndefined

from distill.base.locations import CONF
from distill.base.processes import name_command
from distill.config import load, neutral
from distill.config.evaluation import EvalConfig
from distill.config.model import LoraConfig, WeightsConfig
from distill.config.neutral import determining
from distill.config.objective import LossConfig, SpanConfig
from distill.config.section import Section
from distill.config.train import StageTrainConfig, TrainConfig
from distill.pipeline.keys import NO_DECODING

HASHED = [EvalConfig, LoraConfig, LossConfig, SpanConfig, StageTrainConfig, TrainConfig, WeightsConfig]


@pytest.mark.parametrize("section", HASHED, ids=lambda c: c.__name__)
def test_defaults_are_neutral_or_listed(section):
    """A new key needs its neutral value in the table; a default that changes is listed, and then changes results."""
    left_out = NO_DECODING if section is EvalConfig else set()
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in section.model_fields.items()
        if field.get_default(call_default_factory=True) is not PydanticUndefined and name not in left_out
    }
    listed = {name.split(".")[1] for name in neutral.DELIBERATE if name.split(".")[0] == section.__name__}
    table = neutral.NEUTRAL[section.__name__]
    assert set(defaults) <= set(table), "write the value that is the behaviour of before into distill/config/neutral.py"
    assert set(table) <= set(section.model_fields), "a neutral value without its key"
    dumped = {n: v.model_dump() if isinstance(v, Section) else v for n, v in defaults.items()}  # as hashes have it
    differing = {name for name, value in dumped.items() if table[name] != value}
    assert differing == listed, "a default changed: list it in DELIBERATE if results shall change with it"


def test_the_table_has_every_hashed_section():
    assert set(neutral.NEUTRAL) == {section.__name__ for section in HASHED}


def test_hashes_leave_out_neutral_values_whatever_the_defaults(monkeypatch):
    config = load(["model=micro", "loss=fkl"])
    assert "w_lm" not in config.loss.determining and "num_beams" not in determining(config.eval)
    monkeypatch.setitem(neutral.NEUTRAL, "LossConfig", {"w_lm": 0.5})
    assert config.loss.determining["w_lm"] == 1.0
    assert determining(config.train.student, exclude={"lr"}).keys() == {"epochs", "global_batch_size", "select"}


def log_folders():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = compose("config", return_hydra_config=True).hydra
        return hydra.run.dir, hydra.sweep.dir


def test_two_commands_of_one_second_have_folders_of_their_own(monkeypatch):
    monkeypatch.setenv("DISTILL_COMMAND", "")
    names = [name_command() for _ in range(3)]
    assert len(set(names)) == 3 and all(re.fullmatch(r"[\d-]{10}_[\d-]{8}-[0-9a-f]{6}", name) for name in names)
    assert log_folders() == (f"store/logs/{names[-1]}", f"store/logs/{names[-1]}")
    monkeypatch.delenv("DISTILL_COMMAND")
    assert re.fullmatch(r"store/logs/[\d-]{10}_[\d-]{8}", log_folders()[0])


def test_the_processes_of_a_launcher_share_a_folder(monkeypatch):
    monkeypatch.setenv("DISTILL_COMMAND", "")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert name_command() == name_command()
