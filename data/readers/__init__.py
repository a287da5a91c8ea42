"""Readers of raw inputs in all formats: `units` divides inputs into units, `read` reads one."""
