"""Scaling laws: fits of loss over parameters, tokens and compute, and forecasts by them.

Axes of the arrays here: R runs, P parameters of a law, X inputs of a law, S bootstrap samples.
"""
