"""SFT, preference pairs and preference losses."""
