"""Scaling laws: fits of loss over parameters, tokens and compute, and forecasts by them.

Axes of the arrays here: R runs or budgets, P parameters of a law, X inputs of a law, T terms of a
sum, S bootstrap samples or starts, C curves of training.
"""
