"""Configuration: composed by Hydra, checked by one schema, given to the stages as typed objects."""

from distill.base.locations import CONF
from distill.config.compose import load, resolve
from distill.config.schema import Config

__all__ = ["CONF", "Config", "load", "resolve"]
