"""Where the responses of a training step come from, registered by name.

To add one: a file in this folder with a registered `Sampler`, and `conf/sampler/<name>.yaml`.
"""

from distill.samplers.base import Sample, Sampler, Step, Writer, build, defaults, find, names, switches

__all__ = ["Sample", "Sampler", "Step", "Writer", "build", "defaults", "find", "names", "switches"]
