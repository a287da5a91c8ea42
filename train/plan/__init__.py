"""The planner: what a pretraining run costs, before it is begun."""
