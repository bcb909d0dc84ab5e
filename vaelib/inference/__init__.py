"""Sampling posteriors, estimating likelihoods, exact linear models, measuring collapse."""
