"""Every case of the catalogue of faults, in this process."""

from __future__ import annotations

import pytest

from tests.faults import CASES, Workshop


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.title}")
def test_a_fault_is_met_as_the_catalogue_says(case, tmp_path):
    outcome = case.act(Workshop(tmp_path))
    assert outcome.code == case.code, outcome.text[-4000:]
    missing = [text for text in case.says if text not in outcome.text]
    assert not missing, (missing, outcome.text[-4000:])
    assert "Traceback" not in outcome.text
