"""Measurements of `python -m data.tokenizer_report`: tokenizers side by side on the same texts."""
