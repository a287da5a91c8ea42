"""What watches a run and changes nothing in it: metrics, goodput, profiles, compilations."""
