"""Tests, which mirror src/dragoman."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a loaded machine is no defect
settings.load_profile("untimed")
