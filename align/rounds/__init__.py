"""Iterated alignment: rounds of sampling, labelling, training and measuring, made of stages."""
