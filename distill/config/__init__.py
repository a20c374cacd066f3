"""Configuration: Hydra composes it, one schema checks it, the stages receive it typed."""

from distill.base.locations import CONF
from distill.config.compose import load, resolve
from distill.config.schema import Config

__all__ = ["CONF", "Config", "load", "resolve"]
