"""How safe a model's answers are: refusal, bias, red-team prompts, and a report of all probes."""
