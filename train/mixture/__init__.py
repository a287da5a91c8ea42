"""Shares of domains found by small runs, and given back as flags of `train.pretrain`."""
