"""Launchers: each prints the script or manifest that starts stages on many machines."""
