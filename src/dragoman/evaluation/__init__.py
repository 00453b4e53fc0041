"""Evaluation: scores as segment sums, a formula and a signature; likelihoods; tests of differences."""
