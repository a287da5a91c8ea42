"""Reference values that tests compare with, made once by the libraries of others."""
