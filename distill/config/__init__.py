"""Configuration: Hydra composes it, one schema checks it, the stages receive it typed."""

from distill.config.compose import CONF, load, resolve
from distill.config.schema import Config

__all__ = ["CONF", "Config", "load", "resolve"]
